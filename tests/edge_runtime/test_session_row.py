"""The session's row as other programs, other releases and rotten disks may have left it."""

import math

import msgspec
import pytest

from edge_runtime.adapters.state_store import StateStore
from edge_runtime.ports import Forgotten, StorageFailed
from edge_runtime.session import Phase, State
from edge_runtime.session_row import SESSION, SessionRow
from tests.edge_runtime.test_session import state


@pytest.fixture
def store(tmp_path):
    made = StateStore(tmp_path / "state.db")
    yield made
    made.close()


def put(store, data):
    store.put(SESSION, data, times_forgotten=0)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_read_as_it_was_written(store, phase):
    row = SessionRow(store)
    row.put(state(phase))
    assert SessionRow(store).load() == state(phase)


@pytest.mark.parametrize(("phase", "changes", "lacks"), [
    (Phase.FETCHING, {"offer": None}, "an offer"),
    (Phase.TRAINING, {"offer": None}, "an offer"),
    (Phase.SENDING, {"offer": None}, "an offer"),
    (Phase.SENDING, {"update_id": ""}, "an id"),
    (Phase.EVALUATING, {"evaluation": None}, "an evaluation offer"),
    (Phase.REPORTING, {"evaluation": None}, "an evaluation offer"),
    (Phase.REPORTING, {"report": None}, "a report"),
    (Phase.REPORTING, {"update_id": ""}, "an id"),
    (Phase.RESTING, {"not_before": math.nan}, "finite times"),
    (Phase.SENDING, {"give_up_at": math.inf}, "finite times"),
])  # fmt: skip
def test_a_state_that_its_phase_cannot_have_is_refused_by_what_it_lacks_and_stays_on_the_disk(
    store, phase, changes, lacks
):
    data = msgspec.msgpack.encode(msgspec.structs.replace(state(phase), **changes))
    put(store, data)
    with pytest.raises(StorageFailed, match=f"{phase.value} without {lacks}"):
        SessionRow(store).load()
    assert store.get(SESSION) == data


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x81", b"[]", b"\x81\xa5phase\xa7dancing", b"\x91" * 50_000 + b"\xc0"]
)
def test_bytes_that_are_no_state_are_refused_by_name(store, data):
    put(store, data)
    with pytest.raises(StorageFailed, match="cannot read"):
        SessionRow(store).load()


def test_a_state_of_an_earlier_release_gets_the_defaults_of_what_it_did_not_know(store):
    put(store, msgspec.msgpack.encode({"phase": "resting", "not_before": 5.0, "of_a_later_release": [1]}))
    assert SessionRow(store).load() == State(not_before=5.0)


def test_a_forgetting_between_the_count_and_the_state_is_noticed(tmp_path):
    class Raced(StateStore):
        raced = False

        def get(self, name):
            found = super().get(name)
            if not self.raced:
                self.raced = True
                with self.transaction() as connection:
                    self.forget(connection)
            return found

    store = Raced(tmp_path / "state.db")
    row = SessionRow(store)
    row.load()
    assert row.was_forgotten()
    with pytest.raises(Forgotten):
        row.put(State())
    store.close()
