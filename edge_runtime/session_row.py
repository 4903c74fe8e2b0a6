"""The session's row in state.db, and what it takes to write it.

The rules:
- whoever read the row before the home was told to forget does not write it after (`ports.Forgotten`);
- forgetting sets the session to rest and deletes updates, kept vectors and the residual's name in one transaction.
"""

import math

import msgspec

from edge_runtime.adapters.state_store import StateStore
from edge_runtime.ports import StorageFailed
from edge_runtime.session import Phase, State

SESSION = "session"


class SessionRow:
    """One agent's hold on the row. `times_forgotten` is the store's count as of the last `load` or `forget`."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.times_forgotten = 0

    def load(self) -> State:
        """Return the state on the disk. Raises `StorageFailed` if there is one that cannot be read."""
        # Counted before the state is read: a `forget` between the two is then noticed, not missed.
        times_forgotten = self._store.times_forgotten()
        state = self._read()
        self.times_forgotten = times_forgotten
        return state

    def _read(self) -> State:
        saved = self._store.get(SESSION)
        try:
            state = State() if saved is None else msgspec.msgpack.decode(saved, type=State)
        except (msgspec.DecodeError, RecursionError) as e:
            raise StorageFailed(f"{self._store.path} holds a session that this program cannot read: {e}") from e
        lacking = _lacking(state)
        if lacking:
            raise StorageFailed(f"{self._store.path} holds a session that is {state.phase.value} without {lacking}")
        return state

    def put(self, state: State) -> None:
        """Write the state, in the transaction that is open or in one of its own. Raises `Forgotten`, `StorageFull`."""
        self._store.put(SESSION, msgspec.msgpack.encode(state), times_forgotten=self.times_forgotten)

    def was_forgotten(self) -> bool:
        """Whether the home was told to forget since, by this process or another."""
        return self._store.times_forgotten() != self.times_forgotten

    def refuse_forgotten(self) -> None:
        """Raise `Forgotten` if `was_forgotten`."""
        self._store.refuse_forgotten(self.times_forgotten)

    def forget(self) -> State:
        """Forget what was made of the person's text, but not when the device may ask for work again; return that."""
        with self._store.transaction() as connection:
            forgetful = State(not_before=self._read().not_before)
            times_forgotten = self._store.forget(connection)
            self._store.put(SESSION, msgspec.msgpack.encode(forgetful), times_forgotten=times_forgotten)
        self.times_forgotten = times_forgotten
        return forgetful


def _lacking(state: State) -> str:
    """Return what a state of its phase has, and this one has not; "" for a whole one."""
    phase = state.phase
    if not (math.isfinite(state.not_before) and math.isfinite(state.give_up_at)):
        return "finite times"
    if phase in (Phase.FETCHING, Phase.TRAINING, Phase.SENDING) and state.offer is None:
        return "an offer"
    if phase in (Phase.EVALUATING, Phase.REPORTING) and state.evaluation is None:
        return "an evaluation offer"
    if phase is Phase.REPORTING and state.report is None:
        return "a report"
    return "an id" if phase in (Phase.SENDING, Phase.REPORTING) and not state.update_id else ""


def differ(a: State, b: State) -> bool:
    """Whether two states differ in more than how long to wait."""
    return msgspec.structs.replace(a, not_before=0.0, attempts=0) != msgspec.structs.replace(
        b, not_before=0.0, attempts=0
    )
