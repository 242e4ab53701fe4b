import json
from typing import Any

import pytest

from ledger import events as ev
from ledger.canonical import sha256_hex
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.identity import COORDINATOR
from ledger.lineage import lineage_text, to_dict, to_text
from ledger.provenance import Graph, Source, affected, closure, from_events, shard_name

ORGANIZATIONS, COHORTS = ("bank", "clinic"), ("shard_0", "shard_1")
MANIFEST = {
    "cohorts": {cohort: list(ORGANIZATIONS) for cohort in COHORTS},
    "initial": {cohort: sha256_hex(b"initial") for cohort in COHORTS},
    "frozen": sha256_hex(b"frozen"),
}


def digest(*parts: object) -> str:
    return sha256_hex(" ".join(map(str, parts)).encode())


class Story:
    """Events of a run with two cohorts, written as they would be logged."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.adapter = {cohort: {0: MANIFEST["initial"][cohort]} for cohort in COHORTS}
        for who in ORGANIZATIONS:
            for cohort in COHORTS:
                self.shard(who, cohort, "old")

    def say(self, who: str, kind: str, **body: Any) -> None:
        self.events.append(Event(kind, who, "run", body, f"key {len(self.events)}", 0, "", b""))

    def shard(self, who: str, cohort: str, version: str, split: str = "train") -> None:
        root = digest("root", who, cohort, version)
        self.say(who, "SHARD_MANIFEST", cohort=cohort, split=split, root=root, records=1, generation=0)

    def cohort_round(self, round_: int, cohort: str, attempt: str = "") -> None:
        base = self.adapter[cohort][round_ - 1]
        inputs = []
        for who in ORGANIZATIONS:
            update = digest("update", who, cohort, round_, attempt)
            self.say(who, ev.UPDATE, round=round_, cohort=cohort, base=base, update=update, weight=1, steps=1)
            inputs.append({"organization": who, "update": update, "weight": 1})
        self.adapter[cohort][round_] = digest("adapter", cohort, round_, attempt)
        self.say(COORDINATOR, ev.MERGE, round=round_, cohort=cohort, base=base, inputs=inputs,
                 adapter=self.adapter[cohort][round_], file="f")  # fmt: skip

    def round(self, round_: int, attempt: str = "") -> None:
        for cohort in COHORTS:
            self.cohort_round(round_, cohort, attempt)
        self.checkpoint(round_, attempt)

    def checkpoint(self, round_: int, attempt: str = "") -> None:
        self.say(COORDINATOR, ev.CHECKPOINT, round=round_, file="f", digest=digest("checkpoint", round_, attempt))

    def release(self, attempt: str = "") -> None:
        adapters = {cohort: chain[max(chain)] for cohort, chain in self.adapter.items()}
        self.say(COORDINATOR, ev.MODEL_RELEASE, model_digest=digest("model", attempt), files={}, adapters=adapters)

    @property
    def graph(self) -> Graph:
        return from_events(self.events, MANIFEST)


def named(nodes: Any) -> list[str]:
    return [f"{node.kind} {node.name}" for node in nodes]


def bank(version: str = "old", round_: int = 1, cohort: str = "shard_0") -> Source:
    return Source("bank", cohort, digest("root", "bank", cohort, version), round_)


@pytest.fixture
def story() -> Story:
    made = Story()
    for round_ in (1, 2, 3):
        made.round(round_)
    made.release()
    return made


def test_a_record_costs_its_own_cohort_and_what_holds_it(story):
    found = named(closure(story.graph, [bank()]))
    assert found == [
        "shard bank/shard_0",
        "update bank/shard_0@1", "adapter shard_0@1", "checkpoint 1",
        "update bank/shard_0@2", "update clinic/shard_0@2", "adapter shard_0@2", "checkpoint 2",
        "update bank/shard_0@3", "update clinic/shard_0@3", "adapter shard_0@3", "checkpoint 3",
        "model 1",
    ]  # fmt: skip


def test_what_was_made_before_the_first_use_stays(story):
    found = named(closure(story.graph, [bank(round_=3)]))
    assert found == ["shard bank/shard_0", "update bank/shard_0@3", "adapter shard_0@3", "checkpoint 3", "model 1"]


def test_several_shards_give_the_union(story):
    graph = story.graph
    both = {node.index for node in closure(graph, [bank(), bank(cohort="shard_1", round_=2)])}
    apart = [closure(graph, [source]) for source in (bank(), bank(cohort="shard_1", round_=2))]
    assert both == {node.index for nodes in apart for node in nodes}


def test_parents_come_first(story):
    assert all(parent < node.index for node in story.graph.nodes for parent in node.parents)


def test_a_repeated_round_leaves_only_its_newest_attempt(story):
    story.round(3, "again")
    story.release("again")
    found = {(node.kind, node.name): node.digest for node in closure(story.graph, [bank(round_=3)])}
    assert found["adapter", "shard_0@3"] == digest("adapter", "shard_0", 3, "again")
    assert found["update", "bank/shard_0@3"] == digest("update", "bank", "shard_0", 3, "again")
    assert {("model", "1"), ("model", "2")} <= set(found)  # a model that was given away stays given away


def test_the_replay_is_not_part_of_what_it_replaces_but_of_the_next_removal(story):
    until = len(story.events)
    story.say(COORDINATOR, ev.MODEL_REVOKED, model_digest=digest("model", ""))
    story.shard("bank", "shard_0", "without ann")
    story.cohort_round(2, "shard_0", "replay")
    story.cohort_round(3, "shard_0", "replay")
    story.release("replay")
    before = closure(story.graph, [bank(round_=2)], until)
    assert {node.digest for node in before} >= {digest("adapter", "shard_0", 2, ""), digest("model", "")}
    assert not {node.digest for node in before} & {digest("adapter", "shard_0", 2, "replay"), digest("model", "replay")}

    after = {(node.kind, node.name): node.digest for node in closure(story.graph, [bank("without ann")])}
    # Round 1 was trained on the older version of the shard, which held the record as well.
    assert after["adapter", "shard_0@1"] == digest("adapter", "shard_0", 1, "")
    assert after["adapter", "shard_0@3"] == digest("adapter", "shard_0", 3, "replay")
    assert ("model", "1") not in after  # revoked already
    assert after["model", "2"] == digest("model", "replay")


def test_what_replaces_the_closure_has_nothing_affected_among_its_ancestors(story):
    story.shard("bank", "shard_0", "without ann")
    story.cohort_round(2, "shard_0", "replay")
    story.cohort_round(3, "shard_0", "replay")
    story.release("replay")
    graph = story.graph
    new, used = graph.nodes[-1], {node.index for node in graph.ancestors(graph.nodes[-1:])}
    assert new.digest == digest("model", "replay")
    # The record was first read in round 2: the replay goes on from round 1. If it was read there, it is not enough.
    assert not used & {node.index for node in affected(graph, [bank(round_=2)])}
    left = [node for node in affected(graph, [bank(round_=1)]) if node.index in used]
    assert named(left) == ["update bank/shard_0@1", "adapter shard_0@1"] + [
        f"{kind} shard_0@{round_}" if kind == "adapter" else f"update {kind}/shard_0@{round_}"
        for round_ in (2, 3)
        for kind in ("bank", "clinic", "adapter")
    ]


def test_rewards_scores_and_privacy_depend_on_what_they_measure(story):
    story.shard("clinic", "", "old", split="test")
    story.say(COORDINATOR, ev.REWARD_SETTLEMENT, round=2, payments={"bank": "1.0"})
    story.say(COORDINATOR, ev.EVALUATION, round=2, scores={"accuracy": "0.5"})
    story.say("bank", ev.PRIVACY_SPEND, round=3, epsilon="1.5")
    graph = story.graph
    found = named(closure(graph, [bank()]))
    assert found[-3:] == ["reward 2", "evaluation 2", "privacy bank@3"]
    tested = closure(graph, [Source("clinic", "*test", digest("root", "clinic", "", "old"))])
    assert named(tested) == [f"shard {shard_name('clinic', '*test')}", "reward 2", "evaluation 2"]
    late = closure(graph, [bank(round_=3)])
    assert not {"reward 2", "evaluation 2"} & set(named(late))


def settle(story: Story, round_: int, attempt: str = "") -> None:
    story.say(COORDINATOR, ev.REWARD_SETTLEMENT, round=round_, payments={"bank": "1.0"}, attempt=attempt)


def withdraw(story: Story, **cohorts: int) -> int:
    story.say(COORDINATOR, ev.UNLEARN_WITHDRAWN, removal=digest("removal"), requests=[], cohorts=cohorts, models=[])
    return len(story.events) - 1


def test_what_is_made_after_a_withdrawal_has_nothing_withdrawn_among_its_ancestors():
    story = Story()
    for round_ in (1, 2):
        for cohort in COHORTS:
            story.cohort_round(round_, cohort)
        settle(story, round_)
        story.checkpoint(round_)
    until = withdraw(story, shard_0=1)
    story.shard("bank", "shard_0", "without ann")
    for round_ in (1, 2):
        story.cohort_round(round_, "shard_0", "replay")
        settle(story, round_, "replay")
        story.checkpoint(round_, "replay")
    graph = story.graph
    made = [node for node in graph.nodes if node.event > until]
    used = {node.index for node in [*made, *graph.ancestors(made)]}
    assert not used & {node.index for node in affected(graph, [bank()])}
    assert not used & graph.withdrawn.keys()
    before = closure(graph, [bank()], until)
    assert {node.name for node in before if node.kind == "reward"} == {"1", "2"}
    assert {node.index for node in before if node.kind != "shard"} <= graph.withdrawn.keys()


def test_what_was_dropped_stands_in_no_later_score_and_in_no_later_closure(story):
    until = withdraw(story, shard_0=2)
    story.say(COORDINATOR, ev.EVALUATION, round=3, scores={"accuracy": "0.5"})
    graph = story.graph
    assert named(graph.nodes[p] for p in graph.nodes[-1].parents) == ["adapter shard_1@3"]
    assert "adapter shard_0@2" in named(closure(graph, [bank()], until))
    assert named(closure(graph, [bank()])) == [
        "shard bank/shard_0", "update bank/shard_0@1", "adapter shard_0@1", "checkpoint 1", "model 1",
    ]  # fmt: skip


def test_removed_test_records_withdraw_scores_and_rewards_alone(story):
    story.shard("clinic", "", "old", split="test")
    settle(story, 2)
    story.say(COORDINATOR, ev.EVALUATION, round=3, scores={})
    source = Source("clinic", "*test", digest("root", "clinic", "", "old"))
    until = withdraw(story)
    story.shard("clinic", "", "without ann", split="test")
    story.say(COORDINATOR, ev.EVALUATION, round=3, scores={}, attempt="again")
    graph = story.graph
    found = named(closure(graph, [source], until))
    assert found == [f"shard {shard_name('clinic', '*test')}", "reward 2", "evaluation 3"]
    assert not {node.index for node in graph.ancestors(graph.nodes[-1:])} & {
        node.index for node in affected(graph, [source])
    }


def test_who_left_tests_no_later_model(story):
    for who in ORGANIZATIONS:
        story.shard(who, "", "old", split="test")
    asked = {"organization": "clinic", "scope": "organization", "method": "drop", "removed": digest("nothing")}
    story.say(COORDINATOR, ev.UNLEARN_REQUEST, request=digest("request"), **asked)
    story.say(COORDINATOR, ev.UNLEARN_WITHDRAWN, removal=digest("removal"), requests=[digest("request")],
              cohorts={"shard_0": 1}, models=[])  # fmt: skip
    story.say(COORDINATOR, ev.EVALUATION, round=3, scores={})
    graph = story.graph
    parents = named(graph.nodes[p] for p in graph.nodes[-1].parents)
    assert parents == ["adapter shard_1@3", f"shard {shard_name('bank', '*test')}"]


def test_an_evaluation_that_is_logged_before_its_round_waits_for_it():
    story = Story()
    story.round(1)
    story.say(COORDINATOR, ev.EVALUATION, round=2, scores={"accuracy": "0.5"})
    story.round(2)
    graph = story.graph
    (found,) = [node for node in graph.nodes if node.kind == "evaluation"]
    assert named(graph.nodes[p] for p in found.parents) == ["adapter shard_0@2", "adapter shard_1@2"]


def test_an_evaluation_that_names_its_adapters_is_taken_at_its_word(story):
    adapters = {cohort: story.adapter[cohort][1] for cohort in COHORTS}
    story.say(COORDINATOR, ev.EVALUATION, round=3, scores={}, adapters=adapters)
    (found,) = [node for node in story.graph.nodes if node.kind == "evaluation"]
    assert named(story.graph.nodes[p] for p in found.parents) == ["adapter shard_0@1", "adapter shard_1@1"]


@pytest.mark.parametrize("kind", ["merge", "base", "release"])
def test_an_input_that_nobody_stated_is_refused(story, kind):
    wrong, base = digest("wrong"), story.adapter["shard_0"][3]
    if kind == "merge":
        inputs = [{"organization": "bank", "update": wrong, "weight": 1}]
        story.say(COORDINATOR, ev.MERGE, round=4, cohort="shard_0", base=base, inputs=inputs, adapter=wrong, file="f")
    elif kind == "base":
        story.say("bank", ev.UPDATE, round=4, cohort="shard_0", base=wrong, update=wrong, weight=1, steps=1)
    else:
        story.say(COORDINATOR, ev.MODEL_RELEASE, model_digest=wrong, files={}, adapters={"shard_0": wrong})
    with pytest.raises(LedgerError, match=f"names (update|adapter) {wrong[:16]}"):
        _ = story.graph


def test_a_root_that_the_shard_never_had_is_refused(story):
    with pytest.raises(LedgerError, match="no shard bank/shard_0 with root"):
        closure(story.graph, [bank("never")])


def test_a_run_without_shard_manifests_still_has_a_lineage(story):
    story.events = [event for event in story.events if event.type != "SHARD_MANIFEST"]
    assert named(closure(story.graph, [Source("bank", "shard_0", "", 3)]))[-1] == "model 1"


def test_lineage_shows_both_directions(story):
    text = lineage_text(story.graph, story.adapter["shard_0"][2][:12])
    above, rest = text.split("artifact:")
    itself, below = rest.split("used by:")
    assert "update     clinic/shard_0@1" in above
    assert "shard_1" not in above
    assert itself.split()[:2] == ["adapter", "shard_0@2"]
    assert "model      1" in below
    with pytest.raises(LedgerError, match="at least 8"):
        lineage_text(story.graph, "ab")
    with pytest.raises(LedgerError, match="no artifact"):
        lineage_text(story.graph, "0" * 64)


def test_text_and_json_hold_every_artifact(story):
    story.say(COORDINATOR, ev.MODEL_REVOKED, model_digest=digest("model", ""))
    graph = story.graph
    assert len(to_text(graph).splitlines()) == len(graph.nodes)
    assert [line.split()[0] for line in to_text(graph).splitlines() if line.endswith("REVOKED")] == ["model"]
    content = json.loads(json.dumps(to_dict(graph)))
    assert [row["digest"] for row in content["nodes"]] == [node.digest for node in graph.nodes]
    assert content["nodes"][-1]["parents"] == list(graph.nodes[-1].parents)
    assert content["revoked"] == [digest("model", "")]
