from dataclasses import fields, replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Usage
from edge_runtime.energy import watt_hours
from edge_runtime.ledger import DAY_S, OwnTerms, Participation, Totals, admit, kept, participation, totals
from tests.wire_contract.samples import MESSAGES
from wire_contract.messages import EvaluationOffer, Plan, TaskOffer

DAY = int(DAY_S)
START = 1_800_000_000
LEASED = next(message for message in MESSAGES if isinstance(message, TaskOffer))
ASKED = next(message for message in MESSAGES if isinstance(message, EvaluationOffer))
FREE = OwnTerms()


def offer(number, *, version=3, issued=START, lasts=DAY, task="44" * 8, versions=0, seconds=0):
    return msgspec.structs.replace(
        LEASED, lease=f"{number:032x}", task=task, base_version=version, issued_at=issued, deadline=issued + lasts,
        plan=Plan(separation_versions=versions, separation_s=seconds),
    )  # fmt: skip


def evaluation(number, *, issued=START):
    return msgspec.structs.replace(ASKED, lease=f"{number:032x}", issued_at=issued, deadline=issued + DAY)


def took_part(first, now=None):
    return participation(first, float(first.issued_at) if now is None else now)


def test_a_participation_says_which_work_it_was_and_when_it_began():
    row = took_part(offer(7, version=12), START + 60.0)
    assert row == Participation(f"{7:032x}", "en-chat", "44" * 8, "train", 12, START + 60.0)
    assert took_part(evaluation(8)).kind == "evaluate"
    assert took_part(evaluation(8)).base_version == ASKED.version


def test_the_page_about_the_ledger_names_every_column():
    page = Path("docs/privacy-ledger.md").read_text()
    assert [field.name for field in fields(Participation) if f"`{field.name}`" not in page] == []


def test_a_plan_without_a_separation_lets_every_lease_begin():
    rows = [took_part(offer(number)) for number in range(50)]
    assert admit(rows, offer(99), FREE, START).may


@pytest.mark.parametrize(("version", "may"), [(10, False), (12, False), (13, True), (40, True), (9, False), (1, False)])
def test_versions_lie_apart_as_the_plan_asks_and_an_older_version_is_no_later_step(version, may):
    permission = admit([took_part(offer(1, version=10))], offer(2, version=version, versions=3), FREE, START)
    assert permission.may is may
    if not may:
        assert permission.not_before is None
        assert permission.reason == (
            f"it took part in this task with version 10: its plan lets it again from version 13, this is {version}"
        )


def test_with_a_separation_of_one_it_takes_part_once_in_each_version():
    rows = [took_part(offer(1, version=10))]
    assert not admit(rows, offer(2, version=10, versions=1), FREE, START).may
    assert admit(rows, offer(2, version=11, versions=1), FREE, START).may


def test_another_tasks_participations_do_not_count():
    rows = [took_part(offer(1, version=10, task="55" * 8))]
    assert admit(rows, offer(2, version=10, versions=5, seconds=DAY), FREE, START).may


def test_seconds_lie_apart_as_the_plan_asks():
    rows = [took_part(offer(1))]
    early = offer(2, issued=START + 6 * DAY - 1, seconds=6 * DAY)
    permission = admit(rows, early, FREE, early.issued_at)
    assert (permission.may, permission.not_before) == (False, START + 6 * DAY_S)
    assert permission.reason == "it took part in this task 6.0 days ago: its plan asks for 6.0 days between two times"
    late = offer(2, issued=START + 6 * DAY, seconds=6 * DAY)
    assert admit(rows, late, FREE, late.issued_at).may


def test_the_owners_days_add_to_the_plans_and_do_not_shorten_them():
    rows, later = [took_part(offer(1))], offer(2, issued=START + 3 * DAY, seconds=2 * DAY)
    assert admit(rows, later, FREE, later.issued_at).may
    refused = admit(rows, later, OwnTerms(minimum_days=4), later.issued_at)
    assert "ledger.minimum_days asks for 4.0 days" in refused.reason
    strict = offer(2, issued=START + 3 * DAY, seconds=9 * DAY)
    assert "its plan asks for 9.0 days" in admit(rows, strict, OwnTerms(minimum_days=1), strict.issued_at).reason


def test_the_owners_week_counts_every_task_and_evaluations_too():
    rows = [took_part(offer(1)), took_part(offer(2, task="55" * 8, issued=START + DAY)),
            took_part(evaluation(3, issued=START + 2 * DAY))]  # fmt: skip
    terms = OwnTerms(most_a_week=3)
    for asked in (offer(4, issued=START + 3 * DAY), evaluation(4, issued=START + 3 * DAY)):
        permission = admit(rows, asked, terms, asked.issued_at)
        assert (permission.may, permission.not_before) == (False, START + 7 * DAY_S)
        assert "3 times in seven days: ledger.most_a_week lets it 3 times" in permission.reason
    for asked in (offer(4, issued=START + 7 * DAY), evaluation(4, issued=START + 7 * DAY)):
        assert admit(rows, asked, terms, asked.issued_at).may


