"""The tables of `trustchain evaluate --privacy`."""

from collections.abc import Iterator
from typing import Any


def privacy_table(result: dict[str, Any]) -> str:
    """Attacks on each organization's records and on all; then the audit, where the run has canaries."""
    attacks = result["attacks"]
    groups = dict(attacks["by_organization"])
    if len(groups) > 1:
        groups["all"] = attacks["all"]
    lines = ["", f"{'membership':<30}{'attack':<18}{'AUC':>8}{'95 %':>18}{'TPR at 1 %':>26}{'TPR at 0.1 %':>26}"]
    for name, found in groups.items():
        label = f"{name} ({found['members']}/{found['others']})"
        for attack, measured in found["membership"].items():
            rates = "".join(f"{_rate(rate):>26}" for rate in measured["true_positive_rates"])
            area = measured["auc"]
            lines.append(f"{label:<30}{attack:<18}{area['value']:>8.3f}{_between(area):>18}{rates}")
            label = ""
    if result["task"] == "causal":
        lines += ["", f"{'memorisation':<48}{'members':>10}{'others':>10}"]
        for name, found in groups.items():
            lines += [
                f"{name:<28}{metric.replace('_', ' '):<20}{mean['members']:>10.3f}{mean['others']:>10.3f}"
                for metric, mean in found["memorisation"].items()
            ]
    else:
        lines.append("a classification says labels: Min-K%, Min-K%++ and extraction read tokens and do not apply")
    lines.append("- : too few held-out records for this false-positive rate. (members/others) are numbers of records")
    if result["audit"] is not None:
        lines += ["", *_audit(result["audit"])]
    lines.append(f"model   {result['adapter']['digest']}  {result['adapter']['folder']}")
    return "\n".join(lines)


def is_above_its_account(result: dict[str, Any]) -> bool:
    """Whether the audit refutes what a privacy account says."""
    audit = result["audit"]
    return audit is not None and any(row["kept"] is False for row in [audit["all"], *audit["by_organization"].values()])


def _audit(audit: dict[str, Any]) -> Iterator[str]:
    groups = dict(audit["by_organization"])
    if len(groups) > 1:
        groups["all"] = audit["all"]
    yield (
        f"{'audit':<24}{'canaries':>10}{'in':>7}{'asked':>9}{'exposure':>10}{'AUC':>7}{'right':>11}"
        f"{'epsilon at least':>18}{'account':>10}{'delta':>10}"
    )
    for name, row in groups.items():
        account = row["account"]
        said = f"{account['epsilon']:>10.2f}{account['delta']:>10.2g}" if account else f"{'none':>10}{'':>10}"
        start = f"{name:<24}{row['canaries']:>10}{row['included']:>7}{row['seen']:>9}"
        if row["bound"] is None:
            yield f"{start}{'too few canaries':>28}{'-':>18}{said}"
            continue
        right = f"{row['bound']['right']}/{row['bound']['guesses']}"
        above = "  ABOVE THE ACCOUNT" if row["kept"] is False else ""
        yield (
            f"{start}{row['mean_exposure']:>10.2f}{row['auc']['value']:>7.3f}{right:>11}"
            f"{row['bound']['epsilon']:>18.2f}{said}{above}"
        )
    yield f"all bounds hold together with a confidence of {audit['confidence']:.4g} (2305.08846)"
    yield from _notes(list(groups.values()))


def _notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What the figures do not say."""
    account = next((row["account"] for row in rows if row["account"]), None)
    if account and not account["composed"]:
        yield "the account's epsilon holds for one step: the bound, of the run, may be above it"
    elif account and account["unit"] == "organization":
        yield "the account is of whole organizations: canaries are records, and do not test it"
    if any(row["seen"] == "model" for row in rows):
        yield "asked of the released model alone: federation.keep_updates=all lets the audit see what was sent, too"
    if any(row["kept"] is False for row in rows):
        yield "a bound above the account: training does not do what the account counts on; trust no figure of it"


def _rate(rate: dict[str, Any]) -> str:
    return f"{rate['rate']['value']:.3f} {_between(rate['rate'])}" if rate["resolved"] else "-"


def _between(interval: dict[str, Any]) -> str:
    return f"[{interval['low']:.3f}, {interval['high']:.3f}]"
