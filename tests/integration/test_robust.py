"""Hostile members in a real federation: what rules take, what is refused, who is excluded, and who comes back."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from benchmarks.attacks import Attack, Board, Plan, Scene
from benchmarks.robustness_runs import BenchFederation, Pools
from ledger.events import ABSENT, AUDIT, MERGE, Event
from ledger.verify import verify_run
from trustchain_ray.adapter import Layout, digest, load_tensors
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config, to_yaml
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.plan import Ask
from trustchain_ray.forgetting.reexecute import reexecute
from trustchain_ray.forgetting.unlearn import unlearn
from trustchain_ray.forgetting.while_training import expel_planters
from trustchain_ray.robust.contributions import Contributions
from trustchain_ray.robust.reputation import EXCLUDED
from trustchain_ray.round_writer import INITIAL
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.train import resume, train

pytestmark = pytest.mark.slow

NAMES = ["ann", "ben", "cat", "dan", "eve"]
COMPLAINTS = {"cardiology": "a racing pulse", "neurology": "a numb hand", "urology": "flank pain"}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Five clinics and a tiny classifier, on a cluster for all tests of this file."""
    config = clinics(tmp_path_factory.mktemp("clinics"), NAMES)
    with cluster(config, len(NAMES)):
        yield config


def clinics(folder: Path, names: list[str]) -> Config:
    rows = []
    for number, name in enumerate(names):
        for i in range(24):
            label, complaint = list(COMPLAINTS.items())[(i + number) % 3]
            text = f"Patient {i} has {complaint}"
            rows.append({"id": f"{name}-{i}", "organization": name, "text": text, "label": label})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small.yaml").write_text(
        f"""
run: {{name: clinics, key: clinics, keystore: {folder / "keys"}}}
model:
  task: classification
  labels: [{", ".join(COMPLAINTS)}]
  max_length: 24
  made: {{hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320}}
  lora: {{rank: 2, alpha: 4, targets: [q_proj, v_proj]}}
data: {{train: train.jsonl, public: train.jsonl, test_share: 0.1}}
training: {{engine: torch, batch_size: 8, sampling_rate: 0.3, lr: 3.0e-3}}
federation: {{rounds: 3, local_steps: 2, quorum: 0.6, keep_updates: all, evaluate_every: 100}}
ledger: {{public: {{kind: none}}, witnesses: false}}
resources: {{mode: pooled, workers: 2, cpus_per_worker: 0}}
"""
    )
    return load_config([str(folder / "small.yaml")], [])


def with_rule(config: Config, **trust: Any) -> Config:
    return dataclasses.replace(config, trust=dataclasses.replace(config.trust, **trust))


def assert_contributions_make_the_state(federation: BenchFederation, number: int) -> None:
    """What all members put in, and nothing else, is what the state has moved; as read by one process and by another."""
    federation.writer.flush()
    layout = Layout.of(federation.initial)
    moved = layout.pack(federation.states["all"]) - layout.pack(federation.initial)
    for contributions in (federation.contributions, Contributions(federation.run, 1.0)):
        put = contributions.until(number, "all", layout)
        assert sorted(put) == sorted(set(NAMES) & set(federation.names))
        np.testing.assert_allclose(sum(put.values()), moved, atol=1e-5)
    assert np.abs(moved).max() > 1e-3, "it has moved"


def events_of(run: Path, kind: str) -> list[Event]:
    manifest = json.loads((run / "manifest.json").read_text())
    return [event for event in History.read(run, manifest).events if event.type == kind]


@contextlib.contextmanager
def federation_of(
    config: Config, folder: Path, attack: Attack, hostile: tuple[str, ...], honest: tuple[str, ...]
) -> Iterator[BenchFederation]:
    """A federation with hostile members, started; closed afterwards with its run written out."""
    run = RunDirectory.create(folder)
    run.write("config.yaml", to_yaml(config).encode())
    federation = BenchFederation(config, run, quiet)
    federation.pools = Pools(config)
    federation.plan = Plan(attack, hostile, honest, "urology", Board.remote())
    try:
        federation.start()
        yield federation
        federation.writer.close()
        federation.ask_ledger("flush")
    finally:
        federation.close()
        for actor in (federation.plan.board, *federation.pools.all, *filter(None, [federation.ledger])):
            ray.kill(actor)
        run.unlock()


