"""A device at rest: what is needed to know whether the agent is wanted, and nothing else.

Most of a day nothing is to be done, and an agent that has met its broker holds far more than it takes to notice that.
So `edge-runtime run` looks through this while it rests, and makes the agent when there is business; after a night it
starts itself anew (`running`), which also ends whatever a process may gather in a year.

The rules:
- the agent is wanted when a training may start and its link may be used, when something waits to be sent, when news of
  versions are due, and once an hour when only the clock's word is missing;
- not within the first minutes: an agent that just came to rest with all that (a broker is away) need not try again;
- nothing is written here, and nothing is imported that needs cryptography, a network or numpy.
"""

from dataclasses import replace
from pathlib import Path

from edge_runtime import news, session
from edge_runtime.adapters.clock import FLOOR_FILE, SystemClock
from edge_runtime.adapters.example_count import holds_text
from edge_runtime.adapters.sensors.linux import LinuxSensors
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.conditions import NO_TEXT, Conditions
from edge_runtime.config import Settings
from edge_runtime.eligibility import Decision, Standing
from edge_runtime.night_budget import NightBudget
from edge_runtime.ports import Clock, Sensors
from edge_runtime.session import Phase
from edge_runtime.session_row import SessionRow
from edge_runtime.time_question import AGAIN_S

SHORTEST_REST_S = 240.0


class Rest:
    """One home's rest. Raises `StorageFailed` if its state cannot be read."""

    def __init__(self, home: Path, settings: Settings, clock: Clock, sensors: Sensors) -> None:
        policy = settings.policy.as_policy()
        self._clock = clock
        self._store = StateStore(home / "state.db")
        self._row = SessionRow(self._store)
        budget = NightBudget(self._store, policy, clock.elapsed)
        self._conditions = Conditions(clock, sensors, policy, budget, settings.spread_s)
        self._examples = home / "examples.db"
        self._since = clock.elapsed()

    def look(self) -> Decision:
        """Look at the conditions now."""
        decision = self._conditions.decide(training=False, lease_until=None)
        if decision.may_train and not holds_text(self._examples):
            return replace(decision, may_train=False, reason=NO_TEXT)
        return decision

    def wants_agent(self, decision: Decision) -> bool:
        """Whether there is business, after this look."""
        state, now = self._row.load(), self._clock.now()
        if state.phase is not Phase.RESTING:
            return True
        rested_s = self._clock.elapsed() - self._since
        if rested_s < SHORTEST_REST_S:
            return False
        if decision.may_train and decision.may_send and session.due(state, now):
            return True
        if decision.code == "clock":
            return rested_s >= AGAIN_S
        return decision.may_send and news.due(news.seen_at(self._store), now)

    @property
    def standing(self) -> Standing:
        """What the looks so far have seen: the agent goes on from it."""
        return self._conditions.standing

    def close(self) -> None:
        """Let go of the home's files."""
        self._store.close()


def rest_of(home: Path, settings: Settings) -> Rest:
    """Return the rest of a real device."""
    # It writes nothing, and believes the time that the agent before it has proved and written down.
    clock = SystemClock(home / FLOOR_FILE, trust_rtc=settings.policy.clock == "rtc", writes=False)
    return Rest(home, settings, clock, LinuxSensors(Path(settings.sensors_root)))
