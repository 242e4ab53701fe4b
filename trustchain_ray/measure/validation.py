"""The records that a coalition's model is valued on, in fixed blocks from which standard errors are estimated."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple

from trustchain_ray.config import Config
from trustchain_ray.data import Record, load_holdings, load_public
from trustchain_ray.errors import UsageError
from trustchain_ray.keys import derive

BLOCKS = 20  # of the jackknife over records
SOURCES = ("auto", "validation", "public", "tests")


def choose_source(config: Config, asked: str) -> str:
    """Which records value a model: `validation`, `public` or `tests`.

    `auto` takes `data.validation`, else `data.public` unless the base was trained on it, else the organizations' test
    records, pooled.

    Raises
    ------
    UsageError
        The records asked for are not configured, or there are none at all.
    """
    data = config.data
    warmed_up = config.model.base == "made" and config.model.made.warmup_steps > 0
    if asked == "auto":
        asked = "validation" if data.validation else "public" if data.public and not warmed_up else "tests"
    named = {"validation": data.validation, "public": data.public}
    if asked in named and not named[asked]:
        raise UsageError(f"--validation {asked}: data.{asked} is empty; name a file of public records")
    has_tests = data.test_share > 0 or data.test or any(source.test for source in data.organizations.values())
    if asked == "tests" and not has_tests:
        raise UsageError(
            "measure: no validation records: set data.validation (public records), or give the organizations test "
            "records (data.test, data.test_share)"
        )
    return asked


def validation_blocks(config: Config, source: str, names: Sequence[str]) -> list[list[Record]]:
    """Validation records in up to 20 blocks, each record's place drawn by the run's key and its id.

    Raises
    ------
    UsageError
        Fewer than two records: there is no standard error.
    """
    if source == "tests":
        named = [(f"{name}/{record.id}", record) for name in names for record in load_holdings(config, name).test]
    else:
        file = config.data.validation if source == "validation" else config.data.public
        named = [(record.id, record) for record in load_public(config, file)]
    if len(named) < 2:
        raise UsageError(f"measure: {len(named)} validation record(s) in {source}; a standard error needs at least two")
    key = derive(config.run.key, "measure", "blocks")
    ordered = [record for _, record in sorted(named, key=lambda pair: derive(key, pair[0]))]
    count = min(BLOCKS, len(ordered))
    return [ordered[block::count] for block in range(count)]


def data_digest(key: str, parts: Iterable[tuple[str, Sequence[Record]]]) -> str:
    """HMAC-SHA256 over named lists of records: a plain hash would let others guess records."""
    mac = hmac.new(derive(key, "measure", "data"), digestmod=hashlib.sha256)
    for name, records in parts:
        mac.update(json.dumps([name, [astuple(record) for record in records]]).encode())
    return mac.hexdigest()
