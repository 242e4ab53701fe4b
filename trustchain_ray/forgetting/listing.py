"""What can be removed from a run: organizations and subjects with their numbers of records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trustchain_ray.config_files import load_config
from trustchain_ray.custody import Custody, custody_folder
from trustchain_ray.data import load_holdings, organization_names
from trustchain_ray.forgetting.amendments import Amendments
from trustchain_ray.run_directory import RunDirectory


def listing(folder: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Organizations and subjects of a run that were not removed, with their record counts.

    Reads the sources of the organizations whose records lie on this machine; the others are left out, and said.

    Returns
    -------
    dict
        `organizations` by name (`records`, `subjects`), `subjects` by id (`records`, `organizations`).
    """
    run = RunDirectory(Path(folder))
    config = load_config([str(run.path / "config.yaml")], [])
    identifier = run.read_json("manifest.json")["run"]
    amended = Amendments.read(run)
    organizations: dict[str, dict[str, int]] = {}
    subjects: dict[str, dict[str, Any]] = {}
    for name in organization_names(config):
        if name in amended.left:
            continue
        custody = Custody(custody_folder(config, identifier), identifier, name)
        held = custody.kept(custody.held(load_holdings(config, name)))
        records = [*held.train, *held.test]
        organizations[name] = {"records": len(records), "subjects": len({record.subject for record in records})}
        for record in records:
            row = subjects.setdefault(record.subject, {"records": 0, "organizations": []})
            row["records"] += 1
            if name not in row["organizations"]:
                row["organizations"].append(name)
    return {"run": str(run.path), "organizations": organizations, "subjects": subjects}
