"""Reading a configuration: YAML files merged left to right, dotted overrides last."""

import difflib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trustchain_ray.config import Config, check, describe
from trustchain_ray.errors import UsageError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2 in what surprises people: `no`, `2026-01-01` and the address `0x12...` are texts, a key stands there
    once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return dict(super().construct_mapping(node, deep))


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if not pair[0].endswith((":bool", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile("^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)


def load_config(files: list[str], overrides: list[str]) -> Config:
    """Read, merge and check a configuration.

    Parameters
    ----------
    files : YAML files, merged in order. Relative paths inside a file are resolved against its folder.
    overrides : `key.path=value`, applied last; relative paths are resolved against the working folder.

    Raises
    ------
    UsageError
        Unknown key (with the nearest name), wrong type, impossible value, unreadable file.
    """
    config = read_config(files, overrides)
    check(config)
    return config


def read_config(files: list[str], overrides: list[str]) -> Config:
    """Read and merge a configuration like :func:`load_config`, without the checks of values."""
    merged = OmegaConf.structured(Config)
    layers = [(name, _read_yaml(name), Path(name).resolve().parent) for name in files]
    layers += [(f"override {text}", _read_override(text), Path.cwd()) for text in overrides]
    for where, values, folder in layers:
        _check_keys(values, Config, "", where)
        try:
            resolved = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
            resolved = _resolve_paths(resolved, Config, folder)
            _resolve_parameters(resolved, folder)
            merged = OmegaConf.merge(merged, resolved)
        except OmegaConfBaseException as error:
            key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
            raise UsageError(f"{where}: {key}{str(error).splitlines()[0]}") from None
        except TypeError as error:  # a table where a list stands, or the other way round
            raise UsageError(f"{where}: {error}") from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a resolved text looks like `${...}` or `???`
        raise UsageError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, Config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_yaml(name: str) -> dict[str, Any]:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not valid UTF-8: {error}") from None
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{name}: a configuration is a mapping of keys, found {type(values).__name__}")
    return values


def _read_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"override {text!r}: write it as key.path=value")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise UsageError(f"override {text!r}: the value is not valid YAML") from None
    values: Any = parsed
    for part in reversed(key.split(".")):
        values = {part: values}
    return dict(values)


def _check_keys(values: Any, schema: type, prefix: str, where: str) -> None:
    known = {item.name: item for item in fields(schema)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {prefix}{key}; {_nearest(prefix, str(key), list(known))}")
        nested, entries = known[key].default_factory, known[key].metadata["entries"]
        if is_dataclass(nested):
            if not isinstance(value, dict):
                raise UsageError(f"{where}: {prefix}{key} is a section of keys, not {value!r}")
            _check_keys(value, nested, f"{prefix}{key}.", where)
        if entries and isinstance(value, dict):
            for name, entry in value.items():
                if not isinstance(entry, dict):
                    raise UsageError(f"{where}: {prefix}{key}.{name} is a section of keys, not {entry!r}")
                _check_keys(entry, entries, f"{prefix}{key}.{name}.", where)


def _nearest(prefix: str, key: str, siblings: list[str]) -> str:
    paths = [prefix + name for name in siblings] + [path for path, _, _ in describe()]
    names = difflib.get_close_matches(prefix + key, paths, n=1, cutoff=0.0)
    last = [path for path in paths if path.rsplit(".", 1)[-1] == key]
    return f"did you mean {(last or names)[0]}?"


def _resolve_paths(values: Any, schema: type, folder: Path) -> Any:
    """Make relative paths absolute where the file stands beside the YAML file."""
    if not isinstance(values, dict):
        return values
    known = {item.name: item for item in fields(schema)}
    out: dict[str, Any] = {}
    for key, value in values.items():
        item = known.get(key)
        if item is not None and is_dataclass(item.default_factory) and isinstance(value, dict):
            value = _resolve_paths(value, item.default_factory, folder)
        elif item is not None and item.metadata["entries"] and isinstance(value, dict):
            value = {name: _resolve_paths(v, item.metadata["entries"], folder) for name, v in value.items()}
        elif item is not None and item.metadata.get("path") and isinstance(value, str):
            value = _absolute(value, folder)
        out[key] = value
    return out


def _resolve_parameters(values: dict[str, Any], folder: Path) -> None:
    """Make the relative paths among the values of a sweep's dotted parameters absolute, in place."""
    parameters = values.get("sweep", {}).get("parameters")
    for key, given in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(given, list):
            parameters[key] = [_resolve_one(str(key).split("."), value, folder) for value in given]


def _resolve_one(path: list[str], value: Any, folder: Path) -> Any:
    values = value
    for part in reversed(path):
        values = {part: values}
    values = _resolve_paths(values, Config, folder)
    for part in path:
        values = values[part]
    return values


def _absolute(value: str, folder: Path) -> str:
    if value.startswith("hf:"):
        path, colon, split = value[3:].rpartition(":")
        name, rest = (path, colon + split) if colon else (split, "")
        return f"hf:{_absolute(name, folder)}{rest}"
    if not value or value == "made" or Path(value).is_absolute():
        return value
    beside = folder / value
    return str(beside) if beside.exists() else value
