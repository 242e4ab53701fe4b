"""The manifest: what everybody agreed on before round 1. A replay is a function of it, records and key."""

import functools
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, sha256_hex
from trustchain_ray import __version__
from trustchain_ray.adapter import Tensors, digest
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import derive
from trustchain_ray.merge import FRACTION_BITS
from trustchain_ray.robust.settings import MEAN
from trustchain_ray.sampling import sampling_rate

PROGRAM = (
    "adapter", "canaries", "cohorts", "data", "initial", "keys", "merge", "models", "rates", "rows", "sampling",
    "sources", "worker", "engines/*", "forms/*", "robust/geometry", "robust/merging", "robust/rules",
)  # fmt: skip
"""Modules on which the bits of a trained adapter depend."""


@functools.cache
def program_digest() -> str:
    """SHA-256 over the sources of the training program: a replay by another one may give other bits."""
    folder = Path(__file__).parent
    files = sorted(path for name in PROGRAM for path in folder.glob(f"{name}.py"))
    return sha256_hex(canonical_json({str(p.relative_to(folder)): sha256_hex(p.read_bytes()) for p in files}))


def build_manifest(
    config: Config,
    run: str,
    config_digest: str,
    cohorts: dict[str, list[str]],
    registrations: dict[str, dict[str, Any]],
    frozen: Tensors,
    initial: Tensors,
    participation: dict[str, str],
    consortium: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest of a run, ready for canonical JSON (numbers that are not integers stand as strings).

    Raises
    ------
    TrustChainError
        The organizations' workers differ in base model or adapter shapes. (They may differ in hardware class:
        `environments` says which each has.)
    """
    first = next(iter(registrations.values()))["worker"]
    for name, registration in registrations.items():
        worker = registration["worker"]
        for part, what in (("base", "base model"), ("shapes", "adapter shapes")):
            if worker[part] != first[part]:
                raise TrustChainError(f"organization {name!r} has another {what} than the first one: {worker[part]}")
    federation, training, lora = config.federation, config.training, config.model.lora
    trust = config.trust
    rule = {"name": trust.rule, "hostile": trust.hostile, "mixing": trust.mixing} if trust.rule != MEAN else {}
    promised = {name: r["privacy"] for name, r in registrations.items() if r.get("privacy")}
    return {
        **({"privacy": promised} if promised else {}),
        **({"audit": {"canaries": config.privacy.canaries}} if config.privacy.canaries else {}),
        **({"rule": rule} if rule else {}),
        **({"across": {"name": trust.across, "hostile": trust.hostile}} if trust.across != MEAN else {}),
        **({"consortium": consortium} if consortium else {}),
        **({"secure_aggregation": True} if config.trust.secure_aggregation else {}),
        "version": __version__,
        "run": run,
        "organizations": sorted(registrations),
        "cohorts": cohorts,
        "records": {name: r["records"] for name, r in registrations.items()},
        "sampling_rates": {
            name: {c: repr(sampling_rate(training, n)) for c, n in r["records"].items()}
            for name, r in registrations.items()
        },
        "base": first["base"],
        "frozen": digest(frozen),
        "initial": {cohort: digest(initial) for cohort in cohorts},
        "form": lora.form,
        "rank": lora.rank,
        "alpha": repr(lora.alpha),
        "batch_size": training.batch_size,
        "rounds": federation.rounds,
        "local_steps": federation.local_steps,
        "server_step": repr(federation.server_step),
        "merge_scale": repr(federation.merge_scale),
        "fraction_bits": FRACTION_BITS,
        "keep_rounds": federation.keep_rounds,
        "participation": participation,
        "config": config_digest,
        "key": sha256_hex(derive(config.run.key, "commitment")),
        "program": program_digest(),
        "environments": {name: r["worker"]["environment"] for name, r in registrations.items()},
    }


AMENDED = {
    "cohorts", "environments", "initial", "organizations", "participation", "program", "records", "sampling_rates",
    "version",
}  # fmt: skip
"""What may differ once records were removed; the manifest itself stays as it was agreed on."""


def check_same(old: dict[str, Any], new: dict[str, Any], where: str, amended: bool = False) -> None:
    """Refuse to resume a run whose records, base, configuration or hardware class changed.

    Parameters
    ----------
    amended : records were removed: what removals change is compared elsewhere, and another hardware class or version
        only weakens what a certificate claims.

    Raises
    ------
    TrustChainError
        Naming each part that differs.
    """
    compared = (set(old) | set(new)) - (AMENDED if amended else set())
    if amended and "privacy" in old:  # who is left promises what it promised
        old = {**old, "privacy": {n: old["privacy"].get(n) for n in new.get("privacy", {})}}
    parts = [part for part in sorted(compared) if old.get(part) != new.get(part)]
    if parts:
        shown = "; ".join(f"{part}: {_short(old.get(part))} -> {_short(new.get(part))}" for part in parts)
        raise TrustChainError(f"{where} cannot be resumed, this is not the same run any more: {shown}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
