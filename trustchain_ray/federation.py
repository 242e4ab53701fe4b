"""The coordinator: one controller that runs the rounds of a federation. It never sees a record."""

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ledger.canonical import sha256_hex
from trustchain_ray.adapter import Layout, Tensors, digest, serialise
from trustchain_ray.assembly import Assembly
from trustchain_ray.calls import reason_of
from trustchain_ray.checks import (
    MALFORMED,
    Refused,
    check_original,
    check_own,
    check_statement,
    check_update,
)
from trustchain_ray.compare import Scores, collect, mean_scores
from trustchain_ray.errors import TrustChainError
from trustchain_ray.exchange import CohortTask, Reply, Update
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.participation import effort_of
from trustchain_ray.robust.merging import RobustMerge, merge_cohorts, merge_updates
from trustchain_ray.robust.reputation import WAS_REFUSED
from trustchain_ray.robust.scanning import refuse_planted
from trustchain_ray.round_writer import FinishedRound, adapter_file, update_file
from trustchain_ray.secure_aggregation.attempts import SecureSum
from trustchain_ray.secure_merge import check_coalition, figures, merge_securely, statement
from trustchain_ray.statements import statement_of
from trustchain_ray.worker import Packed


@dataclass
class CohortRound:
    """A cohort in the current round: who has answered, and what was accepted; after the merge also what came of it."""

    task: CohortTask
    waiting: set[str]
    accepted: dict[str, Update] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # of the accepted updates, as signed and checked
    events: list[dict[str, Any]] = field(default_factory=list)  # of what went wrong in the merge
    secure: SecureSum | None = None
    merged: Tensors | None = None


