"""Learned Q-policies as files: safetensors for the weights, JSON for what they are for. Reading needs NumPy only.

A folder holds `policy.safetensors` and `policy.json`. The JSON names the game by its digest: a policy that was made
for another game is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from envs import GameConfig, GameError
from envs.arrays import Floats, Ints, Observations
from envs.best_response import Policy
from envs.dynamics import FEATURES
from ledger.canonical import write_atomic
from trustchain_ray.adapter import Tensors, digest, load_tensors, save_tensors
from trustchain_ray.errors import TrustChainError

FORMAT = "trustchain-policy/1"
WEIGHTS, HEADER = "policy.safetensors", "policy.json"


@dataclass(frozen=True)
class QNetwork:
    """A dueling Q-network: tanh layers, then Q(s, a) = V(s) + A(s, a) - mean_a A(s, a).

    Attributes
    ----------
    hidden
        (weight, bias) of each hidden layer; weight (out, in), float32.
    advantage, value
        (weight, bias) of the two heads.
    identity
        One-hot that a shared network reads after the observation; None for a network of its own.
    """

    hidden: tuple[tuple[Floats, Floats], ...]
    advantage: tuple[Floats, Floats]
    value: tuple[Floats, Floats]
    identity: Floats | None = None

    def q_values(self, observations: Observations) -> Floats:
        """Return the Q-values, (states, actions) in reward units, of observations (states, features)."""
        x = np.asarray(observations, np.float32)
        if self.identity is not None:
            x = np.concatenate([x, np.tile(self.identity, (len(x), 1))], axis=1)
        for weight, bias in self.hidden:
            x = np.tanh(x @ weight.T + bias)
        advantage = x @ self.advantage[0].T + self.advantage[1]
        value = x @ self.value[0].T + self.value[1]
        q: Floats = advantage - advantage.mean(axis=1, keepdims=True) + value
        return q

    def __call__(self, observations: Observations) -> Ints:
        """Return the greedy actions, (states,)."""
        return np.asarray(self.q_values(observations).argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class QPolicies:
    """Learned policies of all organizations of one game.

    Attributes
    ----------
    game
        Digest of the game that they were learned in.
    networks
        By organization, in agent order.
    """

    game: str
    networks: Mapping[str, QNetwork]

    def policies(self) -> list[Policy]:
        """Return the greedy policies, in agent order."""
        return list(self.networks.values())

    def digest(self) -> str:
        """Return the SHA-256 of the weights, in hexadecimal."""
        return digest(self._tensors())

    def save(self, folder: Path) -> None:
        """Write weights and header into a folder; each file whole or not at all."""
        header = {
            "format": FORMAT,
            "game": self.game,
            "organizations": list(self.networks),
            "features": list(FEATURES),
            "shared": any(network.identity is not None for network in self.networks.values()),
            "activation": "tanh",
            "weights": self.digest(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, self._tensors())
        write_atomic(folder / HEADER, (json.dumps(header, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path, game: GameConfig) -> QPolicies:
        """Read the policies of a game.

        Raises
        ------
        TrustChainError
            Missing or damaged files, or policies that were made for another game.
        """
        path = Path(folder) / HEADER
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']!r}, this version reads {FORMAT!r}")
            made_for, names, shared = str(header["game"]), list(header["organizations"]), bool(header["shared"])
            features, weights = list(header["features"]), str(header["weights"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrustChainError(f"{path}: not a policy ({type(error).__name__}: {error}); train one") from None
        try:
            game.require_digest(made_for, f"policy {os.fspath(folder)}")
        except GameError as error:
            raise TrustChainError(str(error)) from None
        tensors = load_tensors(Path(folder) / WEIGHTS)
        if digest(tensors) != weights or features != list(FEATURES) or tuple(names) != game.names:
            raise TrustChainError(
                f"policy {os.fspath(folder)}: {WEIGHTS} is not what {HEADER} describes; "
                "train again, or restore both files"
            )
        if shared:
            network = _network(tensors, "shared.")
            eye = np.eye(len(names), dtype=np.float32)
            return cls(made_for, {name: replace(network, identity=eye[i]) for i, name in enumerate(names)})
        return cls(made_for, {name: _network(tensors, f"{name}.") for name in names})

    def _tensors(self) -> Tensors:
        if any(network.identity is not None for network in self.networks.values()):
            return _named("shared.", next(iter(self.networks.values())))
        return {key: t for name, network in self.networks.items() for key, t in _named(f"{name}.", network).items()}


def _named(prefix: str, network: QNetwork) -> Tensors:
    layers = {f"hidden.{i}": layer for i, layer in enumerate(network.hidden)}
    layers |= {"advantage": network.advantage, "value": network.value}
    return {
        f"{prefix}{name}.{part}": array
        for name, layer in layers.items()
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }


def _network(tensors: Tensors, prefix: str) -> QNetwork:
    def layer(name: str) -> tuple[Floats, Floats]:
        return tensors[f"{prefix}{name}.weight"], tensors[f"{prefix}{name}.bias"]

    depth = sum(name.startswith(f"{prefix}hidden.") and name.endswith(".weight") for name in tensors)
    return QNetwork(tuple(layer(f"hidden.{i}") for i in range(depth)), layer("advantage"), layer("value"))
