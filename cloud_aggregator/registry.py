"""Which version each track stands at, and the numbers that come next.

The rules:
- one rising number for both tracks of a population; a number is never used twice and never goes back;
- a step makes a training version; `ordinal` counts steps, and staleness is a difference of ordinals, so that numbers
  spent on an undo make nobody stale;
- a refresh is a training version offered to keyboards under its own number;
- an undo is a new, higher number with old weights: devices' protection against rollback stays on (design 16).
"""

from dataclasses import dataclass, replace

from cloud_aggregator.errors import Refused


@dataclass(frozen=True, slots=True)
class Registered:
    """A version: its number, the SHA-256 of its file, and how many steps made it (None: an undo)."""

    version: int
    sha256: str
    ordinal: int | None


@dataclass(frozen=True, slots=True)
class Registry:
    """The two tracks of a population, and the highest number ever used."""

    training: Registered
    refresh: Registered
    highest: int


def first(sha256: str, version: int) -> Registry:
    """Return the registry of a freshly imported bundle: its version is training and refresh at once."""
    registered = Registered(version, sha256, 0)
    return Registry(registered, registered, version)


def advance(registry: Registry, sha256: str) -> Registry:
    """Return the registry after a step whose file hashes to `sha256`."""
    number = registry.highest + 1
    ordinal = (registry.training.ordinal or 0) + 1
    return replace(registry, training=Registered(number, sha256, ordinal), highest=number)


def release(registry: Registry) -> Registry:
    """Return the registry with the training version as the refresh. Raises `Refused` if it is not newer."""
    if registry.training.version <= registry.refresh.version:
        raise Refused(
            f"training version {registry.training.version} is not newer than refresh {registry.refresh.version}",
            "wait for the next step; see round list",
        )
    return replace(registry, refresh=registry.training)


def undo(registry: Registry, target: Registered) -> Registry:
    """Return the registry with `target`'s weights as the refresh, under a new number. Raises `Refused` if it is it."""
    if target.sha256 == registry.refresh.sha256:
        raise Refused(f"refresh {registry.refresh.version} already has the weights of version {target.version}")
    number = registry.highest + 1
    return replace(registry, refresh=Registered(number, target.sha256, None), highest=number)
