"""One device's training conditions, looked at: the shell around `eligibility`.

It holds what a look needs (sensors, clocks, the owner's policy, what the night has used) and what is remembered from
one look to the next.
"""

from edge_runtime import eligibility, night_window
from edge_runtime.eligibility import JUST_STARTED, Decision, Moment, Policy, Standing
from edge_runtime.night_budget import NightBudget
from edge_runtime.ports import Clock, Sensors

NO_TEXT = "there is nothing to learn from yet: typing, or adding examples, would change that"


class Conditions:
    """One agent's. `spread_s`: in how many seconds after the opening of the night the fleet comes (0: at once).

    `standing` is what earlier looks have seen, of another process or of a device at rest.
    """

    def __init__(
        self,
        clock: Clock,
        sensors: Sensors,
        policy: Policy,
        budget: NightBudget,
        spread_s: float,
        standing: Standing = JUST_STARTED,
    ) -> None:
        self._clock = clock
        self._sensors = sensors
        self._policy = policy
        self._budget = budget
        self._spread_s = spread_s
        self.standing = standing

    def decide(self, *, training: bool, lease_until: float | None) -> Decision:
        """Look now. `training` and `lease_until` as in `eligibility.decide`. Raises `StorageFailed`."""
        clock = self._clock
        now = clock.now()
        self.standing, decision = eligibility.decide(
            self.standing, self._sensors.read(now), self._policy, self._budget.usage(now),
            Moment(now, clock.elapsed(), clock.trusted()), training=training, lease_until=lease_until,
        )  # fmt: skip
        return decision

    def opened_at(self) -> float | None:
        """Return when the night that is open now opened, in Unix seconds; None where nobody has to wait for it."""
        if not self._spread_s:
            return None
        policy = self._policy
        return night_window.opened_at(policy.time_zone, policy.night_start, policy.night_end, self._clock.now())
