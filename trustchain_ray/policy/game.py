"""The participation game of a configuration, and its files: `game.json`, and `surface.json` where it was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs import ClosedFormSurface, GameConfig, GameError, MeasuredSurface, OrganizationType, Payoff
from envs.stage_game import stage_game
from ledger.canonical import write_atomic
from trustchain_ray.config import Config
from trustchain_ray.data import load_holdings, organization_names
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.keys import generator
from trustchain_ray.policy.settings import ParticipationConfig, TermsConfig

GAME, SURFACE = "game.json", "surface.json"


def record_counts(config: Config) -> dict[str, int]:
    """Return the training records of each organization, in the order of their names.

    Reads the organizations' sources here: for simulations and planning. In a deployment, where records stay with
    their owners, the counts are those of the run's manifest.
    """
    return {name: len(load_holdings(config, name).train) for name in organization_names(config)}


def build_game(config: Config, settings: ParticipationConfig, records: Mapping[str, int]) -> GameConfig:
    """Return the game that the organizations of a configuration play.

    Parameters
    ----------
    config
        Gives the rounds and the LoRA rank.
    settings
        Section `participation`.
    records
        Training records of each organization; see `record_counts`.

    Raises
    ------
    UsageError
        Terms of an organization that does not exist.
    TrustChainError
        A game that cannot be: negative costs, a surface of other organizations or ranks.
    """
    unknown = sorted(set(settings.organizations) - set(records))
    if unknown:
        raise UsageError(
            f"participation.organizations: there is no organization {', '.join(unknown)}; "
            f"there are {', '.join(records)}"
        )
    terms = {name: settings.organizations.get(name, settings.terms) for name in records}
    costs = _cost_factors(config.run.key, settings.cost_spread, len(terms))
    try:
        organizations = tuple(
            _organization(name, records[name], one, factor)
            for (name, one), factor in zip(terms.items(), costs, strict=True)
        )
        reward = settings.reward or sum(one.value for one in terms.values())
        game = GameConfig(
            organizations=organizations,
            surface=_surface(config, settings, organizations),
            payoff=Payoff(settings.payoff),
            reward=reward,
            horizon=settings.horizon or config.federation.rounds,
            ranks=tuple(settings.ranks or [config.model.lora.rank]),
            rank_cost=settings.rank_cost,
            epsilon_per_round=settings.epsilon_per_round,
            competition=settings.competition,
            discount=settings.discount,
        )
        stage_game(game)  # a surface that does not cover the game shows here
    except GameError as error:
        raise TrustChainError(str(error)) from None
    return game


def save_game(game: GameConfig, folder: Path) -> None:
    """Write the game, so that its policies can be judged without the configuration and the records."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / GAME, game.canonical().encode() + b"\n")
    if isinstance(game.surface, MeasuredSurface):
        game.surface.save(folder / SURFACE)


def load_game(folder: Path) -> GameConfig:
    """Read what `save_game` wrote.

    Raises
    ------
    TrustChainError
        A missing or damaged file, or a surface that is not the game's.
    """
    path = folder / GAME
    try:
        text = path.read_text(encoding="utf-8").strip()
        fields: dict[str, Any] = json.loads(text)
        form = fields.pop("surface")
        fields.pop("encoding")
        if form["kind"] == "measured":
            surface: ClosedFormSurface | MeasuredSurface = MeasuredSurface.load(folder / SURFACE)
        else:
            surface = ClosedFormSurface(form["ceiling"], form["steepness"], form["rank_half"])
        fields["organizations"] = tuple(OrganizationType(**one) for one in fields["organizations"])
        fields |= {"payoff": Payoff(fields["payoff"]), "ranks": tuple(fields["ranks"])}
        game = GameConfig(**fields, surface=surface)
    except GameError as error:
        raise TrustChainError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrustChainError(
            f"{path} is missing or damaged ({type(error).__name__}: {error}); `trustchain policy train` writes it"
        ) from None
    if game.canonical() != text:
        raise TrustChainError(f"{folder}: {SURFACE} or {GAME} was changed after training; train again")
    return game


def _cost_factors(key: str, spread: float, count: int) -> list[float]:
    """Factors on unit costs: evenly from 1 - spread to 1 + spread (mean 1), in an order drawn by the run's key."""
    if count == 1 or not spread:
        return [1.0] * count
    order = generator(key, "cost-spread").permutation(count)
    return [1.0 + spread * (2.0 * int(place) / (count - 1) - 1.0) for place in order]


def _organization(name: str, records: int, terms: TermsConfig, cost_factor: float) -> OrganizationType:
    return OrganizationType(
        name=name,
        records=records,
        data_quality=terms.data_quality,
        unit_cost=terms.unit_cost * cost_factor,
        value=terms.value,
        privacy_price=terms.privacy_price,
        replay_duty=terms.replay_duty,
        budget=None if terms.budget == -1.0 else terms.budget,
    )


def _surface(
    config: Config, settings: ParticipationConfig, organizations: tuple[OrganizationType, ...]
) -> ClosedFormSurface | MeasuredSurface:
    if settings.surface:
        return MeasuredSurface.load(settings.surface)
    rank = max(settings.ranks or [config.model.lora.rank])
    effective = sum(one.data_quality * one.records for one in organizations) * rank / (rank + settings.rank_half)
    # 1 - exp(-3) is 95 %.
    steepness = settings.steepness or -math.log1p(-0.95) / max(effective, 1.0)
    return ClosedFormSurface(settings.ceiling, steepness, settings.rank_half)