class Federation(Assembly):
    """A run: rounds, cohort states and models."""

    def model(self, cohort_states: dict[str, Tensors] | None = None) -> Tensors:
        """The merge of the cohorts (default: as they stand now), in the form's own tensors."""
        cohort_states = self.states if cohort_states is None else cohort_states
        held = {c: sum(self._records(n, c) for n in self.cohorts[c]) for c in sorted(self.cohorts)}
        held = {c: count for c, count in held.items() if count}  # a cohort without records has learnt nothing
        held = {c: count for c, count in held.items() if c in cohort_states}  # not one that is withdrawn
        if not held:
            return self.initial
        weights = [1] * len(held) if self.config.federation.weights == "equal" else list(held.values())
        states = [cohort_states[c] for c in held]
        return merge_cohorts(self.config, self.initial, states, weights)

    def train_round(self, number: int, behind: Callable[[], Any] | None = None) -> tuple[dict[str, Any], Any]:
        """One round: tasks out, updates checked and merged as they come, the result handed to the writer.

        `behind` is called once the training is under way; what it starts waits behind it in every organization.

        Returns
        -------
        The round's metrics, and what `behind` returned.
        """
        began = time.perf_counter()
        before = dict(self.states)
        excluded = self.reputation.excluded(self.config.trust.exclude_below)
        rounds = self._open_round(excluded)
        events, absent = [], {}
        pending = {}
        for name in self.names:
            tasks = [r.task for c, r in rounds.items() if name in self.cohorts[c]]
            if name in excluded:
                absent[name] = excluded[name]
            elif name in self.late and not self._is_back(name):
                absent[name] = "still at work on an earlier round"
            else:
                call = self.members[name].call("train", self.terms_ref, number, tasks, self.settlement.shown)
                pending[call] = name
        started = behind() if behind else None
        deadline = time.monotonic() + self.config.federation.deadline_s
        replies: dict[str, Reply] = {}
        merged: dict[str, Any] = {}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                for ref, name in pending.items():
                    self.late[name] = ref
                    absent[name] = f"no answer within federation.deadline_s={self.config.federation.deadline_s:g}"
                break
            name = pending.pop(done[0])
            try:
                replies[name] = ray.get(done[0])
            except (RayActorError, RayTaskError) as error:
                absent[name] = f"did not answer: {reason_of(error)}"
                self.progress(f"  {name} is left out of round {number}: {absent[name]}")
                continue
            finally:
                for cohort in rounds.values():
                    cohort.waiting.discard(name)
            try:
                events += self._accept(number, name, replies[name], rounds)
            except (Refused, *MALFORMED) as error:
                del replies[name]
                absent[name] = f"{WAS_REFUSED}{error}"
            for c, cohort in rounds.items():
                if not cohort.waiting and c not in merged:
                    refuse_planted(self, number, c, cohort)
                    merged[c] = self.merge(number, c, cohort)
        for name, reason in absent.items():
            events.append(self.event("ABSENT", {"round": number, "organization": name, "reason": reason[:500]}))
        self._check_quorum(number, replies, absent)
        self.budget_is_spent = bool(replies) and all(reply.spent for reply in replies.values())
        for c, cohort in rounds.items():
            if c not in merged:
                refuse_planted(self, number, c, cohort)
                merged[c] = self.merge(number, c, cohort)
            events += cohort.events
        seconds = time.perf_counter() - began
        played = {n: effort_of(reply.decision) for n, reply in replies.items()}
        events += self.settle(number, before, rounds, played)
        return self._close_round(number, rounds, merged, replies, events, seconds), started

    def evaluate(self, model: Tensors) -> dict[str, Any]:
        """Start the evaluation of a model at every organization; references by name."""
        packed = [self.share(Packed.of(model))]
        return {n: self.members[n].call("evaluate", self.terms_ref, packed) for n in self.names if n not in self.late}

    def scores(self, started: dict[str, Any]) -> Scores:
        """What :meth:`evaluate` started, by organization; who does not answer within `federation.deadline_s` is left
        out, and `progress` told."""
        return collect(started, self.config.federation.deadline_s, self.progress)

    def _open_round(self, excluded: Collection[str]) -> dict[str, CohortRound]:
        left_out = {*self.late, *excluded}
        return {c: CohortRound(self.task_of(c), set(members) - left_out) for c, members in self.cohorts.items()}

    def task_of(self, cohort: str) -> CohortTask:
        """A cohort's state as it stands, for its members."""
        return self.task_of_state(cohort, self.states[cohort])

    def task_of_state(self, cohort: str, state: Tensors) -> CohortTask:
        """Some state of a cohort, for its members."""
        return CohortTask(cohort, self.share(Packed.of(state)), digest(state))

    def _accept(self, number: int, name: str, reply: Reply, rounds: dict[str, CohortRound]) -> list[dict[str, Any]]:
        """Check the decision and the updates of one organization; events of what was accepted and refused.

        Raises
        ------
        Refused
            The decision is not its own.
        """
        document = self.registrations[name]["document"]
        keys = {document["key_id"]: document["public_key"]}  # it may sign for itself alone
        check_own("DECISION", reply.decision, name, number, keys, self.id)
        return [reply.decision, *self.accept_updates(number, name, reply, rounds)]

    def accept_updates(
        self,
        number: int,
        name: str,
        reply: Reply,
        rounds: dict[str, CohortRound],
        removal: str | None = None,
        kept: bool = False,
    ) -> list[dict[str, Any]]:
        """Check the updates of one organization, and what it states besides; events of what was accepted and refused.

        Of each cohort the first thing that an organization says counts: the log cannot hold two.

        Parameters
        ----------
        removal, kept
            Of which removal's replay the answer is part; whether its updates are stated again, not trained.

        Raises
        ------
        Refused
            What it states besides is not its own.
        """
        document = self.registrations[name]["document"]
        keys = {document["key_id"]: document["public_key"]}
        for envelope in reply.events:
            check_own("PRIVACY_SPEND", envelope, name, number, keys, self.id, removal)
        # what is no answer at all is refused before anything of it is accepted
        events, updates, answered = list(reply.events), [(str(u.cohort)[:100], u) for u in reply.updates], set[str]()
        for withheld, reason in reply.withheld.items():
            if withheld in rounds and name in self.cohorts[withheld]:
                answered.add(withheld)
                body = {"round": number, "organization": name, "cohort": withheld}
                events.append(self.event("REFUSED", {**body, "reason": f"withheld by itself: {reason}"[:500]}))
                self.progress(f"  {name} withholds its update of {withheld}: {reason}")
        for what, update in updates:
            if what in answered:
                self.progress(f"  another update of {name} for {what} is not looked at")
                continue
            answered.add(what)
            cohort = rounds.get(what)
            try:
                if cohort is None or name not in self.cohorts[what]:
                    raise Refused("the organization is not in this cohort")
                records = self._records(name, what)
                unit = records if self.config.federation.weights == "records" else 1
                most = unit * self.config.federation.local_steps
                if self.config.trust.secure_aggregation:
                    update_digest = check_statement(
                        update, name, number, cohort.task, keys, self.id, most, removal, kept
                    )
                else:
                    layout, limit = self._update_layout(name), self.config.trust.max_update_norm
                    update_digest = check_update(
                        update, name, number, cohort.task, layout, keys, self.id, limit, most, removal, kept
                    )
                    check_original(update, update_digest, cohort.digests)
            except (Refused, *MALFORMED) as error:
                reason = str(error) if isinstance(error, Refused) else f"malformed: {error}"[:500]
                body = {"round": number, "organization": name, "cohort": what, "reason": reason}
                with contextlib.suppress(*MALFORMED):
                    body["update"] = digest(update.update.tensors())
                events.append(self.event("REFUSED", body))
                self.progress(f"  refused an update of {name}: {reason}")
            else:
                cohort.accepted[name] = update
                cohort.digests[name] = update_digest
                events.append(update.envelope)
        return events

    def _update_layout(self, organization: str) -> Layout:
        """Names and shapes that an update of this organization must have."""
        lora = self.config.model.lora
        rank = lora.ranks.get(organization, lora.rank)
        if lora.form in ("ffa", "fedavg"):
            return Layout.of(self.initial)
        shapes = {n: t for n, t in self.fresh.items() if not n.endswith((".lora_A.weight", ".lora_B.weight"))}
        return Layout.of({**fresh_adapter(self.terms.shapes, "", "layout", rank, lora.form), **shapes})

    def merge(
        self, number: int, name: str, cohort: CohortRound, server_step: float | None = None
    ) -> dict[str, Any]:
        """Merge a cohort's accepted updates into its state; the body of its MERGE event."""
        if self.config.trust.secure_aggregation:
            step = self.config.federation.server_step if server_step is None else server_step
            merged = RobustMerge(merge_securely(self, number, name, cohort, step))
        else:
            merged = self.merged(self.states[name], cohort, cohort.accepted, server_step)
        self.states[name] = cohort.merged = merged.state
        inputs = [
            {"organization": n, "update": cohort.digests[n], "weight": u.weight, **merged.share_of(n)}
            for n, u in sorted(cohort.accepted.items())
        ]
        if inputs and merged.shares and merged.stands < self.config.trust.hostile:
            self.progress(
                f"  round {number}: the {len(inputs)} updates of {name} are too few to stand more than {merged.stands} "
                f"hostile ones (trust.hostile={self.config.trust.hostile})"
            )
        return {
            "round": number,
            "cohort": name,
            "base": cohort.task.digest,
            "inputs": inputs,
            "adapter": digest(self.states[name]),
            "file": adapter_file(number, name),
            "file_sha256": sha256_hex(serialise(self.states[name])),
            **(statement(cohort.secure) if cohort.secure else {}),
        }

    def merged(
        self, state: Tensors, cohort: CohortRound, members: Collection[str], server_step: float | None = None
    ) -> RobustMerge:
        """A cohort's state with the accepted updates of some of its members merged in, by `trust.rule`."""
        accepted = {n: (u.update.tensors(), u.weight) for n, u in cohort.accepted.items() if n in members}
        return merge_updates(self.config, state, accepted, server_step)

    def settle(
        self, number: int, before: dict[str, Tensors], rounds: dict[str, CohortRound], played: dict[str, Fraction]
    ) -> list[dict[str, Any]]:
        """Remember what was played; the REWARD_SETTLEMENT of a round that is due."""
        self.settlement.note(played)
        if not self.settlement.due(number):
            return []
        return [self.event("REWARD_SETTLEMENT", self._settled(number, before, rounds, played))]

    def settle_again(
        self,
        number: int,
        before: dict[str, Tensors],
        rounds: dict[str, CohortRound],
        played: dict[str, Fraction],
        removal: str,
    ) -> list[dict[str, Any]]:
        """The REWARD_SETTLEMENT of a round that a removal replayed."""
        return [
            self.event("REWARD_SETTLEMENT", {**self._settled(number, before, rounds, played), "replay": removal})
        ]

    def _settled(
        self, number: int, before: dict[str, Tensors], rounds: dict[str, CohortRound], played: dict[str, Fraction]
    ) -> dict[str, Any]:
        merged = {n: played[n] for c in rounds.values() for n in c.accepted}

        def value(coalition: frozenset[str]) -> float:
            if self.config.trust.secure_aggregation:
                check_coalition(coalition, rounds)
                states = {c: r.merged if coalition and r.merged else before[c] for c, r in rounds.items()}
            else:
                states = {c: self.merged(before[c], cohort, coalition).state for c, cohort in rounds.items()}
            return mean_scores(self.scores(self.evaluate(self.model(states))))["accuracy"]

        tested = [self.registrations[n]["test"] for n in self.names if n in self.registrations]  # not who has left
        return self.settlement.settle(number, merged, value, tested)

    def _close_round(
        self,
        number: int,
        rounds: dict[str, CohortRound],
        merged: dict[str, Any],
        replies: dict[str, Reply],
        events: list[dict[str, Any]],
        seconds: float,
    ) -> dict[str, Any]:
        sent = [u for c in rounds.values() for u in c.accepted.values()]
        losses = [loss for u in sent for loss in u.losses]
        metrics: dict[str, Any] = {
            "seconds": seconds,
            "ended": time.time(),
            "training_seconds": sum(u.seconds for u in sent),
            "longest_training_seconds": max((sum(u.seconds for u in r.updates) for r in replies.values()), default=0.0),
            "organization_seconds": sum(r.seconds for r in replies.values()),
            "worker_resident_bytes": max((u.resident for u in sent), default=0),
            "records": sum(u.records for u in sent),
            "organizations": len(replies),
            "loss": sum(losses) / len(losses) if losses else 0.0,
            "bytes": sum(u.update.buffer.nbytes for u in sent),
            **figures(rounds),
        }
        events += [self.event("MERGE", merged[c]) for c in sorted(merged)]
        self.reputation.note(number, [statement_of(envelope) for envelope in events])
        metrics["reputation"] = self.reputation.all()
        adapters = {c: merged[c]["adapter"] for c in merged}
        updates = self.kept_updates(number, rounds)
        self.writer.put(FinishedRound(number, dict(self.states), adapters, events, metrics, updates))
        self.finished = number
        return metrics

    def kept_updates(self, number: int, rounds: dict[str, CohortRound]) -> dict[str, Tensors]:
        """Updates that are kept on the disk (`federation.keep_updates`), by their file's name in the round."""
        keep = self.config.federation.keep_updates
        if keep == "none" or (keep == "settled" and not self.settlement.due(number)):
            return {}
        return {update_file(c, n): u.update.tensors() for c, r in rounds.items() for n, u in r.accepted.items()}

    def _check_quorum(self, number: int, replies: dict[str, Reply], absent: dict[str, str]) -> None:
        least = self.config.federation.quorum * len(self.names)
        if len(replies) < max(1, least):
            reasons = "; ".join(f"{n}: {r}" for n, r in sorted(absent.items()))
            raise TrustChainError(
                f"round {number}: {len(replies)} of {len(self.names)} organizations answered, "
                f"federation.quorum={self.config.federation.quorum:g} needs {max(1, least):g}. {reasons}. "
                f"Go on with --resume {self.run.path}"
            )

    def _is_back(self, name: str) -> bool:
        done, _ = ray.wait([self.late[name]], timeout=0)
        if done:
            del self.late[name]
        return bool(done)