def test_a_robust_run_verifies_and_forgets_an_organization_exactly(config: Config, tmp_path: Path):
    robust = with_rule(config, rule="trimmed_mean", hostile=1, mixing=True)
    result = train(robust, str(tmp_path / "all"), quiet)
    run = tmp_path / "all"
    assert json.loads((run / "manifest.json").read_text())["rule"] == {
        "name": "trimmed_mean", "hostile": 1, "mixing": True,
    }  # fmt: skip
    shares = [{e["organization"]: float(e["share"]) for e in m.body["inputs"]} for m in events_of(run, MERGE)]
    assert [sorted(one) for one in shares] == [NAMES] * 3
    assert all(sum(one.values()) == pytest.approx(1, abs=1e-5) for one in shares)
    assert all(len(set(one.values())) > 1 for one in shares), "a rule that takes all alike is the mean"
    report = verify_run(run)
    assert report.ok, report.failure
    again = reexecute(report, str(run), "merges", None, quiet)["reexecution"]
    assert (again["merges"], again["same"]) == (3, True)

    removed = unlearn(str(run), [Ask("organization", organization="eve")], "replay", quiet, evaluate=False)
    never = dataclasses.replace(robust, data=dataclasses.replace(robust.data, exclude=["eve/*"]))
    assert removed["guarantee"] == "EXACT_BITWISE"
    assert removed["new_model_digest"] == train(never, str(tmp_path / "four"), quiet)["model_digest"]
    assert removed["new_model_digest"] != result["model_digest"]
    report = verify_run(run)
    assert report.ok, report.failure
    assert reexecute(report, str(run), "merges", None, quiet)["reexecution"]["same"] is True


@pytest.mark.long
def test_a_liar_is_excluded_and_comes_back_only_if_its_updates_are_confirmed(config: Config, tmp_path: Path):
    def lies(scene: Scene) -> np.ndarray:
        """Honest in the first round; then one hostile member sends nonsense, the other turns the sign."""
        if not scene.moved.any():
            return scene.own
        return scene.own * np.nan if scene.name == "ben" else -scene.own

    suspicious = with_rule(config, exclude_below=0.3)
    suspicious = dataclasses.replace(suspicious, federation=dataclasses.replace(config.federation, rounds=5))
    attack, run = Attack("lies", "for this test", update=lies), tmp_path / "run"
    with federation_of(suspicious, run, attack, ("ben", "eve"), ("ann", "cat", "dan")) as federation:
        seen = [federation.train_round(number)[0]["reputation"] for number in (1, 2, 3)]
    assert [row["ben"] < 0.3 for row in seen] == [False, True, True]
    assert seen[2]["ben"] == seen[1]["ben"], "time alone brings nobody back"
    assert seen[2]["eve"] == seen[2]["ann"] > 0.5, "a sound update speaks for itself, until somebody looks"
    merged = [[e["organization"] for e in m.body["inputs"]] for m in events_of(run, MERGE)]
    assert merged == [NAMES, *[[n for n in NAMES if n != "ben"]] * 2]

    report = verify_run(run)
    assert report.ok, report.failure
    said = reexecute(report, str(run), "all", "ann", quiet)["reexecution"]
    assert not report.ok, "the turned sign is found"
    assert (said["same"], said["first_difference"]["organization"]) == (False, "eve")
    assert said["audited"] == {"ben": "same", "cat": "same", "dan": "same", "eve": "eve, cohort all, round 2"}
    audits = {e.body["organization"]: e for e in events_of(run, AUDIT)}
    assert {e.organization for e in audits.values()} == {"ann"}
    assert (audits["ben"].body["result"], audits["ben"].body["round"]) == ("same", 3)

    resume(str(run), quiet)
    merged = [[e["organization"] for e in m.body["inputs"]] for m in events_of(run, MERGE)]
    assert merged[3:] == [[n for n in NAMES if n != "eve"]] * 2
    out = [(e.body["round"], e.body["organization"]) for e in events_of(run, ABSENT)
           if e.body["reason"].startswith(EXCLUDED)]  # fmt: skip
    assert out == [(3, "ben"), (4, "eve"), (5, "eve")]
    report = verify_run(run)
    assert report.ok, report.failure


def test_a_scanned_run_verifies_and_accuses_nobody_who_is_honest(config: Config, tmp_path: Path):
    train(with_rule(config, scan_every=2), str(tmp_path / "run"), quiet)
    assert [event.body["reason"] for event in events_of(tmp_path / "run", "REFUSED")] == []
    report = verify_run(tmp_path / "run")
    assert report.ok, report.failure


def test_between_scans_the_verdict_of_the_last_one_holds(config: Config, tmp_path: Path):
    careful = with_rule(config, scan_every=2)
    careful = dataclasses.replace(careful, federation=dataclasses.replace(config.federation, rounds=5))
    run = tmp_path / "run"
    attack = Attack("accusers", "for this test", accuses=lambda number: ["eve"] if number == 2 else [])
    with federation_of(careful, run, attack, ("ann", "ben", "cat", "dan"), ("eve",)) as federation:
        for number in range(1, 6):
            federation.train_round(number)
        assert_contributions_make_the_state(federation, 5)
    refused = [(e.body["round"], e.body["reason"]) for e in events_of(run, "REFUSED")]
    assert [number for number, _ in refused] == [2, 3], "the scan of round 4 finds nothing"
    assert refused[1][1] == "as the scan of round 2 found, it plants a trigger"