def test_an_evaluation_needs_no_separation_from_a_training():
    assert admit([took_part(offer(1))], evaluation(2), OwnTerms(minimum_days=9), START).may
    assert admit([took_part(evaluation(2))], offer(1, versions=9, seconds=DAY), FREE, START).may


def test_a_lease_that_was_begun_is_gone_on_with():
    begun = offer(1, versions=9, seconds=9 * DAY)
    assert admit([took_part(begun)], begun, OwnTerms(minimum_days=9, most_a_week=1), START + 60).may


clocks = st.one_of(st.just(None), st.floats(0, 4e9, allow_nan=False))


@given(
    st.lists(st.tuples(st.integers(0, 4 * DAY), st.integers(0, 3), st.integers(0, 12 * 3600), clocks), max_size=12),
    st.integers(0, 6), st.integers(0, 12 * DAY),
)  # fmt: skip
def test_whatever_the_devices_clock_says_what_is_admitted_lies_apart(steps, versions, seconds):
    """True time and signed times go forward; the device looks at its own clock, which says anything."""
    rows, begun, true, version = [], [], float(START), 1
    for number, (wait_s, more, delay_s, clock) in enumerate(steps):
        true, version = true + wait_s, version + more
        asked = offer(number, version=version, issued=int(true), versions=versions, seconds=seconds)
        true += delay_s
        wall = true if clock is None else clock
        if admit(rows, asked, FREE, wall).may:
            rows.append(took_part(asked, wall))
            begun.append((asked.issued_at, true, clock is None, version))
    for i, (issued, began, right, before) in enumerate(begun):
        for later_issued, later_began, _, after in begun[i + 1 :]:
            assert after - before >= versions
            assert later_issued - issued >= seconds
            assert not right or later_began - began >= seconds


@given(st.integers(0, 3000 * DAY), st.integers(0, 3000 * DAY))
def test_an_aggregator_that_dates_its_offers_ahead_gains_nothing_while_the_clock_is_right(ahead, more):
    first = offer(1, issued=START + ahead)
    rows = [took_part(first, START)]
    second = offer(2, issued=START + ahead + more, seconds=30 * DAY)
    assert not admit(rows, second, FREE, START + 30 * DAY - 1).may


@given(st.integers(1, 3000 * DAY))
def test_an_aggregator_that_dates_a_live_lease_back_gains_nothing(back):
    first = offer(1, issued=START - back, lasts=back + DAY)
    rows = [took_part(first, START)]
    second = offer(2, issued=START + 30 * DAY - 1, seconds=30 * DAY)
    assert not admit(rows, second, FREE, START + 30 * DAY - 1).may


rows_of = st.lists(
    st.builds(
        lambda number, days, version, task, kind: Participation(
            f"{number:032x}", "en-chat", task, kind, version, START + days * DAY_S
        ),
        st.integers(0, 10_000), st.floats(-900, 5), st.integers(1, 30), st.sampled_from(["44" * 8, "55" * 8]),
        st.sampled_from(["train", "evaluate"]),
    ),
    max_size=25, unique_by=lambda row: row.lease,
)  # fmt: skip
terms_of = st.builds(
    OwnTerms, st.sampled_from([0.0, 1.0, 500.0, 2000.0]), st.integers(0, 4), st.floats(30, 400), st.integers(1, 12)
)


@given(rows_of, terms_of, st.integers(1, 35), st.integers(0, 20), st.sampled_from([0, DAY, 700 * DAY, 2000 * DAY]),
       st.integers(0, 900))  # fmt: skip
@settings(max_examples=400)
def test_what_is_dropped_changes_no_answer(rows, terms, version, versions, seconds, later_days):
    stay = kept(rows, terms, START)
    assert set(stay) <= set(rows) and list(stay) == sorted(stay, key=lambda row: (row.at, row.lease), reverse=True)
    issued = START + later_days * DAY
    for asked in (
        offer(20_000, version=version, issued=issued, versions=versions, seconds=seconds),
        evaluation(20_000, issued=issued),
    ):
        with_all, with_kept = admit(rows, asked, terms, issued), admit(stay, asked, terms, issued)
        assert (with_all.may, with_all.not_before) == (with_kept.may, with_kept.not_before)


@given(rows_of, terms_of)
def test_retention_keeps_the_newest_rows_up_to_its_bounds(rows, terms):
    stay = kept(rows, terms, START)
    by_rule = [row for row in sorted(rows, key=lambda row: row.at, reverse=True)[: terms.kept_rows]
               if START - row.at <= terms.kept_days * DAY_S]  # fmt: skip
    assert len(stay) >= len(by_rule)
    # Two tasks, the latest and the highest of each, and the owner's week.
    assert len(stay) <= len(by_rule) + 4 + terms.most_a_week


