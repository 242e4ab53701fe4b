"""Canaries of an audit run: texts that nobody wrote, each trained on with probability 1/2.

They are made from the run's key, so that whoever audits the run knows which of them were in; training does not look at
this. An organization trains on them as on its own records: they are sampled, clipped and noised alike, lie in
shards, and can be removed by their ids. A run that has them is an audit and says so in its manifest: a model that has
learnt canaries is not one to release.
"""

from dataclasses import dataclass

from trustchain_ray.config import Config
from trustchain_ray.keys import generator

LETTERS = 8
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Canary:
    """A text of random letters; `label` is a random class (-1 for a causal model)."""

    id: str
    text: str
    label: int
    included: bool


def canaries_of(config: Config, organization: str) -> list[Canary]:
    """The canaries of an organization, `privacy.canaries` of them; about half are included."""
    draws = generator(config.run.key, "canaries", organization)
    source = config.data.organizations.get(organization)
    labels = [config.model.labels.index(name) for name in (source.labels if source else [])]
    labels = labels or list(range(len(config.model.labels)))
    made = []
    for number in range(config.privacy.canaries):
        letters = draws.integers(len(ALPHABET), size=LETTERS)
        text = "".join(ALPHABET[letter] for letter in letters)
        label = labels[int(draws.integers(len(labels)))] if config.model.task == "classification" else -1
        made.append(Canary(f"canary-{organization}-{number:05d}", text, label, bool(draws.integers(2))))
    return made
