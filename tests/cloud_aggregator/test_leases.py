"""Leases, pace and rounds: their rules one by one, and ten thousand phones against them in virtual time."""

import hashlib
import heapq

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.answers import Load, answer_check_in
from cloud_aggregator.leases import draw_lease, is_offered_again, may_offer
from cloud_aggregator.pace import retry_window
from cloud_aggregator.population import admit_one, close_round, load
from cloud_aggregator.records import DeviceRecord, UpdateRecord
from cloud_aggregator.rounds import RoundRules, close_cause
from tests.cloud_aggregator.fleet import CAPABILITIES, CLIP_NORM, NOW, POPULATION, Aggregator, delta_of
from wire_contract import codec, envelope
from wire_contract.messages import CheckIn, TurnedAway, UpdateHeader, encode_message

SEED = bytes(32)
GOAL = 100


def lease_of(counter=0, **changes):
    values = {"task": "44" * 8, "device": "01" * 16, "base": (5, "ab" * 32), "now": 1000, "lease_s": 600, **changes}
    return draw_lease(SEED, counter=counter, **values)


def test_leases_go_out_while_fewer_than_twice_the_goal_count_are_in_flight():
    assert [may_offer(n, 20) for n in (0, 39, 40, 41)] == [True, True, False, False]


def test_the_same_secret_draws_the_same_leases_and_another_secret_others():
    assert lease_of() == lease_of()
    other = draw_lease(
        b"x" * 32, counter=0, task="44" * 8, device="01" * 16, base=(5, "ab" * 32), now=1000, lease_s=600
    )
    assert len({lease_of().lease, lease_of(1).lease, lease_of(device="02" * 16).lease, other.lease}) == 4
    assert lease_of().seed != lease_of(1).seed


@given(st.integers(0, 10_000))
def test_a_seed_fits_the_offers_range(counter):
    assert 0 <= lease_of(counter).seed < 1 << 63


@pytest.mark.parametrize(
    ("current", "held", "now", "again"),
    [(5, 0, 1100, True), (6, 5, 1100, True), (6, 0, 1100, False), (9, 5, 1100, True), (5, 5, 1600, False)],
)
def test_a_live_lease_is_offered_again_while_its_base_can_be_had(current, held, now, again):
    assert is_offered_again(lease_of(), current_version=current, held_version=held, now=now) is again


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 10**4), st.integers(0, 10**5))
def test_the_retry_window_lies_between_its_bounds_and_widens_with_the_load(waiting, room, minimum, more):
    window = retry_window(500, waiting=waiting, room=room, minimum_s=minimum, maximum_s=minimum + more)
    assert 500 + minimum == window.earliest <= window.latest <= 500 + minimum + more
    busier = retry_window(500, waiting=waiting + room, room=room, minimum_s=minimum, maximum_s=minimum + more)
    assert busier.latest >= window.latest


RULES = RoundRules(goal_count=20, minimum_updates=5, report_deadline_s=3600)


@pytest.mark.parametrize(
    ("updates", "now", "cause"),
    [
        (20, 100, "goal count"),
        (19, 3699, None),
        (19, 3700, "report deadline"),
        (5, 3700, "report deadline"),
        (4, 99_999, None),
        (0, 99_999, None),
    ],
)
def test_a_round_closes_at_the_goal_or_at_the_deadline_with_enough(updates, now, cause):
    assert close_cause(RULES, updates=updates, opened_at=100, now=now) == cause


class NightRecords:
    """`records.Records` of the tests as far as check-ins, updates and steps need them, in memory.

    `limited` False reports an empty sky to whoever asks how many leases are in flight: that is the one difference.
    """

    def __init__(self, limited):
        self.limited = limited
        self.live, self.given, self.counts = {}, {}, {}
        self.steps, self.judged = 0, {}
        self.retry = {}

    def live_lease(self, task, device):
        return self.live.get(device)

    def count_in_flight(self, task, now):
        return sum(lease.deadline > now for lease in self.live.values()) if self.limited else 0

    def count_leases(self, task, device):
        return self.counts.get(device, 0)

    def add_lease(self, lease):
        self.live[lease.device] = self.given[lease.lease] = lease
        self.counts[lease.device] = self.counts.get(lease.device, 0) + 1

    def set_lease_state(self, lease, state):
        given = self.given[lease]
        if self.live.get(given.device) is given:
            del self.live[given.device]

    def set_retry(self, device, earliest, latest):
        self.retry[device] = (earliest, latest)

    def add_version(self, version):
        self.steps += 1

    def set_optimizer(self, population, state):
        pass

    def mark_used(self, ids, version):
        pass

    def put_sums(self, sums):
        pass

    def drop_sums(self, population, version):
        pass

    def keep_state(self, population, version, state):
        pass

    def announce(self, announcement):
        pass


