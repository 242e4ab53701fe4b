"""The manifest: canonical, the same for the same run, and strict at a resume."""

from collections.abc import Callable
from typing import Any

import pytest

from ledger.canonical import canonical_json, parse_canonical
from trustchain_ray.adapter import Tensors, digest
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.manifest import build_manifest, check_same


@pytest.fixture
def arguments(config_of: Callable[..., Config], adapter_of: Callable[..., Tensors]) -> dict[str, Any]:
    def registration(records: int) -> dict[str, Any]:
        worker = {"base": "b" * 64, "shapes": {"x": (2, 3)}, "environment": "cpu"}
        return {"records": {"all": records}, "worker": worker}

    return {
        "config": config_of("a.jsonl"),
        "run": "run-1",
        "config_digest": "c" * 64,
        "cohorts": {"all": ["north", "south"]},
        "registrations": {"south": registration(64), "north": registration(10)},
        "frozen": adapter_of(0),
        "initial": adapter_of(1),
        "participation": {"kind": "always"},
    }


def test_it_is_canonical_and_says_what_members_need(arguments: dict[str, Any]):
    manifest = build_manifest(**arguments)
    assert parse_canonical(canonical_json(manifest)) == manifest
    assert manifest["organizations"] == ["north", "south"]
    assert manifest["sampling_rates"] == {"south": {"all": "0.25"}, "north": {"all": "1.0"}}
    assert manifest["frozen"] == digest(arguments["frozen"])
    assert manifest["initial"] == {"all": digest(arguments["initial"])}
    assert float(manifest["alpha"]) == 16.0
    assert "trustchain" not in manifest["key"], "the key itself is a secret"
    check_same(manifest, build_manifest(**arguments), "run")


@pytest.mark.parametrize(("part", "value"), [("base", "d" * 64), ("shapes", {"x": (2, 4)})])
def test_organizations_must_agree(arguments: dict[str, Any], part: str, value: Any):
    arguments["registrations"]["north"]["worker"][part] = value
    with pytest.raises(TrustChainError, match="organization 'north' has another"):
        build_manifest(**arguments)


def test_a_resume_names_each_part_that_changed(arguments: dict[str, Any]):
    old = parse_canonical(canonical_json(build_manifest(**arguments)))  # as it was read from the file
    arguments["registrations"]["north"]["records"]["all"] = 11
    arguments["config"].run.key = "another"
    arguments["config"].federation.server_step = 0.5
    with pytest.raises(TrustChainError, match="runs/a cannot be resumed") as caught:
        check_same(old, build_manifest(**arguments), "runs/a")
    text = str(caught.value)
    assert "server_step: 1.0 -> 0.5" in text
    changed = [part.split(":")[0].split()[-1] for part in text.split("any more: ")[1].split("; ")]
    assert changed == ["key", "records", "server_step"]
