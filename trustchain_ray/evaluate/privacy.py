"""What a released model gives away of training records: membership attacks, memorisation, and the audit by canaries."""

from collections.abc import Mapping, Sequence
from typing import Any

from trustchain_ray.canaries import canaries_of
from trustchain_ray.data import Record
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.evaluate.adapters import open_engine, read_adapter
from trustchain_ray.evaluate.audit import audit, watched
from trustchain_ray.evaluate.options import attack_settings_of
from trustchain_ray.evaluate.questions import text_of
from trustchain_ray.evaluate.standing import Progress, Standing, read_standing
from trustchain_ray.forgetting.metrics.evaluation import base_state
from trustchain_ray.forgetting.metrics.measuring import Settings, attacks
from trustchain_ray.forgetting.metrics.memorisation import exact_memorisation, extraction_strength
from trustchain_ray.forgetting.metrics.questions import Question, questions
from trustchain_ray.forgetting.metrics.scoring import TokenScores, load, score
from trustchain_ray.keys import derive

MEMBERS, OTHERS = "forget", "holdout"
"""Who was trained on and who was not, by the names that the attacks know them by."""

Asked = dict[str, list[Question]]
Scores = dict[str, list[TokenScores]]


def measure_privacy(
    folder: str, progress: Progress, *, model: str | None = None, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Attack a run's model with the records of its organizations, and audit it where it has canaries.

    Parameters
    ----------
    folder : the run.
    model : as of :func:`trustchain_ray.evaluate.scores.evaluate`; another model than the run's is not audited.
    options : `KEY=VALUE` pairs: `records` (of an organization, members and others each), `min_k`, `confidence` and
        `batch`.

    Returns
    -------
    dict
        `run`, `adapter` (`folder`, `digest`), `task`, `left_out`; `attacks` and `audit` (None: no audit), each with
        `by_organization` and `all`. Of attacks: `members`, `others`, `membership` (AUC and true-positive rates by
        attack) and, of a causal model, `memorisation` (means of members and of others). Of the audit: see
        :func:`trustchain_ray.evaluate.audit.audit`.

    Raises
    ------
    UsageError
        Not a run with a model, or a wrong option.
    TrustChainError
        No organization has both training and test records here, or damaged files.
    """
    measurement = attack_settings_of(options)
    settings = measurement.settings
    standing = read_standing(folder, progress)
    adapter = read_adapter(model or standing.path)
    canaries = watched(standing, adapter) if standing.config.privacy.canaries and model is None else []
    engine = open_engine(standing.config, standing.base, [adapter, *(each.adapter for each in canaries)])
    asked = {n: _asked(standing, n, engine, measurement.records, progress) for n in standing.holdings}
    found: list[dict[str, Scores]] = []
    for state in (adapter.state, base_state(engine, adapter.state)):
        load(engine, state)
        found.append(
            {
                name: {which: score(engine, [q.row for q in of], settings.batch) for which, of in sets.items()}
                for name, sets in asked.items()
            }
        )
    return {
        "run": str(standing.path),
        "adapter": {"folder": str(adapter.folder), "digest": adapter.digest},
        "task": standing.config.model.task,
        "attacks": _attacks(engine, asked, found[0], found[1], settings),
        "audit": audit(standing, engine, canaries, settings.batch, settings.confidence) if canaries else None,
        "left_out": standing.left_out,
    }


def _asked(standing: Standing, name: str, engine: TorchEngine, most: int, progress: Progress) -> Asked:
    """Training records of an organization without its canaries, and its test records that nobody trained on."""
    config, held = standing.config, standing.holdings[name]
    made = {canary.id for canary in canaries_of(config, name)}
    trained = {text_of(record) for each in standing.holdings.values() for record in each.train}
    members = _first(config.run.key, name, [record for record in held.train if record.id not in made], most)
    others = _first(config.run.key, name, [record for record in held.test if text_of(record) not in trained], most)
    few = f", too few for true-positive rates at {'1 % and ' if len(others) < 100 else ''}0.1 % false positives"
    progress(f"{name}: {len(members)} training records, {len(others)} held out" + (few if len(others) < 1000 else ""))

    def tokenised(records: Sequence[Record]) -> list[Question]:
        return questions(records, engine.tokenizer, config.model.task, config.model.max_length)

    return {MEMBERS: tokenised(members), OTHERS: tokenised(others)}


def _first(key: str, name: str, records: list[Record], most: int) -> list[Record]:
    """At most so many records, the first by keyed order."""
    return sorted(records, key=lambda record: derive(key, "evaluate", "privacy", name, record.id))[:most]


def _attacks(
    engine: TorchEngine,
    asked: Mapping[str, Asked],
    scores: Mapping[str, Scores],
    base: Mapping[str, Scores],
    settings: Settings,
) -> dict[str, Any]:
    """Attacks on each organization's records, and on those of all together."""
    names = [name for name, sets in asked.items() if sets[MEMBERS] and sets[OTHERS]]
    if not names:
        raise TrustChainError(
            "no organization has test records here that nobody trained on, to compare its training records with; set "
            "data.test or data.test_share"
        )

    def attacked(group: Sequence[str]) -> dict[str, Any]:
        questions_of, own, reference = (_joined(of, group) for of in (asked, scores, base))
        found = {
            "members": len(questions_of[MEMBERS]),
            "others": len(questions_of[OTHERS]),
            "membership": attacks(engine, own, reference, [reference], questions_of, settings),
        }
        if engine.adapter.task == "causal":
            found["memorisation"] = {
                metric: {"members": float(of(own[MEMBERS]).mean()), "others": float(of(own[OTHERS]).mean())}
                for metric, of in MEMORISATION.items()
            }
        return found

    return {"by_organization": {name: attacked([name]) for name in names}, "all": attacked(names)}


MEMORISATION = {"extraction_strength": extraction_strength, "exact_memorisation": exact_memorisation}


def _joined(of: Mapping[str, Mapping[str, list[Any]]], names: Sequence[str]) -> dict[str, list[Any]]:
    return {split: [each for name in names for each in of[name][split]] for split in (MEMBERS, OTHERS)}
