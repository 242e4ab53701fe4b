"""Measure the participation game: steps a second, and how close tabular Q-learning comes to equilibrium.

`python -m benchmarks.participation`, from the top of the repository, writes
`benchmarks/results/participation.json` and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from envs import BatchedParticipation, ClosedFormSurface, GameConfig, OrganizationType, Payoff, parallel_env
from envs.arrays import Floats
from envs.best_response import constant_policy, policies_nash_conv
from envs.dynamics import Dynamics
from envs.oracles import potential_defect, potential_weights, price_of_anarchy, pure_equilibria
from envs.q_learning import TabularPolicies, q_learning
from envs.shapley import exact_shapley, gtg_shapley
from envs.stage_game import stage_game

RESULT = Path(__file__).parent / "results" / "participation.json"
SEED = 0
SECONDS = 2.0


def federation(payoff: Payoff, organizations: int, seed: int, horizon: int = 5) -> GameConfig:
    """Return a random heterogeneous federation whose reward is the organizations' total value."""
    random = np.random.default_rng(seed)
    parties = tuple(
        OrganizationType(
            name=f"organization_{i}",
            records=int(random.integers(200, 2000)),
            data_quality=float(random.uniform(0.3, 1.0)),
            unit_cost=float(random.uniform(2e-5, 3e-4)),
            value=float(random.uniform(0.2, 1.0)),
        )
        for i in range(organizations)
    )
    value = sum(party.value for party in parties)
    return GameConfig(parties, ClosedFormSurface(0.9, 1 / 1500), payoff, reward=value, horizon=horizon)


def rate(step: Callable[[int], None], agent_steps: int) -> float:
    """Return agent-steps a second of `step`, which plays `agent_steps` of them: best of three."""
    best = 0.0
    for _ in range(3):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS / 3:
            step(calls)
            calls += 1
        best = max(best, calls * agent_steps / (time.perf_counter() - start))
    return best


def speed(games: int = 4096) -> dict[str, float]:
    """Return agent-steps a second of the PettingZoo form and of the batched form, N = 4."""
    game = federation(Payoff.SHAPLEY, 4, SEED, horizon=50)
    random = np.random.default_rng(SEED)
    batch, single = BatchedParticipation(game, games), parallel_env(game)
    joint = random.integers(game.action_count, size=(8, games, 4))
    asked = [dict(zip(game.names, row.tolist(), strict=True)) for row in joint[:, 0]]

    def episode_batched(_: int) -> None:
        batch.reset()
        for t in range(game.horizon):
            batch.step(joint[t % 8])

    def episode_single(_: int) -> None:
        single.reset()
        for t in range(game.horizon):
            single.step(asked[t % 8])

    return {
        "single": rate(episode_single, 4 * game.horizon),
        "batched": rate(episode_batched, 4 * game.horizon * games),
        "batched_games": games,
    }


def learning(payoff: Payoff, organizations: int, federations: int, runs: int) -> dict[str, Any]:
    """Return NashConv over the payoff range, over random federations and runs, beside fixed policies."""
    learned: list[list[float]] = []
    always, guessing, prices, equilibria, defects = [], [], [], [], []
    start = time.perf_counter()
    for number in range(federations):
        game = federation(payoff, organizations, SEED + number)
        dynamics = Dynamics(stage_game(game))
        tables = q_learning(game, seed=SEED + number, runs=runs)
        learned.append([policies_nash_conv(dynamics, table.policies()).relative for table in tables])
        full = [constant_policy(game.action_count - 1)] * organizations
        always.append(policies_nash_conv(dynamics, full).relative)
        random_table = np.random.default_rng(SEED + number).random(tables[0].q.shape)
        guessing.append(policies_nash_conv(dynamics, TabularPolicies(game, random_table).policies()).relative)
        prices.append(price_of_anarchy(dynamics.stage))
        equilibria.append(len(pure_equilibria(dynamics.stage)))
        defects.append(potential_defect(dynamics.stage, potential_weights(dynamics.stage)))
    return {
        "payoff": payoff.value,
        "organizations": organizations,
        "federations": federations,
        "runs_each": runs,
        "potential_defect_max": max(defects),
        "pure_equilibria": equilibria,
        "price_of_anarchy_median": float(np.median(prices)),
        "nash_conv_median": float(np.median(learned)),
        "nash_conv_p90": float(np.quantile(learned, 0.9)),
        "nash_conv_worst_federation_median": float(np.median(learned, axis=1).max()),
        "nash_conv_always_median": float(np.median(always)),
        "nash_conv_random_median": float(np.median(guessing)),
        "seconds": time.perf_counter() - start,
    }


def sampling(convergence: float, organizations: int = 10, games: int = 30) -> dict[str, Any]:
    """Return the largest error of GTG-Shapley over the largest exact value, over random saturating games."""
    errors, evaluations = [], []
    for number in range(games):
        weights = np.random.default_rng(SEED + number).uniform(0.0, 0.5, organizations)

        def value(coalition: frozenset[int], weights: Floats = weights) -> float:
            return -math.expm1(-sum(weights[i] for i in coalition))

        exact = exact_shapley(value, organizations).values
        sampled = gtg_shapley(value, organizations, SEED + number, convergence=convergence)
        errors.append(float(np.abs(sampled.values - exact).max() / exact.max()))
        evaluations.append(sampled.evaluations)
    return {
        "organizations": organizations,
        "games": games,
        "convergence": convergence,
        "error_median": float(np.median(errors)),
        "error_max": max(errors),
        "evaluations_median": float(np.median(evaluations)),
        "evaluations_exact": 2**organizations,
    }


def machine() -> dict[str, Any]:
    """Return the machine class: CPU model, cores, Python and NumPy versions."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    """Run everything, write the result, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--federations", type=int, default=5, help="random federations a rule, N = 4")
    parser.add_argument("--runs", type=int, default=10, help="learning runs a federation, N = 4")
    arguments = parser.parse_args()
    steps = speed()
    print(f"agent-steps/s   single {steps['single']:,.0f}   batched {steps['batched']:,.0f}", flush=True)
    print(f"\n{'rule':<20}{'N':>3}{'defect':>10}{'PoA':>7}{'tabular':>9}{'p90':>7}{'always':>8}{'random':>8}")
    rows = []
    for organizations, federations, runs in ((4, arguments.federations, arguments.runs), (8, 2, 5)):
        for payoff in Payoff:
            row = learning(payoff, organizations, federations, runs)
            rows.append(row)
            print(
                f"{payoff.value:<20}{organizations:>3}{row['potential_defect_max']:>10.1e}"
                f"{row['price_of_anarchy_median']:>7.2f}{abs(row['nash_conv_median']):>9.2%}"
                f"{abs(row['nash_conv_p90']):>7.1%}{abs(row['nash_conv_always_median']):>8.1%}"
                f"{row['nash_conv_random_median']:>8.1%}",
                flush=True,
            )
    samples = [sampling(convergence) for convergence in (0.05, 0.005)]
    for sample in samples:
        print(
            f"GTG-Shapley, 10 organizations, convergence {sample['convergence']:g}: error median "
            f"{sample['error_median']:.1%}, max {sample['error_max']:.1%} of the largest value, "
            f"{sample['evaluations_median']:.0f} of {sample['evaluations_exact']} evaluations"
        )
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "machine": machine(),
        "agent_steps_per_second": steps,
        "learning": rows,
        "gtg_shapley": samples,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print("\nNashConv columns are over the payoff range; 0 % is an equilibrium.")


if __name__ == "__main__":
    main()
