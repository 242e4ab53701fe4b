"""Two of eight organizations are hostile: what each rule saves of the model, by attack.

    TRUSTCHAIN_DATA=... TRUSTCHAIN_MINILM=... python -m benchmarks.robustness
    python -m benchmarks.robustness --tiny

Eight organizations with the records of the sentiment federation (its source of tweets in general is cut into two), two
of which are hostile; with --tiny the records of the quickstart. Every run is a real federation, with signed updates and
a log. Accuracy is the mean over the six honest organizations' test records. `backdoor` is the share of their test
records of other classes that the model puts into the attacker's class once the trigger stands there. Finished runs are
read from the result file and not done again, unless settings changed.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.attacks import ATTACKS, TRIGGER, Attack
from benchmarks.common import parser, table, write
from benchmarks.robustness_runs import HOSTILE, Bench
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config

SCAN = ["trust.scan_every=5", "federation.keep_updates=all"]
RECOMMENDED = "norm_bound+scan+expel"
RULES = {
    "mean": [],
    RECOMMENDED: ["trust.rule=norm_bound", *SCAN, "trust.expel=1", "federation.quorum=0.5"],
    "norm_bound+scan+expel+reputation": [
        "trust.rule=norm_bound", *SCAN, "trust.expel=1", "federation.quorum=0.5",
        "trust.exclude_below=0.4", "participation.payoff=leave_one_out", "participation.settle_every=1",
    ],
    "norm_bound+scan": ["trust.rule=norm_bound", *SCAN],
    "norm_bound": ["trust.rule=norm_bound", "trust.hostile=2"],
    "trimmed_mean": ["trust.rule=trimmed_mean", "trust.hostile=2"],
    "median": ["trust.rule=median", "trust.hostile=2"],
    "multi_krum": ["trust.rule=multi_krum", "trust.hostile=2"],
    "geometric_median": ["trust.rule=geometric_median", "trust.hostile=2"],
    "trimmed_mean+mixing": ["trust.rule=trimmed_mean", "trust.hostile=2", "trust.mixing=true"],
    "median+mixing": ["trust.rule=median", "trust.hostile=2", "trust.mixing=true"],
    "multi_krum+mixing": ["trust.rule=multi_krum", "trust.hostile=2", "trust.mixing=true"],
    "geometric_median+mixing": ["trust.rule=geometric_median", "trust.hostile=2", "trust.mixing=true"],
}  # fmt: skip
HONEST, ALONE = "honest", "six alone"


def main() -> None:
    arguments = parser("robustness", __doc__)
    arguments.add_argument("--tiny", action="store_true", help="a small model, few rounds: checks the code")
    arguments.add_argument("--rules", nargs="+", choices=[*RULES], default=["mean", RECOMMENDED])
    arguments.add_argument("--settled-on", type=int, default=30, help="test records an organization that settle rounds")
    arguments.add_argument("--attacks", nargs="+", choices=[a.name for a in ATTACKS])
    arguments.add_argument("--limit", type=int, default=200, help="training records an organization")
    arguments.add_argument("--hostile", nargs=2, metavar="NAME", help="other hostile organizations")
    arguments.add_argument("--trigger", help="another trigger of the backdoor, a few words")
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args()
    name = "clinic" if options.tiny else "sentiment"
    sizes = [f"federation.rounds={options.rounds}", f"data.limit={options.limit}"]
    sizes += [f"data.test_limit={options.settled_on}", "federation.local_steps=10", "training.batch_size=4"]
    sizes += ["model.max_length=24", "model.dtype=float32"]  # texts are cut: half the work
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
    layers = ",".join(f"layer.{i}.{part}" for i in (4, 5) for part in parts)
    sizes += ["model.pooling=mean", f"model.lora.targets=[{layers}]"]  # the last layers: a third of the work
    if options.tiny:
        sizes = ["federation.rounds=6", "federation.local_steps=20", "training.sampling_rate=0.13"]
        sizes += ["data.test_limit=24"]
    left_out = [*SCAN, "trust.expel=1"] if options.tiny else []  # its answers are texts, not classes
    hostile, trigger = options.hostile or list(HOSTILE[name]), options.trigger or TRIGGER
    settings = {"records": name, "seed": 0, "settings": [*sizes, *options.overrides]}
    settings |= {"hostile": hostile, "trigger": trigger}
    done = _kept(options.out, settings)
    names = options.attacks or (["sign_flip", "backdoor"] if options.tiny else [attack.name for attack in ATTACKS])
    attacks = [attack for attack in ATTACKS if attack.name in names]
    wanted: list[tuple[str, Attack | None, str, bool]] = [(HONEST, None, rule, False) for rule in options.rules]
    wanted.append((ALONE, None, "mean", True))
    wanted += [(attack.name, attack, rule, False) for attack in attacks for rule in options.rules]
    with tempfile.TemporaryDirectory() as work:
        os.environ["TRUSTCHAIN_HOME"] = f"{work}/home"
        bench = Bench(name, Path(work), settings["settings"], tuple(hostile), trigger)
        with cluster(Config(), 2):
            for case, attack, rule, alone in wanted:
                if rule in done.get(case, {}):
                    continue
                began = time.perf_counter()
                found = bench.run(attack, [o for o in RULES[rule] if o not in left_out], alone)
                done.setdefault(case, {})[rule] = found
                print(
                    f"{case} / {rule}: accuracy {found['accuracy']:.3f}, backdoor {found['backdoor']:.3f}, "
                    f"{time.perf_counter() - began:.0f} s",
                    flush=True,
                )
                write(options.out, {**settings, "target": bench.target, "recommended": RECOMMENDED, "runs": done})
    print(accuracy_table(done))
    print(backdoor_table(done))
    print(minority_table(done))


def accuracy_table(runs: dict[str, Any]) -> str:
    """Accuracy by attack and rule, and in points what is lost against the honest run of the mean."""
    rules, best = list(runs[HONEST]), runs[HONEST]["mean"]["accuracy"]
    rows = [
        [case, *(_cell(row[rule]["accuracy"], best) if rule in row else "" for rule in rules)]
        for case, row in runs.items()
    ]
    return table(["two of eight are", *rules], rows)


def backdoor_table(runs: dict[str, Any]) -> str:
    """Records with the trigger that get the attacker's class: the clean model, and models under the backdoor."""
    rules = list(runs[HONEST])
    rows = [
        [case, *(f"{runs[case][rule]['backdoor']:.3f}" if rule in runs[case] else "" for rule in rules)]
        for case in (HONEST, "backdoor")
        if case in runs
    ]
    return table(["two of eight are", *rules], rows)


def minority(runs: dict[str, Any]) -> str:
    """The honest organization whose updates are least like the others': lowest mean cosine in the honest run."""
    cosines = runs[HONEST]["mean"]["cosines"]
    honest = runs[ALONE]["mean"]["by_organization"]
    return min(honest, key=lambda org: cosines[org])


def minority_table(runs: dict[str, Any]) -> str:
    """The honest minority's accuracy, in points against the honest run of the mean, and its mean share of the merge."""
    one, rules = minority(runs), list(runs[HONEST])
    best = runs[HONEST]["mean"]["by_organization"][one]
    rows = [
        [
            case,
            *(
                f"{_cell(row[rule]['by_organization'][one], best)}, share {row[rule]['shares'][one]:.2f}"
                if rule in row
                else ""
                for rule in rules
            ),
        ]
        for case, row in runs.items()
    ]
    return table([f"{one}, while two of eight are", *rules], rows)


def _cell(value: float, best: float) -> str:
    return f"{value:.3f} ({100 * (value - best):+.1f})"


def _kept(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs of an earlier call with the same settings."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = all(found.get(key) == value for key, value in settings.items())
    return dict(found["runs"]) if same else {}


if __name__ == "__main__":
    main()