def test_who_is_caught_twice_is_expelled_and_the_model_is_the_one_without_it(config: Config, tmp_path: Path):
    """Scanners name `eve` in the second and third round; what it sent in the first leaves the model, too."""
    careful = with_rule(config, scan_every=1, expel=2)
    careful = dataclasses.replace(careful, federation=dataclasses.replace(config.federation, rounds=4))
    run, said = tmp_path / "run", list[str]()
    attack = Attack("accusers", "for this test", accuses=lambda number: ["eve"] if number > 1 else [])
    with federation_of(careful, run, attack, ("ann", "ben", "cat", "dan"), ("eve",)) as federation:
        for number in range(1, 5):
            federation.train_round(number)
            assert expel_planters(federation, said.append) == (1 if number == 3 else 0)
        assert_contributions_make_the_state(federation, 4)
    assert federation.names == NAMES[:4]
    assert said[0] == "expelled for planting triggers: eve; what they ever sent is removed"
    assert any("EXACT_BITWISE" in line for line in said)
    refused = [(e.body["round"], e.body["organization"]) for e in events_of(run, "REFUSED")]
    assert refused == [(2, "eve"), (3, "eve")]
    report = verify_run(run)
    assert report.ok, report.failure
    never = dataclasses.replace(careful, data=dataclasses.replace(config.data, exclude=["eve/*"]))
    train(never, str(tmp_path / "four"), quiet)
    last = Path("rounds") / "0004" / "all.safetensors"
    assert digest(load_tensors(run / last)) == digest(load_tensors(tmp_path / "four" / last))


@pytest.mark.long
def test_who_refuses_to_leave_stays_refused_until_the_run_is_resumed_and_it_answers(config: Config, tmp_path: Path):
    careful = with_rule(config, scan_every=2, expel=1)
    run, said = tmp_path / "run", list[str]()
    attack = Attack("stays", "for this test", accuses=lambda number: ["eve"] if number > 1 else [], stays=True)
    with federation_of(careful, run, attack, tuple(NAMES), ()) as federation:
        for number in range(1, 4):
            federation.train_round(number)
            assert expel_planters(federation, said.append) == 0
    assert federation.names == NAMES, "training goes on with it"
    assert [line for line in said if "not removed" in line] == [
        "  not removed: organization 'eve': it does not want to leave"
    ], "tried once, not after every round"
    assert [e.body["round"] for e in events_of(run, "REFUSED")] == [2, 3]

    resume(str(run), said.append)  # no round is left, as after a kill before the last one's expelling
    assert any("EXACT_BITWISE" in line for line in said)
    report = verify_run(run)
    assert report.ok, report.failure
    never = dataclasses.replace(careful, data=dataclasses.replace(config.data, exclude=["eve/*"]))
    train(never, str(tmp_path / "four"), quiet)
    last = Path("rounds") / "0003" / "all.safetensors"
    assert digest(load_tensors(run / last)) == digest(load_tensors(tmp_path / "four" / last))


def test_groups_with_secure_sums_are_merged_by_a_rule_between_them(config: Config, tmp_path: Path):
    """Nobody sees a single update, and no single group decides; a removal trains again the groups that it is about."""
    names = [f"{group}{i}" for group in "abc" for i in range(3)]
    groups = {group: [n for n in names if n[0] == group] for group in "abc"}
    secure = with_rule(clinics(tmp_path, names), across="median", hostile=1, secure_aggregation=True)
    apart = dataclasses.replace(secure.federation, cohorts="groups", groups=groups, rounds=2, keep_updates="none")
    secure = dataclasses.replace(secure, federation=apart)
    result, run = train(secure, str(tmp_path / "run"), quiet), tmp_path / "run"
    assert json.loads((run / "manifest.json").read_text())["across"] == {"name": "median", "hostile": 1}
    assert {m.body["cohort"]: len(m.body["inputs"]) for m in events_of(run, MERGE)} == dict.fromkeys(groups, 3)
    assert_the_model_is_the_median_of_groups(run)
    removed = unlearn(str(run), [Ask("record", ("b1-3",))], "replay", quiet, evaluate=False)
    assert removed["guarantee"] == "EXACT_BITWISE"
    assert removed["new_model_digest"] != result["model_digest"]
    assert set(removed["cohorts"]) == {"a", "b"}, "a1 trained on the same words, c1 keeps them for tests"
    assert_the_model_is_the_median_of_groups(run)
    report = verify_run(run)
    assert report.ok, report.failure


def assert_the_model_is_the_median_of_groups(run: Path) -> None:
    states = [load_tensors(run / "rounds" / "0002" / f"{group}.safetensors") for group in "abc"]
    model = load_tensors(run / "model" / "adapter_model.safetensors")
    begin = load_tensors(run / INITIAL)
    for name, first in begin.items():
        expected = first + np.median([state[name] - first for state in states], 0)
        [published] = [value for key, value in model.items() if key.endswith(name.split("base_model.model.")[-1])]
        np.testing.assert_allclose(published, expected, atol=1e-6)
    assert any(np.abs(state[name] - begin[name]).max() > 1e-4 for state in states for name in begin)
