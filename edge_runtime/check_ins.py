"""Checking in: asking the aggregator for work, or for the time (`time_question`) where no clock can be believed.

Any check-in's answer tells the time if it comes at once; one that asks for the time alone names no capability, so that
no work comes of it.
"""

from collections.abc import Callable

from edge_runtime.eligibility import Decision
from edge_runtime.identity import Identity
from edge_runtime.link import Link
from edge_runtime.offer_terms import CAPABILITIES
from edge_runtime.ports import Clock, Entropy
from edge_runtime.time_question import TimeQuestion
from wire_contract.messages import CheckIn, encode_message

ROW_TOKENS = 20


class CheckIns:
    """One agent's. `count_examples` says how many examples are here, where so many tokens of
    text make one; `held_version` which training version."""

    def __init__(
        self,
        identity: Identity,
        population: str,
        link: Link,
        clock: Clock,
        entropy: Entropy,
        *,
        count_examples: Callable[[int], int],
        held_version: Callable[[], int],
    ) -> None:
        self._identity = identity
        self._population = population
        self._link = link
        self._clock = clock
        self._entropy = entropy
        self._count_examples = count_examples
        self._held_version = held_version
        self._time = TimeQuestion()

    def ask(self, nonce: str, capabilities: tuple[str, ...] = CAPABILITIES) -> None:
        """Publish a check-in. Raises `Unreachable`, `StorageFailed`."""
        self._time.asked(nonce, self._clock.elapsed())
        request = CheckIn(
            device=self._identity.device,
            population=self._population,
            nonce=nonce,
            sent_at=int(self._clock.now()),
            held_version=self._held_version(),
            capabilities=capabilities,
            examples=self._count_examples(ROW_TOKENS),
        )
        self._link.request(encode_message(request))
        self._link.notes.checked_in = True

    def lack_time(self, decision: Decision) -> bool:
        """Whether the clock alone is what stops this device, and its question is due or waits for an answer."""
        elapsed = self._clock.elapsed()
        return decision.code == "clock" and (self._time.due(elapsed) or self._time.waits(elapsed))

    def ask_the_time(self, decision: Decision) -> None:
        """Ask for the time if that is due and there is a link. Raises `Unreachable`, `StorageFailed`."""
        if decision.code == "clock" and self._link.connected and self._time.due(self._clock.elapsed()):
            self.ask(self._entropy(16).hex(), capabilities=())

    def just_asked(self, nonce: str) -> bool:
        """Whether the question with this nonce left a moment ago."""
        return self._time.is_fresh(nonce, self._clock.elapsed())
