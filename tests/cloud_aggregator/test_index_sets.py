import hashlib
import itertools
import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_aggregator import named_sets
from cloud_aggregator.errors import InvalidSetting, Refused, StorageFailed
from cloud_aggregator.index_sets import choose, choose_first, seed_of
from cloud_aggregator.named_sets import names_of
from cloud_aggregator.operator_view import status_view
from cloud_aggregator.round_replay import replay
from tests.cloud_aggregator.fleet import (
    CAPABILITIES,
    CLIP_NORM,
    COLUMNS,
    NOW,
    POPULATION,
    ROWS,
    SIZE,
    Aggregator,
    delta_of,
    make_bundle,
    phones,
    run_step,
    submit,
)
from tests.cloud_aggregator.fleet import settings as fleet_settings
from tests.cloud_aggregator.test_web import Site
from wire_contract import codec
from wire_contract.index_set import decode_index_set, encode_index_set
from wire_contract.layout import Layout
from wire_contract.messages import CodecPlan, Plan, TurnedAway
from wire_contract.patch import read_tensors
from wire_contract.ring import Ring

SHARED = CodecPlan(mode="shared", kept=0.25, bits=6, headroom_bits=8, unit=2.0**-8)
PLAN = Plan(clip_norm=CLIP_NORM, weight_rule="uniform", codec=SHARED)
CAN_SHARE = (*CAPABILITIES, "codec:shared")
COUNT = SIZE // 4


