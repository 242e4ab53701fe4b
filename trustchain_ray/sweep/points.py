"""The points of a grid: values of each parameter, and the configuration of each combination."""

import copy
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.canonical import sha256_hex
from trustchain_ray.config import Config, check
from trustchain_ray.config_files import read_config
from trustchain_ray.errors import UsageError

MAX_POINTS = 10_000
RANGE = {"from", "to", "count", "scale"}
FIXED = ("run.name", "run.dir", "run.keystore", "sweep.parameters", "sweep.task", "sweep.repeats", "sweep.concurrent",
         "sweep.restarts", "sweep.axis", "resources.address", "participation.learning.seed")  # fmt: skip
"""Keys that belong to the sweep as a whole."""


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes
    ----------
    number
        Position in the grid, the last parameter changing first.
    values
        Value of each parameter.
    config
        The configuration with these values.
    """

    number: int
    values: dict[str, Any]
    config: Config

    @property
    def name(self) -> str:
        """Name of the point's files: it depends on the values alone."""
        return f"{self.number:04d}-{sha256_hex(json.dumps(self.values, sort_keys=True).encode())[:12]}"


def values_of(key: str, given: Any) -> list[Any]:
    """Return the values of a parameter, from a list or a range.

    Raises
    ------
    UsageError
        Neither a list of different values nor a range that can be.
    """
    where = f"sweep.parameters: {key}"
    if isinstance(given, Mapping):
        return _range(where, given)
    if not isinstance(given, list) or not given:
        raise UsageError(f"{where}={given!r}: give a list of values, or {{from: 1, to: 8, count: 4, scale: log}}")
    for value in given:
        if given.count(value) > 1:
            raise UsageError(f"{where}: the value {value!r} stands there twice")
    return list(given)


def parameters_of(config: Config) -> dict[str, list[Any]]:
    """Return the values of every parameter by its dotted key, in the order in which they are written.

    Keys may be dotted, nested, or both: where one is spelled twice, the later one counts. A key whose values are
    null is taken out, since files and overrides are merged.
    """
    found: dict[str, list[Any]] = {}
    for key, given in _flat("", config.sweep.parameters):
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise UsageError(f"sweep.parameters: {key} belongs to the sweep as a whole and cannot be a parameter")
        if given is None:
            found.pop(key, None)
        else:
            found[key] = values_of(key, given)
    for key, other in itertools.permutations(found, 2):
        if other.startswith(f"{key}."):
            raise UsageError(f"sweep.parameters: {key} contains {other}; sweep one of them")
    if not found:
        raise UsageError("sweep.parameters is empty: name at least one key, e.g. {participation.reward: [1, 2, 4]}")
    return found


def grid(config: Config, config_file: str) -> list[Point]:
    """Return all points of a sweep.

    Parameters
    ----------
    config
        The resolved configuration.
    config_file
        The same one as a file: each value is read by the rules of configuration files.

    Raises
    ------
    UsageError
        An unknown key (with the nearest name), a value of a wrong type, or a combination that makes no sense.
    """
    parameters = parameters_of(config)
    count = math.prod(len(values) for values in parameters.values())
    if count > MAX_POINTS:
        raise UsageError(f"sweep.parameters: {count} points, at most {MAX_POINTS} are allowed; take values out")
    read: dict[str, list[Config]] = {}
    for key, values in parameters.items():
        try:
            read[key] = [read_config([config_file], [f"{key}={json.dumps(value)}"]) for value in values]
        except UsageError as error:
            raise UsageError(f"sweep.parameters: {str(error).removeprefix('override ')}") from None
    points = []
    for number, chosen in enumerate(itertools.product(*(range(len(values)) for values in parameters.values()))):
        made, values_here = copy.deepcopy(config), dict[str, Any]()
        for (key, candidates), i in zip(parameters.items(), chosen, strict=True):
            values_here[key] = _plain(read[key][i], key, candidates[i])
            _take(made, read[key][i], key.split("."))
        try:
            check(made)
        except UsageError as error:
            raise UsageError(f"sweep.parameters: the point {label(values_here)}: {error}") from None
        points.append(Point(number, values_here, made))
    return points


def label(values: Mapping[str, Any]) -> str:
    """Return a point's values in one line, by the short names of their keys."""
    names = short_names(list(values))
    return "  ".join(f"{names[key]}={_short(value)}" for key, value in values.items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last parts of dotted keys, as many as it takes to tell them apart."""
    names = {}
    for key in keys:
        parts = key.split(".")
        for size in range(1, len(parts) + 1):
            name = ".".join(parts[-size:])
            if not any(other != key and f".{other}".endswith(f".{name}") for other in keys):
                break
        names[key] = name
    return names


def is_number(value: Any) -> bool:
    """Return whether a value can stand on a numeric axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(prefix: str, parameters: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, given in parameters.items():
        if isinstance(given, Mapping) and not (given and set(given) <= RANGE):
            rows += _flat(f"{prefix}{key}.", given)
        else:
            rows.append((f"{prefix}{key}", given))
    return rows


def _range(where: str, given: Mapping[Any, Any]) -> list[Any]:
    start, end, count, scale = (given.get(part, "linear") for part in ("from", "to", "count", "scale"))
    if not (is_number(start) and is_number(end) and is_number(count) and int(count) == count and count >= 2):
        raise UsageError(f"{where}={dict(given)}: a range is {{from: number, to: number, count: at least 2}}")
    if scale not in ("linear", "log") or start == end or (scale == "log" and min(start, end) <= 0):
        raise UsageError(
            f"{where}={dict(given)}: from and to differ, scale is linear or log, and a log scale is of positive numbers"
        )
    shares = [i / (count - 1) for i in range(int(count))]
    if scale == "linear":
        values = [start + share * (end - start) for share in shares]
    else:
        values = [start * (end / start) ** share for share in shares]
    values = [float(f"{value:.12g}") for value in values]
    if isinstance(start, int) and isinstance(end, int) and all(value.is_integer() for value in values):
        return [int(value) for value in values]
    return values


def _take(made: Any, read: Any, path: Sequence[str]) -> None:
    """Set one value in a configuration from another one that was read with it; a new table entry comes whole."""
    head, rest = path[0], path[1:]
    if isinstance(made, dict):
        if rest and head in made:
            _take(made[head], read[head], rest)
        else:
            made[head] = copy.deepcopy(read[head])
    elif rest:
        _take(getattr(made, head), getattr(read, head), rest)
    else:
        setattr(made, head, copy.deepcopy(getattr(read, head)))


def _plain(read: Any, key: str, given: Any) -> Any:
    """The value as the configuration has it, `1e-3` being a number there; of a whole section, as it was given."""
    for part in key.split("."):
        read = read[part] if isinstance(read, dict) else getattr(read, part)
    return read if isinstance(read, (str, int, float, list)) else given


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
