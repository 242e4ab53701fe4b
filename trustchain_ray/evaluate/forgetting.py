"""All metrics of forgetting of a run's model, beside models that were retrained without the records."""

from collections.abc import Sequence
from typing import Any

from trustchain_ray.data import Record
from trustchain_ray.evaluate.adapters import Adapter, open_engine, read_adapter
from trustchain_ray.evaluate.options import measurement_of
from trustchain_ray.evaluate.questions import pick, questions_of_file, questions_of_run, read_records, text_of
from trustchain_ray.evaluate.standing import Progress, Standing, read_standing
from trustchain_ray.forgetting.metrics.evaluation import Sets, evaluate_forgetting
from trustchain_ray.forgetting.metrics.questions import Question


def measure_forgetting(
    folder: str,
    forget: str,
    progress: Progress,
    *,
    model: str | None = None,
    retain: str | None = None,
    holdout: str | None = None,
    retrained: Sequence[str] = (),
    old: str | None = None,
    relearn: bool = True,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a model on records that were removed, or are to be.

    Parameters
    ----------
    folder : the run.
    forget, retain, holdout : files of records with the run's columns (:mod:`trustchain_ray.evaluate.questions`).
        Default of `retain`: training records that are still in the run; of `holdout`: its test records, unless they
        are trained on, too; the first 200 by keyed order. What is forgotten is in neither.
    model : as of :func:`trustchain_ray.evaluate.scores.evaluate`.
    retrained, old : run directories or adapter folders of the same base: models that never had the records, and the
        model before the removal, which relearn time needs.
    options : `KEY=VALUE` pairs (:mod:`trustchain_ray.evaluate.options`).

    Returns
    -------
    dict
        `run`, `adapter`, `references` and `old_adapter` (`folder`, `digest`; of references also `same`: whether it is
        the model bit for bit), `still_in_training` (how many of the records to forget the run still trains on),
        `left_out`, and all of :func:`trustchain_ray.forgetting.metrics.evaluation.evaluate_forgetting`.

    Raises
    ------
    UsageError
        A file or folder that is missing, or a wrong option.
    TrustChainError
        A bad record, an adapter of another base, or an input that a metric refuses.
    """
    standing = read_standing(folder, progress)
    measurement = measurement_of(options, standing.config, relearn)
    files = {option: path for option, path in (("--retain", retain), ("--holdout", holdout)) if path is not None}
    forgotten = read_records(standing.config, forget, "--forget")
    given = {option: read_records(standing.config, path, option) for option, path in files.items()}
    own = read_adapter(model or standing.path)
    references = [read_adapter(path) for path in retrained]
    before = read_adapter(old) if old is not None else None
    still = _still_in_training(standing, forgotten)
    if still:
        progress(
            f"warning: {still} of {len(forgotten)} records of {forget} are training records of this run to this day; "
            "remove them first (trustchain unlearn), or read the figures as those before a removal"
        )
    _say_what_is_missing(standing, progress, references, before, relearn)
    engine = open_engine(standing.config, standing.base, [own, *references, *([before] if before else [])])

    def questions(option: str, split: str) -> list[Question]:
        if option in files:
            return questions_of_file(standing.config, files[option], given[option], engine.tokenizer)
        picked = pick(standing, split, measurement.records, forgotten)
        return questions_of_run(standing, split, picked, engine.tokenizer)

    sets = Sets(
        forget=questions_of_file(standing.config, forget, forgotten, engine.tokenizer),
        retain=questions("--retain", "train"),
        holdout=questions("--holdout", "test"),
    )
    progress(f"{len(sets.forget)} records to forget, {len(sets.retain)} retained, {len(sets.holdout)} held out")
    results = evaluate_forgetting(
        engine,
        own.state,
        [reference.state for reference in references],
        sets,
        standing.config.run.key,
        before.state if before else None,
        measurement.settings,
    )
    return {
        "run": str(standing.path),
        "adapter": _named(own),
        "references": [{**_named(each), "same": each.digest == own.digest} for each in references],
        "old_adapter": _named(before) if before else None,
        "still_in_training": still,
        "left_out": standing.left_out,
        **results,
    }


def _named(adapter: Adapter) -> dict[str, Any]:
    return {"folder": str(adapter.folder), "digest": adapter.digest}


def _still_in_training(standing: Standing, records: Sequence[Record]) -> int:
    trained = {text_of(record) for held in standing.holdings.values() for record in held.train}
    return sum(text_of(record) in trained for record in records)


def _say_what_is_missing(
    standing: Standing, progress: Progress, references: Sequence[Adapter], before: Adapter | None, relearn: bool
) -> None:
    """What the figures will not show."""
    if standing.config.model.task != "causal":
        progress("a classification says labels: ROUGE, truth ratios and memorisation are left out")
    if not references:
        progress("no retrained reference: nothing says what the figures should be; give some with --retrained")
    if relearn and before is None:
        progress("no relearn time: give the model before the removal with --old")
