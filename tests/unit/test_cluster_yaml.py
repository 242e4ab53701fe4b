"""cluster.yaml passes Ray's own schema and checks, offline, and fits the quickstart's organizations."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ray = pytest.importorskip("ray")


def test_cluster_yaml_is_valid_and_pins_the_organizations() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)

    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    pinned = {name for node in cluster["available_node_types"].values() for name in node["resources"]}
    rows = (ROOT / "configs" / "clinic" / "train.jsonl").read_text().splitlines()
    assert pinned == {f"org_{json.loads(row)['organization']}" for row in rows}
