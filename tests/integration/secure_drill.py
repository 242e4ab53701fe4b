"""A run under secure aggregation in which something happens in the middle of the protocol. Run by a test.

`python secure_drill.py WHAT CONFIG RUN`, a process of its own. WHAT is `killed`: the coordinator dies in round 2 when
the masked inputs have come; or `cheated`: in round 1 `delta` masks another length than it signed for, in round 2 the
process of `gamma` dies when it is to send its masked input.
"""

import os
import signal
import sys
from typing import Any

import ray

from trustchain_ray import pool
from trustchain_ray.config_files import load_config
from trustchain_ray.organization import Organization
from trustchain_ray.secure_aggregation import Message, Server
from trustchain_ray.secure_aggregation.member import Answer
from trustchain_ray.secure_aggregation.messages import state
from trustchain_ray.secure_aggregation.stages import INPUT
from trustchain_ray.train import train


class Dishonest(Organization):
    """An organization that does what this module says."""

    def train(self, terms: list[Any], number: int, *rest: Any) -> Any:
        self.number = number
        return super().train(terms, number, *rest)

    def secure_answer(self, cohort: str, data: bytes) -> Answer:
        answer = super().secure_answer(cohort, data)
        if not answer.get("message"):
            return answer
        message = Message.from_bytes(answer["message"])
        if set(message.buffers) != {"values"}:
            return answer
        if self.name == "gamma" and self.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.name == "delta" and self.number == 1:
            buffers = {"values": bytes(message.buffers["values"])[:-8]}
            session = self._secure()._clients[cohort]._session
            after = self._secure()._clients[cohort]._after
            statement = state(self.identity, INPUT, session.digest, after, {}, buffers)
            return {"message": Message(statement, buffers=buffers).to_bytes()}
        return answer


class DishonestPool(pool.Pool):
    """A pool worker of such organizations."""

    def call(self, name: str, method: str, *args: Any) -> Any:
        if name not in self.organizations:
            self.organizations[name] = Dishonest(self.config, name, self.run, self._shared)
        return super().call(name, method, *args)


def die_in_round(number: int) -> None:
    """Kill this process when the masked inputs of a round are to be closed."""
    close = Server.close

    def closing(server: Server) -> dict[str, Message]:
        if server.session.round == number and server.stage == INPUT:
            os.kill(os.getpid(), signal.SIGKILL)
        return close(server)

    Server.close = closing  # type: ignore[method-assign]


if __name__ == "__main__":
    what, config, run, *overrides = sys.argv[1:]
    if what == "killed":
        die_in_round(2)
    else:
        pool.RemotePool = ray.remote(DishonestPool)
    train(load_config([config], ["trust.secure_aggregation=true", *overrides]), run, print)
