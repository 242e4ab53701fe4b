"""Scores of a model on every organization's test records."""

import json
from typing import Any

from trustchain_ray.compare import mean_scores
from trustchain_ray.errors import TrustChainError
from trustchain_ray.evaluate.adapters import open_engine, read_adapter
from trustchain_ray.evaluate.standing import Progress, Standing, read_standing
from trustchain_ray.forgetting.metrics.scoring import load
from trustchain_ray.rows import encode


def evaluate(folder: str, model: str | None, progress: Progress) -> dict[str, Any]:
    """Score the released model of a run, or another adapter, on test records that were not removed.

    Equal to the run's own scores up to the last digits of float32: a published stack is loaded as an adapter, where
    workers add it to the base. The form `svd` publishes the model as a whole, while members of a lower rank serve
    its leading directions.

    Parameters
    ----------
    model : a PEFT adapter folder or another run of the same base; None: the released model.

    Returns
    -------
    dict
        `run`, `adapter` (`folder`, `digest`), `released` (whether it is the model that the run released), `records`
        (test records by organization), `scores` (means over organizations, and `by_organization`), `of_run` (what
        the run said of this model; None of another one), `left_out` (organizations, and why).

    Raises
    ------
    UsageError
        Not a run, or no model there.
    TrustChainError
        No records can be read here, or the adapter does not fit the run's base.
    """
    standing = read_standing(folder, progress)
    adapter = read_adapter(model or standing.path)
    engine = open_engine(standing.config, standing.base, [adapter])
    load(engine, adapter.state)
    settings, records, scores = standing.config.model, {}, {}
    for name, held in standing.holdings.items():
        rows = encode(held.test, engine.tokenizer, settings.task, settings.max_length)
        records[name], scores[name] = len(rows), engine.evaluate(rows).summary()
        progress(f"{name}: {len(rows)} test records")
    result = _result_of(standing)
    released = adapter.digest == result.get("model_digest")
    return {
        "run": str(standing.path),
        "adapter": {"folder": str(adapter.folder), "digest": adapter.digest},
        "released": released,
        "records": records,
        "scores": {**mean_scores(scores), "by_organization": scores},
        "of_run": result.get("scores", {}).get("federated") if released else None,
        "left_out": standing.left_out,
    }


def _result_of(standing: Standing) -> dict[str, Any]:
    """What the run said at its end; nothing of a run that is not complete. Raises TrustChainError."""
    path = standing.path / "result.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise TrustChainError(f"{path} is damaged: {error}; restore it from a copy of the run") from None