def test_the_totals_count_what_was_sent_and_how_it_was_judged():
    rows = [
        Participation("1", "p", "t", "train", 1, 1.0, 80, 5, "u1", 100, "accepted", 2.0),
        Participation("2", "p", "t", "train", 1, 1.0, 70, 4, "u2", 200, "stale", 2.0),
        Participation("3", "p", "t", "train", 1, 1.0, 60, 3, "u3", 300, "bad_signature", 2.0),
        Participation("4", "p", "t", "train", 1, 1.0, 50, 2, "u4", 400),
        Participation("5", "p", "t", "train", 1, 1.0),
        Participation("6", "p", "t", "evaluate", 1, 1.0, 40, 0, "r1", 50, "accepted", 2.0),
    ]
    assert totals(rows) == Totals(trainings=5, evaluations=1, updates=5, sent_bytes=1050, examples=300, accepted=2,
                                  stale=1, refused=1, waiting=1)  # fmt: skip


class TestOnDisk:
    @pytest.fixture
    def store(self, tmp_path):
        store = StateStore(tmp_path / "state.db")
        yield store
        store.close()

    def again(self, tmp_path):
        other = StateStore(tmp_path / "state.db")
        try:
            return LedgerRows(other, FREE).rows()
        finally:
            other.close()

    def test_a_participation_is_there_after_the_commit_and_not_after_a_failure(self, tmp_path, store):
        ledger = LedgerRows(store, FREE)
        with pytest.raises(RuntimeError), store.transaction() as connection:
            ledger.begin(connection, offer(1), START)
            raise RuntimeError
        assert self.again(tmp_path) == ()
        with store.transaction() as connection:
            ledger.begin(connection, offer(1), START)
        assert self.again(tmp_path) == (took_part(offer(1)),)

    def test_beginning_a_lease_again_changes_nothing(self, tmp_path, store):
        ledger = LedgerRows(store, FREE)
        with store.transaction() as connection:
            ledger.begin(connection, offer(1), START)
            ledger.sent(connection, offer(1).lease, update_id="u", size_bytes=9, examples=80, steps=5, at=START)
        with store.transaction() as connection:
            ledger.begin(connection, offer(1), START + 3600)
        (row,) = self.again(tmp_path)
        assert (row.at, row.update_id) == (START, "u")

    def test_what_was_sent_and_its_verdict_stand_in_the_row(self, tmp_path, store):
        ledger = LedgerRows(store, FREE)
        with store.transaction() as connection:
            ledger.begin(connection, offer(1), START)
            ledger.begin(connection, offer(2), START + 1)
        with store.transaction() as connection:
            ledger.sent(connection, offer(1).lease, update_id="aa", size_bytes=9172, examples=80, steps=5,
                        at=START + 30.0)  # fmt: skip
        with store.transaction() as connection:
            ledger.settle(connection, "aa", "accepted", START + 90.0)
            ledger.settle(connection, "of nobody", "stale", START + 91.0)
            ledger.settle(connection, "", "stale", START + 92.0)
        newer, older = self.again(tmp_path)
        assert older == replace(took_part(offer(1)), examples=80, steps=5, update_id="aa", bytes=9172,
                                verdict="accepted", verdict_at=START + 90.0, sent_at=START + 30.0)  # fmt: skip
        assert newer == took_part(offer(2), START + 1)
        assert ledger.rows(since=START + 0.5) == (newer,)

    def test_forgetting_leaves_the_ledger(self, tmp_path, store):
        ledger = LedgerRows(store, FREE)
        with store.transaction() as connection:
            ledger.begin(connection, offer(1), START)
        with store.transaction() as connection:
            store.forget(connection)
        assert len(self.again(tmp_path)) == 1
        assert not ledger.admit(offer(2, versions=1), START).may

    def test_rows_past_their_retention_go_when_the_next_begins(self, tmp_path, store):
        ledger = LedgerRows(store, OwnTerms(kept_days=30, kept_rows=100))
        for number in range(6):
            begins = offer(number, version=number + 1, issued=START + number * 20 * DAY)
            with store.transaction() as connection:
                ledger.begin(connection, begins, begins.issued_at)
        assert [row.base_version for row in self.again(tmp_path)] == [6, 5]

    def test_a_clock_that_jumps_ahead_drops_no_row(self, tmp_path, store):
        ledger = LedgerRows(store, OwnTerms(kept_days=30, kept_rows=100))
        with store.transaction() as connection:
            ledger.begin(connection, offer(1, task="55" * 8), START)
            ledger.begin(connection, evaluation(2, issued=START + 60), START + 3000 * DAY_S)
            ledger.begin(connection, offer(3, issued=START + 120), START + 3000 * DAY_S)
        assert {row.lease for row in self.again(tmp_path)} == {f"{number:032x}" for number in (1, 2, 3)}

    def test_the_nights_come_newest_first_with_what_they_used(self, store):
        used = Usage(training_s=60.0, sent_bytes=100, cpu_s=50.0, written_bytes=7, starts=1)
        for night in ("2026-11-01", "2026-11-03", "2026-11-02", "2026-11-03"):
            with store.transaction() as connection:
                store.add_usage(connection, night, used)
        nights = LedgerRows(store, FREE).nights("2026-11-02")
        assert nights == (("2026-11-03", Usage(120.0, 200, 100.0, 14, 2)), ("2026-11-02", used))


def test_an_hour_of_one_busy_core_is_as_many_watt_hours_as_it_has_watts():
    assert watt_hours(3600.0, 1.2) == 1.2