def walk(seed: int, versions: int, size: int = SIZE) -> list[np.ndarray]:
    """Versions of which few values move, and those by different lengths."""
    rng = np.random.default_rng(seed)
    version = rng.normal(size=size).astype(np.float32)
    out = [version]
    for _ in range(versions - 1):
        step = np.where(rng.random(size) < 0.3, rng.standard_t(2, size), 0.0) * 0.01
        out.append((out[-1] + step).astype(np.float32))
    return out


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 300), st.floats(0.0, 1.0), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_the_set_is_those_that_moved_most_and_a_drawn_share(seed, versions, count, share, draw):
    history = walk(seed, versions, 300)
    chosen = choose(history, size=300, count=count, explore_share=share, seed=draw)
    assert len(chosen) == count and (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < 300
    # An independent reading: a sort of float64 scores in pure Python.
    scores = [sum((float(b[i]) - float(a[i])) ** 2 for a, b in itertools.pairwise(history)) for i in
              range(300)]  # fmt: skip
    best = sorted((i for i in range(300) if scores[i] > 0), key=lambda i: (-np.float32(np.sqrt(scores[i])), i))
    wanted = count - round(share * count)
    assert set(best[:wanted]) <= set(chosen.tolist())
    assert np.array_equal(chosen, choose(iter(history), size=300, count=count, explore_share=share, seed=draw))


def test_ties_go_to_the_lower_index_and_what_never_moved_is_only_drawn():
    before, after = np.zeros(100, np.float32), np.zeros(100, np.float32)
    after[[10, 20, 30]] = 1.0
    assert choose([before, after], size=100, count=2, explore_share=0.0, seed=5).tolist() == [10, 20]
    chosen = [choose([before, after], size=100, count=50, explore_share=0.0, seed=seed) for seed in range(4)]
    assert all({10, 20, 30} <= set(each.tolist()) for each in chosen)
    assert len({tuple(each) for each in chosen}) == 4, "the rest depends on the seed"
    assert any(each[-1] >= 90 for each in chosen), "and is not the first that come"


def test_the_drawn_share_reaches_every_value_alike():
    before, after = np.zeros(200, np.float32), np.zeros(200, np.float32)
    after[:100] = 1.0
    times = np.zeros(200)
    for seed in range(400):
        times[choose([before, after], size=200, count=40, explore_share=0.5, seed=seed)] += 1
    # 20 of the 180 that are left each time: 44.4 expected, a standard deviation of 6.3.
    assert times[:20].tolist() == [400.0] * 20
    assert 400 * 20 / 180 - 30 < times[20:].min() <= times[20:].max() < 400 * 20 / 180 + 30


def test_without_a_history_half_of_the_set_is_the_most_frequent_words_rows():
    layout = Layout.of(make_bundle().manifest)
    chosen = choose_first(layout, words=ROWS, count=COUNT, seed=1)
    # 45 of 90 places: five rows of eight columns and a bias each.
    rows, biases = set(range(5 * COLUMNS)), set(range(ROWS * COLUMNS, ROWS * COLUMNS + 5))
    assert rows | biases <= set(chosen.tolist()) and len(chosen) == COUNT
    other = choose_first(layout, words=ROWS, count=COUNT, seed=2)
    assert len(set(chosen.tolist()) & set(other.tolist())) < 75


def test_a_model_without_rows_of_words_begins_with_a_drawn_set():
    layout = Layout.of(make_bundle().manifest)
    drawn = {tuple(choose_first(layout, words=7, count=9, seed=seed)) for seed in range(5)}
    assert len(drawn) == 5
    assert choose_first(layout, words=7, count=SIZE, seed=1).tolist() == list(range(SIZE))


def test_seeds_are_public_and_differ_by_population_and_version():
    expected = hashlib.sha256(b"edge-federation index set v1\ntoy\n7").digest()[:8]
    assert seed_of("toy", 7) == int.from_bytes(expected, "big")
    assert len({seed_of("toy", 7), seed_of("toy", 8), seed_of("to", 77)}) == 3


@pytest.fixture
def aggregator(tmp_path):
    return Aggregator(tmp_path / "data").found(plan=PLAN)


def set_of(aggregator: Aggregator, offer):
    index_set = decode_index_set(aggregator.blobs.get(offer.plan.codec.index_set))
    assert index_set.sha256 == offer.plan.codec.index_set
    return index_set


def ring(plan: CodecPlan = SHARED) -> Ring:
    return Ring(plan.unit, plan.bits, plan.headroom_bits)


def shared_update(aggregator, phone, offer, index_set=None, delta=None, clip_norm=CLIP_NORM, **choices):
    index_set = index_set or set_of(aggregator, offer)
    vector = delta_of(phone.number) if delta is None else delta
    encoded = codec.encode_shared(vector, None, index_set=index_set, ring=ring(), clip_norm=clip_norm)
    return phone.update(offer, **{"plain": encoded.data, "codec": "shared", **choices}), encoded.sent


def test_an_offer_names_a_set_that_is_to_be_had_over_http(aggregator):
    (phone,) = phones(aggregator, 1)
    offer = phone.lease(capabilities=CAN_SHARE)
    index_set = set_of(aggregator, offer)
    assert (index_set.size, len(index_set.indices)) == (SIZE, COUNT)
    assert seen_by_the_operator(aggregator) == ("shared", index_set.sha256)
    layout = Layout.of(make_bundle().manifest)
    words = make_bundle().manifest.vocabulary_words
    expected = choose_first(layout, words=words, count=COUNT, seed=seed_of(POPULATION, 1))
    assert np.array_equal(index_set.indices, expected), "anybody can work it out from public things"
    site = Site(aggregator)
    status, headers, body = site.ask("GET", f"/v1/index-sets/{index_set.sha256}")
    missing, *_ = site.ask("GET", f"/v1/index-sets/{'ab' * 32}")
    site.handle.stop()
    assert (status, hashlib.sha256(body).hexdigest(), missing) == (200, index_set.sha256, 404)
    assert headers["etag"] == f'"{index_set.sha256}"' and "immutable" in headers["cache-control"]


def test_a_device_that_cannot_do_it_is_told_what_is_lacking(aggregator):
    (phone,) = phones(aggregator, 1)
    aggregator.take(phone.check_in_message())
    aggregator.turn()
    reply = phone.replies()[-1]
    assert isinstance(reply, TurnedAway) and "codec:shared" in reply.reason


def seen_by_the_operator(aggregator):
    with aggregator.database.reading() as records:
        (view,) = status_view(records, NOW)["populations"]
    return view["codec"], view["index_set"]


def test_a_population_of_the_other_mode_names_no_set(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    (phone,) = phones(aggregator, 1)
    assert phone.lease().plan.codec.index_set == ""
    assert seen_by_the_operator(aggregator) == ("topk4", None)


def test_a_round_of_shared_updates_makes_the_version_that_their_sum_says(aggregator):
    fleet = phones(aggregator, 4)
    before = aggregator.manifest()
    sums = np.zeros(SIZE)
    for phone in fleet:
        messages, sent = shared_update(aggregator, phone, phone.lease(capabilities=CAN_SHARE))
        aggregator.take(*messages)
        sums[sent.indices] += sent.values
    aggregator.turn()
    after = aggregator.manifest()
    assert after.version == before.version + 1
    with aggregator.database.reading() as records:
        master = records.optimizer(POPULATION).master
    np.testing.assert_allclose(master, make_bundle().weights + (sums / 4).astype(np.float32), rtol=0, atol=1e-6)


def test_half_a_round_of_shared_updates_survives_a_restart(aggregator):
    fleet = phones(aggregator, 4)
    offers = {phone: phone.lease(capabilities=CAN_SHARE) for phone in fleet}
    for phone in fleet[:2]:
        aggregator.take(*shared_update(aggregator, phone, offers[phone])[0])
    aggregator.turn()
    aggregator.restart()
    for phone in fleet[2:]:
        aggregator.take(*shared_update(aggregator, phone, offers[phone])[0])
    assert aggregator.turn().steps == ((POPULATION, 2),)


def play_round(aggregator, fleet):
    for phone in fleet:
        if phone.replies():
            phone.rest()
        aggregator.take(*shared_update(aggregator, phone, phone.lease(capabilities=CAN_SHARE))[0])
        aggregator.turn()


def test_a_release_names_a_new_set_made_of_what_moved_and_older_ones_are_still_read(aggregator):
    late, *fleet = phones(aggregator, 5)
    offer = late.lease(capabilities=CAN_SHARE)
    first = set_of(aggregator, offer)
    play_round(aggregator, fleet)
    assert aggregator.manifest().version == 2
    aggregator.service.release(POPULATION, aggregator.clock.now())
    fleet[0].rest()
    renewed = set_of(aggregator, fleet[0].lease(capabilities=CAN_SHARE))
    assert renewed.sha256 != first.sha256
    manifest = make_bundle().manifest
    layout, vectors = Layout.of(manifest), []
    for version in (1, 2):
        with aggregator.database.reading() as records:
            sha256 = records.version(POPULATION, version).sha256
        vectors.append(layout.flatten(read_tensors(aggregator.blobs.get(sha256), manifest)))
    expected = choose(vectors, size=SIZE, count=COUNT, explore_share=0.15, seed=seed_of(POPULATION, 2))
    assert np.array_equal(renewed.indices, expected), "anybody can work it out from what was published"
    # The lease that went out under the first set is admitted with the first set, also after a restart.
    messages, sent = shared_update(aggregator, late, offer, first)
    aggregator.restart()
    receipt, row = submit(aggregator, late, messages)
    assert (receipt.verdict, receipt.staleness) == ("accepted", 1)
    assert row.norm == pytest.approx(sent.norm(), rel=1e-12)


def test_where_the_optimizer_keeps_a_second_moment_the_set_is_the_largest_of_it(aggregator):
    _, *fleet = phones(aggregator, 5)
    play_round(aggregator, fleet)
    with aggregator.database.transaction() as records:
        state = records.optimizer(POPULATION)
        moment = np.random.default_rng(8).random(SIZE).astype(np.float32)
        records.set_optimizer(POPULATION, replace(state, v=moment))
    aggregator.service.release(POPULATION, aggregator.clock.now())
    fleet[0].rest()
    renewed = set_of(aggregator, fleet[0].lease(capabilities=CAN_SHARE))
    drawn = round(0.15 * COUNT)
    best = set(np.argsort(-moment, kind="stable")[: COUNT - drawn].tolist())
    assert best <= set(renewed.indices.tolist())
    assert len(renewed.indices) == COUNT


def test_a_replay_rebuilds_a_round_of_the_set_before_the_last(aggregator):
    fleet = phones(aggregator, 4)
    play_round(aggregator, fleet)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    play_round(aggregator, fleet)
    assert aggregator.manifest().version == 3
    with aggregator.database.reading() as records:
        assert len(names_of(records, POPULATION)) == 2
        for version in (2, 3):
            again = replay(records, aggregator.blobs, aggregator.keys, records.populations()[0], version)
            assert again.identical, again.differs


def test_an_update_of_an_older_set_whose_file_cannot_be_read_waits_for_it(aggregator):
    late, *fleet = phones(aggregator, 5)
    offer = late.lease(capabilities=CAN_SHARE)
    first = set_of(aggregator, offer)
    play_round(aggregator, fleet)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    messages, _ = shared_update(aggregator, late, offer, first)
    path = aggregator.blobs.path(first.sha256)
    hidden = path.rename(path.with_suffix(".hidden"))
    aggregator.restart()
    aggregator.take(*messages)
    with pytest.raises(StorageFailed, match="is gone"):
        aggregator.turn()
    hidden.rename(path)
    assert aggregator.turn().verdicts == {"accepted": 1}


def test_a_release_that_is_held_names_no_set(aggregator):
    with aggregator.database.reading() as records:
        before = records.meta(f"index sets of {POPULATION}")
    with pytest.raises(Refused):
        aggregator.service.release(POPULATION, NOW)
    with aggregator.database.reading() as records:
        assert records.meta(f"index sets of {POPULATION}") == before
        assert len(json.loads(before)) == 1


@pytest.mark.parametrize(
    ("case", "verdict", "reason"),
    [
        ("unnamed set", "unsupported", "no plan of this population has named"),
        ("topk bytes", "malformed", "the plan's codec is shared"),
        ("topk header", "unsupported", "the plan's codec is shared"),
        ("another ring", "malformed", "the plan's ring"),
        ("too long", "norm_exceeded", "clip norm"),
    ],
)
def test_what_is_not_the_plans_is_refused(aggregator, case, verdict, reason):
    (phone,) = phones(aggregator, 1)
    offer = phone.lease(capabilities=CAN_SHARE)
    index_set = set_of(aggregator, offer)
    choices = {}
    clip_norm = CLIP_NORM
    delta = delta_of(1)
    match case:
        case "unnamed set":
            index_set = decode_index_set(encode_index_set(SIZE, np.arange(COUNT)))
        case "topk bytes":
            choices["plain"] = codec.encode(delta, None, kept=COUNT, clip_norm=CLIP_NORM, entropy="zstd").data
        case "topk header":
            choices["codec"] = "topk4"
        case "another ring":
            wide = Ring(SHARED.unit, 8, 8)
            choices["plain"] = codec.encode_shared(
                delta, None, index_set=index_set, ring=wide, clip_norm=CLIP_NORM
            ).data  # fmt: skip
        case "too long":
            delta, clip_norm = np.full(SIZE, 1.0, np.float32), 100.0
    messages, _ = shared_update(aggregator, phone, offer, index_set, delta, clip_norm, **choices)
    receipt, row = submit(aggregator, phone, messages)
    assert receipt.verdict == row.verdict == verdict
    assert reason in receipt.reason
    assert aggregator.manifest().version == 1


def test_a_set_file_that_is_damaged_stops_the_service_rather_than_every_update(aggregator):
    (phone,) = phones(aggregator, 1)
    offer = phone.lease(capabilities=CAN_SHARE)
    path = aggregator.blobs.path(offer.plan.codec.index_set)
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    messages, _ = shared_update(aggregator, phone, offer, decode_index_set(whole))
    aggregator.restart()
    aggregator.take(*messages)
    with pytest.raises(StorageFailed):
        aggregator.turn()
    path.write_bytes(whole)
    assert aggregator.turn().verdicts == {"accepted": 1}


@pytest.mark.parametrize(
    ("plan", "rule"),
    [
        (CodecPlan(mode="shared", bits=1), "plan.codec: .*2 to 16 bits"),
        (CodecPlan(mode="shared", unit=0.1), "plan.codec: .*float32"),
        (CodecPlan(mode="shared", index_set="ab" * 32), "plan.codec.index_set is the aggregator's"),
        (CodecPlan(mode="topk", bits=3), "plan.codec: .*bits"),
        (CodecPlan(mode="topk9"), "plan.codec: .*mode"),
        (CodecPlan(entropy="lzma"), "plan.codec: .*entropy"),
    ],
)
def test_settings_whose_codec_cannot_be_are_refused_at_the_import(tmp_path, plan, rule):
    aggregator = Aggregator(tmp_path / "d")
    with pytest.raises(InvalidSetting, match=rule):
        aggregator.found(plan=msgspec.structs.replace(PLAN, codec=plan))
    with aggregator.database.reading() as records:
        assert records.populations() == []


def test_a_set_whose_updates_would_be_too_long_is_refused_at_the_import(tmp_path, monkeypatch):
    aggregator = Aggregator(tmp_path / "d")
    monkeypatch.setattr(named_sets, "MAX_UPDATE_BYTES", 1024 + 158)
    aggregator.found(plan=PLAN)
    with aggregator.database.transaction() as records, pytest.raises(InvalidSetting, match="91 values take 160 bytes"):
        wide = CodecPlan(mode="shared", kept=91 / SIZE, bits=6, headroom_bits=8)
        plan = msgspec.structs.replace(PLAN, codec=wide)
        named_sets.name_first(records, aggregator.blobs, make_bundle().manifest, fleet_settings(plan=plan))


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_population_whose_codes_have_another_width_takes_those_and_no_others(tmp_path, bits):
    topk = CodecPlan(mode="topk", kept=0.25, bits=bits)
    aggregator = Aggregator(tmp_path / "d").found(plan=msgspec.structs.replace(PLAN, codec=topk))
    one, two = phones(aggregator, 2)
    can = (*CAPABILITIES, "codec:topk")
    for phone, width, verdict in ((one, bits, "accepted"), (two, 4, "malformed")):
        plain = codec.encode(
            delta_of(phone.number), None, kept=COUNT, clip_norm=CLIP_NORM, entropy="zstd", bits=width
        ).data  # fmt: skip
        messages = phone.update(phone.lease(capabilities=can), plain=plain, codec="topk")
        assert submit(aggregator, phone, messages)[0].verdict == verdict


def test_the_first_form_goes_on_as_it_was(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    run_step(aggregator, phones(aggregator, 4))
    assert aggregator.turn().verdicts == {"accepted": 4}
