"""The audit of a run with canaries: what its releases show of them, beside what the privacy account says.

Canaries are scored by what their organization sent last, where the run kept it (`federation.keep_updates: all`): the
account promises that every update may be seen. Else they are scored by the released model, in which the averaging over
organizations hides most of what one of them learnt.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledger import layout
from ledger.events import PRIVACY_SPEND
from ledger.log import SqliteLog
from trustchain_ray import forms
from trustchain_ray.adapter import LORA_A, Tensors, digest, load_tensors
from trustchain_ray.canaries import canaries_of
from trustchain_ray.cohorts import cohorts_of, records_of
from trustchain_ray.data import Record, record_of_canary
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.evaluate.adapters import Adapter
from trustchain_ray.evaluate.standing import Standing
from trustchain_ray.forgetting.metrics.canaries import canary_test
from trustchain_ray.forgetting.metrics.scoring import load, losses, score
from trustchain_ray.privacy.audit import FEWEST, one_run
from trustchain_ray.privacy.member import COMPOSED
from trustchain_ray.round_writer import FROZEN, INITIAL, adapter_file, update_file
from trustchain_ray.rows import encode
from trustchain_ray.statements import statement_of

DELTA = 1e-5
"""Delta of the bound where no account has one."""


@dataclass(frozen=True)
class Watched:
    """Canaries of an organization, and the model that is asked about them.

    Attributes
    ----------
    organization : whose canaries they are.
    records : the canaries of one of its cohorts, whether they were trained on or not.
    included : which of them were trained on, bool ``(records,)``.
    adapter : what the organization last sent of the cohort, or the released model.
    seen : `update` or `model`, which of both.
    """

    organization: str
    records: list[Record]
    included: NDArray[np.bool_]
    adapter: Adapter
    seen: str


def watched(standing: Standing, released: Adapter) -> list[Watched]:
    """The canaries of every organization and cohort. Canaries that were removed from the run are in none."""
    config, found = standing.config, []
    for name, held in standing.holdings.items():
        there = {record.id for record in held.train}
        canaries = [c for c in canaries_of(config, name) if c.id in there or not c.included]
        records = [record_of_canary(config, name, canary) for canary in canaries]
        for cohort, members in cohorts_of(config.federation, standing.manifest["organizations"]).items():
            if name not in members:
                continue
            own = records_of(config.federation, config.run.key, name, cohort, records)
            sent = _last_sent(standing, name, cohort, released.base)
            found.append(
                Watched(
                    name,
                    [records[i] for i in own],
                    np.asarray([canaries[i].included for i in own], bool),
                    sent or released,
                    "update" if sent else "model",
                )
            )
    return found


def audit(
    standing: Standing, engine: TorchEngine, canaries: Sequence[Watched], batch: int, confidence: float
) -> dict[str, Any]:
    """What the canaries of each organization show, and those of all together.

    Units of different organizations are disjoint: the largest of their accounts holds for all canaries at once. All
    bounds of the answer hold together with the given confidence (Bonferroni).

    Returns
    -------
    dict
        `confidence`; `by_organization` and `all`: `canaries`, `included`, `seen`, `mean_exposure`, `auc`, `bound` (of
        :func:`trustchain_ray.privacy.audit.one_run`; None with too few canaries), `account` (`epsilon`, `delta`,
        `unit`, `composed`; None without one) and `kept`: whether the bound is within the account; None where that
        says nothing.
    """
    model, accounts = standing.config.model, _accounts(standing)
    owners, found = [], []
    for each in canaries:
        load(engine, each.adapter.state)
        rows = encode(each.records, engine.tokenizer, model.task, model.max_length)
        owners += [each.organization] * len(rows)
        found.append(losses(score(engine, rows, batch)) if rows else np.zeros(0))
    owner, loss, included = np.asarray(owners), np.concatenate(found), np.concatenate([w.included for w in canaries])

    several = len(standing.holdings) + 1 if len(standing.holdings) > 1 else 1
    each_confidence = 1 - (1 - confidence) / several

    def shown(names: Collection[str], account: dict[str, Any] | None) -> dict[str, Any]:
        mine = np.isin(owner, list(names))
        seen = "/".join(sorted({each.seen for each in canaries if each.organization in names}))
        return {"seen": seen, **_shown(loss[mine], included[mine], account, each_confidence)}

    return {
        "confidence": confidence,
        "by_organization": {name: shown([name], accounts.get(name)) for name in standing.holdings},
        "all": shown(standing.holdings, _largest(accounts)),
    }


def _largest(accounts: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The account that holds for the units of all organizations."""
    if not accounts:
        return None
    largest = max(accounts.values(), key=lambda account: account["epsilon"])
    return {**largest, "delta": max(account["delta"] for account in accounts.values())}


def _shown(
    loss: NDArray[np.float64], included: NDArray[np.bool_], account: dict[str, Any] | None, confidence: float
) -> dict[str, Any]:
    """The bound beside the account; nothing is measured with too few canaries, or with all on one side."""
    shown: dict[str, Any] = {"canaries": included.size, "included": int(included.sum()), "account": account}
    if included.size < FEWEST or included.all() or not included.any():
        return {**shown, "mean_exposure": None, "auc": None, "bound": None, "kept": None}
    exposed = canary_test(loss[included], loss[~included])
    bound = one_run(-loss, included, account["delta"] if account else DELTA, confidence)
    promised = account is not None and account["composed"] and account["unit"] in ("record", "subject")
    return {
        **shown,
        "mean_exposure": exposed.mean_exposure,
        "auc": dataclasses.asdict(exposed.auc),
        "bound": dataclasses.asdict(bound),
        "kept": bound.epsilon <= account["epsilon"] if promised and account else None,
    }


def _last_sent(standing: Standing, name: str, cohort: str, base: str) -> Adapter | None:
    """The cohort's model as it would be with the organization's last update alone; None where none was kept."""
    folder, form = standing.path, forms.get(standing.config.model.lora.form)
    alpha = standing.config.model.lora.alpha
    for number in range(standing.config.federation.rounds, 0, -1):
        path = folder / f"rounds/{number:04d}" / update_file(cohort, name)
        before = folder / (adapter_file(number - 1, cohort) if number > 1 else INITIAL)
        if path.is_file() and before.is_file():
            merged = form.merge(load_tensors(before), [load_tensors(path)], [1], 1.0, alpha)
            tensors, scale = form.published(merged, load_tensors(folder / FROZEN), alpha)
            return Adapter(path, tensors, scale * _rank(tensors), digest(tensors), base)
    return None


def _rank(tensors: Tensors) -> int:
    return next(int(tensor.shape[0]) for name, tensor in tensors.items() if name.endswith(LORA_A))


def _accounts(standing: Standing) -> dict[str, dict[str, Any]]:
    """What each organization last said that it spent, from the log of the run."""
    log = SqliteLog(standing.path / layout.LOG, read_only=True)
    try:
        said: list[Mapping[str, Any]] = [statement_of(envelope) for _, envelope in log.events(PRIVACY_SPEND)]
    finally:
        log.close()
    return {
        statement["organization"]: {
            "epsilon": float(statement["body"]["epsilon"]),
            "delta": float(statement["body"]["delta"]),
            "unit": statement["body"]["unit"],
            "composed": statement["body"]["composed"] == COMPOSED,
        }
        for statement in said
        if statement["organization"] in standing.holdings
    }
