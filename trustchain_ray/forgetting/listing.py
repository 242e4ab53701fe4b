"""What can be removed from a run: organizations and subjects with their numbers of records."""

from collections.abc import Callable
from typing import Any

from trustchain_ray.evaluate.standing import read_standing


def listing(folder: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Organizations and subjects of a run that were not removed, with their record counts.

    Reads the sources of the organizations whose records lie on this machine; the others are left out, and said.

    Returns
    -------
    dict
        `organizations` by name (`records`, `subjects`), `subjects` by id (`records`, `organizations`).
    """
    run = read_standing(folder, progress)
    organizations: dict[str, dict[str, int]] = {}
    subjects: dict[str, dict[str, Any]] = {}
    for name, held in run.holdings.items():
        records = [*held.train, *held.test]
        organizations[name] = {"records": len(records), "subjects": len({record.subject for record in records})}
        for record in records:
            row = subjects.setdefault(record.subject, {"records": 0, "organizations": []})
            row["records"] += 1
            if name not in row["organizations"]:
                row["organizations"].append(name)
    return {"run": str(run.path), "organizations": organizations, "subjects": subjects}