class NightBlobs:
    """Model files of the tests that nobody fetches."""

    def put(self, data):
        return hashlib.sha256(data).hexdigest()


class Night:
    """Phones against the aggregator's own check-in, admission and rounds, in virtual time; the answers are sealed.

    A phone checks in at a random moment of the first six hours and comes again when it is told to. One in ten that got
    a lease never answers; the others take minutes: log-normal, median 15 minutes, one in twenty beyond an hour.
    """

    def __init__(self, aggregator, limited, phones, seed=1):
        with aggregator.database.reading() as records:
            stored = records.populations()[0]
            self.population = load(records, aggregator.blobs, stored, aggregator.keys)
        self.keys = aggregator.keys
        self.records = NightRecords(limited)
        self.plain = codec.encode(delta_of(1), None, kept=20, clip_norm=CLIP_NORM, entropy="none").data
        self.ephemeral = X25519PrivateKey.from_private_bytes(bytes([5]) * 32)
        self.rng = np.random.default_rng(seed)
        self.turned_away = 0
        self.events = [(NOW + hour * 3600, phone, None) for phone, hour in enumerate(self.rng.uniform(0, 6, phones))]
        heapq.heapify(self.events)

    def run(self):
        while self.events:
            now, phone, offer = heapq.heappop(self.events)
            if offer is not None:
                self.answer(int(now), phone, offer)
            elif now < NOW + 6 * 3600:
                self.check_in(int(now), phone)
        return self

    def check_in(self, now, phone):
        device = f"{phone:032x}"
        earliest, latest = self.records.retry.get(device, (0, 0))
        record = DeviceRecord(device, POPULATION, b"", "", NOW, retry_earliest=earliest, retry_latest=latest)
        asked = CheckIn(device=device, population=POPULATION, nonce="00" * 16, sent_at=now, held_version=0,
                        capabilities=CAPABILITIES, examples=50)  # fmt: skip
        reply = answer_check_in(self.records, self.population, record, asked, self.keys, Load(), now)
        if isinstance(reply, TurnedAway):
            self.turned_away += 1
            again = self.rng.uniform(reply.retry.earliest, reply.retry.latest + 1)
            heapq.heappush(self.events, (again, phone, None))
        elif self.rng.uniform() > 0.1:
            heapq.heappush(self.events, (now + 900 * float(self.rng.lognormal(0.0, 0.8)), phone, reply))

    def answer(self, now, phone, offer):
        header = encode_message(
            UpdateHeader(
                device=offer.device, population=offer.population, task=offer.task, lease=offer.lease,
                update_id="00" * 16, base_version=offer.base_version, layout_fingerprint=offer.layout_fingerprint,
                codec="topk4", examples=50, steps=4, loss_before=5.0, loss_after=4.5, finished_at=now,
                ephemeral_key=envelope.public_bytes(self.ephemeral),
            )
        )  # fmt: skip
        sealed = envelope.seal(self.plain, header=header, ephemeral=self.ephemeral, recipient=offer.sealing_key)
        row = UpdateRecord(
            id=1, update_id="00" * 16, device=offer.device, task=offer.task, lease=offer.lease, header=header,
            size_bytes=len(sealed), sha256="", chunk_bytes=1024, init_sha256="", finished_at=now, arrived_at=now,
            state="received",
        )  # fmt: skip
        self.records.set_lease_state(offer.lease, "answered")
        lease = self.records.given[offer.lease]
        judged = admit_one(self.population, self.records, row, sealed, lease, self.keys, now)
        self.records.judged[judged.verdict] = self.records.judged.get(judged.verdict, 0) + 1
        close_round(self.population, self.records, NightBlobs(), self.keys, now)

    @property
    def stale_share(self):
        judged = self.records.judged
        return judged.get("stale", 0) / (judged["accepted"] + judged.get("stale", 0))


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """The same night of ten thousand phones with the limit and without it."""
    aggregator = Aggregator(tmp_path_factory.mktemp("night") / "d").found(goal_count=GOAL, lease_seconds=6 * 3600)
    return [Night(aggregator, limited, 10_000).run() for limited in (True, False)]


def test_of_ten_thousand_phones_fewer_than_five_percent_are_refused_as_stale(nights):
    limited, _ = nights
    assert limited.records.judged["accepted"] > 1_000
    assert limited.records.steps > 10
    assert limited.turned_away > 0
    assert limited.stale_share < 0.05


def test_the_same_night_without_the_lease_limit_refuses_several_times_as_many(nights):
    limited, unlimited = nights
    assert unlimited.turned_away == 0
    assert set(unlimited.records.judged) <= {"accepted", "stale"}
    assert unlimited.stale_share > 3 * limited.stale_share
