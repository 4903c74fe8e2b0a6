"""What one turn of the service did, and what waits for the next one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloud_aggregator.answers import Outgoing
from cloud_aggregator.release_runner import Outcome


@dataclass(frozen=True, slots=True)
class Pending:
    """What waits for the next turn: devices with a check-in, and updates whose chunks are all there."""

    check_ins: int
    received_updates: int


@dataclass(frozen=True, slots=True)
class TurnReport:
    """What one turn did. `verdicts` counts by name; `staleness` counts accepted updates; `steps` and `released` are
    (population, version), `applied` counts the updates that those steps used; `released` and `held` are scheduled
    releases that have ended; `troubles` are failures that lost nothing; `more` says that the pass was full and another
    should follow at once."""

    offers: int = 0
    turned_away: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    staleness: Mapping[int, int] = field(default_factory=dict)
    steps: tuple[tuple[str, int], ...] = ()
    applied: int = 0
    released: tuple[tuple[str, int], ...] = ()
    held: tuple[tuple[str, str], ...] = ()
    troubles: tuple[str, ...] = ()
    more: bool = False


@dataclass(slots=True)
class Pass:
    """What accumulates during one pass and is published after its commit."""

    outgoing: list[Outgoing] = field(default_factory=list)
    offers: int = 0
    turned_away: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)
    steps: list[tuple[str, int]] = field(default_factory=list)
    applied: int = 0
    due: list[str] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    more: bool = False

    def report(self, ended: Sequence[Outcome], troubles: tuple[str, ...]) -> TurnReport:
        """Return what the pass did, with the releases that have `ended` and the failures that lost nothing."""
        return TurnReport(
            offers=self.offers,
            turned_away=self.turned_away,
            verdicts=dict(self.verdicts),
            staleness=dict(sorted(self.staleness.items())),
            steps=tuple(self.steps),
            applied=self.applied,
            released=tuple((each.population, each.version) for each in ended if each.version is not None),
            held=tuple((each.population, each.reason) for each in ended if each.version is None),
            troubles=troubles,
            more=self.more,
        )
