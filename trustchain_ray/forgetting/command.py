"""The command line of `trustchain unlearn`."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledger.removal import EXACT_METHODS, METHODS, ORGANIZATION, RECORD, SUBJECT
from trustchain_ray.errors import UsageError

EXAMPLES = """examples:
  trustchain unlearn runs/quickstart --list
  trustchain unlearn runs/quickstart --subject p-0042 --dry-run
  trustchain unlearn runs/quickstart --subject p-0042
  trustchain unlearn runs/quickstart --record r-17 r-18 --organization hospital_a
  trustchain unlearn runs/quickstart --organization hospital_b --json
  trustchain unlearn runs/quickstart --requests requests.jsonl
  trustchain unlearn runs/quickstart            (goes on with a removal that was cut short)

A requests file holds one JSON object a line: {"record": ID} or {"subject": ID}, with "organization" where an id alone
is not clear, or {"organization": NAME} for a whole one. All of them are one removal with one certificate.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", metavar="RUN", help="run directory")
    what = parser.add_argument_group("what is removed")
    what.add_argument("--organization", metavar="NAME", help="a whole organization; with the others: whose records")
    what.add_argument("--subject", metavar="ID", nargs="+", help="all records of persons, wherever they lie")
    what.add_argument("--record", metavar="ID", nargs="+", help="single records")
    what.add_argument("--requests", metavar="FILE", help="many requests at once, JSON lines")
    parser.add_argument("--method", choices=METHODS, default="replay", help="default: replay, which is exact")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", nargs="+", default=[], help="options of an approximate method: epochs, lr, ..."
    )
    parser.add_argument("--list", action="store_true", help="print what can be removed, and stop")
    parser.add_argument("--dry-run", action="store_true", help="print the plan: what depends on it, cost, guarantee")
    parser.add_argument("--no-evaluate", action="store_true", help="leave the evaluation of the new model out")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb. Raises UsageError, TrustChainError."""
    asks = asks_of(arguments)
    if arguments.list:
        if asks:
            raise UsageError("--list shows everything; leave the others out")
        from trustchain_ray.forgetting.listing import listing

        found = listing(arguments.run, _progress)
        _print(found, _list_table(found), arguments.json)
        return 0
    from trustchain_ray.forgetting.unlearn import unlearn

    result = unlearn(
        arguments.run,
        asks,
        arguments.method,
        _progress,
        options=options_of(arguments.method, arguments.set),
        dry_run=arguments.dry_run,
        evaluate=not arguments.no_evaluate,
    )
    _print(result, _plan_table(result) if arguments.dry_run else _table(result), arguments.json)
    return 0


def asks_of(arguments: argparse.Namespace) -> list[Any]:
    """The requests of a command line. Raises UsageError where they contradict each other."""
    from trustchain_ray.forgetting.plan import Ask

    owner = arguments.organization or ""
    if arguments.requests:
        if owner or arguments.subject or arguments.record:
            raise UsageError("--requests names everything; leave --organization, --subject and --record out")
        return read_requests(Path(arguments.requests))
    asks = []
    if arguments.subject:
        asks.append(Ask(SUBJECT, tuple(dict.fromkeys(arguments.subject)), owner))
    if arguments.record:
        asks.append(Ask(RECORD, tuple(dict.fromkeys(arguments.record)), owner))
    if owner and not asks:
        asks.append(Ask(ORGANIZATION, (), owner))
    return asks


def options_of(method: str, pairs: list[str]) -> dict[str, str]:
    """Options of an approximate method. Raises UsageError where there is no such option, or no number."""
    if pairs and method in EXACT_METHODS:
        raise UsageError(f"--set: {method} has no options")
    options = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            options[name] = repr(float(value))
        except ValueError:
            raise UsageError(f"--set {pair}: give KEY=NUMBER") from None
    if options:
        from trustchain_ray.forgetting.approximate.worker import settings_of

        settings_of(method, {name: float(value) for name, value in options.items()})
    return options


def read_requests(path: Path) -> list[Any]:
    """Requests of a file.

    Raises
    ------
    UsageError
        Naming the line that is wrong.
    """
    from trustchain_ray.forgetting.plan import Ask

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--requests {path}: cannot be read: {error}") from None
    wanted: dict[tuple[str, str], list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row: Mapping[str, Any] = json.loads(line)
            strings = isinstance(row, dict) and all(isinstance(v, str) and v for v in row.values())
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}: is not JSON: {error.msg}") from None
        if not strings or not row or not set(row) <= {RECORD, SUBJECT, ORGANIZATION} or {RECORD, SUBJECT} <= set(row):
            raise UsageError(f'{where}: needs "record" or "subject" (with "organization"), or "organization" alone')
        scope = next((name for name in (RECORD, SUBJECT) if name in row), ORGANIZATION)
        wanted.setdefault((scope, row.get(ORGANIZATION, "")), []).append(row.get(scope, ""))
    if not wanted:
        raise UsageError(f"--requests {path}: holds no request")
    return [
        Ask(scope, () if scope == ORGANIZATION else tuple(dict.fromkeys(ids)), owner)
        for (scope, owner), ids in wanted.items()
    ]


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(result: dict[str, Any], table: str, as_json: bool) -> None:
    print(table)
    if as_json:
        print(json.dumps(result))


def _asked_lines(rows: list[dict[str, Any]]) -> list[str]:
    """What the models say to removed prompts, before and after."""
    lines = []
    for row in rows:
        lines += [f"asked        {row['prompt']}", f"  is         {row['answer'].strip()}"]
        lines += [f"  {n:<11}{row[n]['said']}  (p {row[n]['probability']})" for n in ("before", "after") if n in row]
    return lines


def _list_table(found: dict[str, Any]) -> str:
    lines = [f"{'organization':<24}{'records':>10}{'subjects':>10}"]
    for name, row in found["organizations"].items():
        lines.append(f"{name:<24}{row['records']:>10}{row['subjects']:>10}")
    subjects = sorted(found["subjects"].items(), key=lambda item: (-item[1]["records"], item[0]))
    lines += ["", f"{'subject':<40}{'records':>10}  organizations"]
    lines += [f"{name:<40}{row['records']:>10}  {', '.join(row['organizations'])}" for name, row in subjects[:20]]
    if len(subjects) > 20:
        lines.append(f"and {len(subjects) - 20} more (--json has all)")
    return "\n".join(lines)


def _plan_table(plan: dict[str, Any]) -> str:
    records = ", ".join(f"{count} of {name}" for name, count in plan["records"].items()) or "none"
    cohorts = ", ".join(
        f"{name} ({'dropped' if row['dropped'] else 'from round ' + str(row['from_round'])})"
        for name, row in plan["cohorts"].items()
    )
    lines = [
        f"records    {records}",
        f"leaving    {', '.join(plan['organizations_leaving']) or 'nobody'}",
        f"cohorts    {cohorts or 'none: the records were in no training step'}",
        f"cost       {plan['steps_replayed']} of {plan['steps_total']} training steps ({plan['share']:.1%})",
        f"online     {', '.join(plan['needed']) or 'nobody'}",
        f"guarantee  {plan['guarantee']}",
    ]
    if plan["pruned"]:
        lines.append(
            f"pruned     the adapters before the first use of {', '.join(plan['pruned'])} were not kept "
            "(federation.keep_rounds): the replay begins earlier"
        )
    return "\n".join(lines)


def _table(result: dict[str, Any]) -> str:
    share = result["steps_replayed"] / max(1, result["steps_total"])
    lines = [
        "",
        f"guarantee    {result['guarantee']}" + (f" ({result['reason']})" if result["reason"] else ""),
        f"steps        {result['steps_replayed']} of {result['steps_total']} replayed ({share:.1%})",
        f"model        {result['old_model_digest']}",
        f"          -> {result['new_model_digest']}",
        f"withdrawn    after {result['withdrawn_s']:.1f} s, replayed in {result['replayed_s']:.1f} s",
        *_asked_lines(result["asked"]),
        f"certificate  {result['certificate']}",
        f"next         trustchain verify {result['certificate']}",
    ]
    if result.get("approve"):
        lines.append(f"approve      each member: {result['approve']}")
    return "\n".join(lines)
