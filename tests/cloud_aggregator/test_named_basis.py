"""The basis of a population: principal axes of its first version, named for ever, turned back at each step."""

import hashlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_aggregator import bases, bundle, population
from cloud_aggregator.errors import InvalidSetting, Refused, StorageFailed
from cloud_aggregator.named_basis import name_of
from cloud_aggregator.operator_view import status_view
from cloud_aggregator.round_replay import replay
from tests.cloud_aggregator import fleet as toy
from tests.cloud_aggregator.fleet import (
    CAPABILITIES,
    CLIP_NORM,
    COLUMNS,
    MANIFEST_KEY,
    NOW,
    POPULATION,
    ROWS,
    SIZE,
    Aggregator,
    delta_of,
    make_bundle,
    phones,
)
from tests.cloud_aggregator.fleet import settings as fleet_settings
from tests.cloud_aggregator.test_web import Site
from wire_contract import codec, envelope
from wire_contract.basis import decode_basis
from wire_contract.layout import Layout
from wire_contract.manifest import TensorEntry, encode_manifest
from wire_contract.messages import CodecPlan, Plan, TurnedAway
from wire_contract.vocabulary import Vocabulary

TOPK = CodecPlan(mode="topk", kept=0.25, bits=8)
PLAN = Plan(clip_norm=CLIP_NORM, weight_rule="uniform", codec=TOPK)
CAN_TURN = (*CAPABILITIES, "codec:basis", "codec:threshold", "codec:topk")
LONGEST_WAIT_S = 21_600
EMBEDDING = TensorEntry(name="rows", shape=(ROWS, COLUMNS), kind="float32", offsets=(0,))


def bundle_of_words(words: int = ROWS) -> bundle.Bundle:
    """The toy model with a vocabulary of as many words as it has rows."""
    plain = make_bundle()
    vocabulary = Vocabulary.from_words([chr(97 + i // 26) + chr(97 + i % 26) for i in range(words - 4)])
    manifest = msgspec.structs.replace(
        plain.manifest, vocabulary_sha256=vocabulary.sha256(), vocabulary_words=len(vocabulary)
    )
    signed = envelope.sign(MANIFEST_KEY, "manifest", encode_manifest(manifest))
    return bundle.check_bundle(signed, envelope.public_bytes(MANIFEST_KEY), plain.model, vocabulary.to_bytes())


def founded(folder, **changes) -> Aggregator:
    aggregator = Aggregator(folder)
    wanted = fleet_settings(**{"plan": PLAN, "principal_axes": True, **changes})
    with aggregator.database.transaction() as records:
        population.found(records, aggregator.blobs, aggregator.keys, bundle_of_words(), wanted, NOW)
    return aggregator


@pytest.fixture
def aggregator(tmp_path):
    return founded(tmp_path / "data")


def basis_of(aggregator: Aggregator):
    with aggregator.database.reading() as records:
        return decode_basis(aggregator.blobs.get(name_of(records, POPULATION)))


def seen_by_the_operator(aggregator):
    with aggregator.database.reading() as records:
        (view,) = status_view(records, NOW)["populations"]
    return view["codec"], view["basis"]


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(12, 50))
@settings(max_examples=40, deadline=None)
def test_the_axes_make_the_embeddings_squares_diagonal_the_largest_first_with_fixed_signs(seed, width, words):
    rng = np.random.default_rng(seed)
    embedding = (rng.normal(size=(words, width)) * np.linspace(3, 0.5, width)).astype(np.float32)
    layout = Layout((msgspec.structs.replace(EMBEDDING, shape=(words, width)),))
    data = bases.principal_axes({"rows": embedding}, layout, words=words)
    matrix = decode_basis(data).matrix.astype(np.float64)
    exact = embedding.astype(np.float64)
    diagonal = matrix.T @ exact.T @ exact @ matrix
    values = np.diag(diagonal)
    assert np.abs(diagonal - np.diag(values)).max() <= 1e-5 * values.max()
    assert (np.diff(values) <= 1e-5 * values.max()).all()
    # The singular values are another road to the same numbers.
    np.testing.assert_allclose(np.sqrt(values), np.linalg.svd(exact, compute_uv=False), rtol=1e-4)
    assert (matrix[np.argmax(np.abs(matrix), axis=0), np.arange(width)] > 0).all()
    assert bases.principal_axes({"rows": embedding}, layout, words=words) == data


def test_of_the_other_matrices_the_axis_that_fits_is_turned():
    shapes = {"rows": (40, 8), "kernel": (12, 16), "projection": (8, 12), "bias": (40,), "odd": (3, 5)}
    layout = Layout(
        tuple(TensorEntry(name=name, shape=shape, kind="float32", offsets=(0,)) for name, shape in shapes.items())
    )
    tensors = {name: np.random.default_rng(1).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    turned = decode_basis(bases.principal_axes(tensors, layout, words=40)).turned
    assert [(each.tensor, each.axis) for each in turned] == [("rows", 1), ("kernel", 1), ("projection", 0)]


def test_a_model_without_an_embedding_is_refused_at_the_import_and_nothing_is_kept(tmp_path):
    aggregator = Aggregator(tmp_path / "d")
    # The toy's own vocabulary has 7 words, its matrix 40 rows.
    with pytest.raises(Refused, match="matrix of 7 rows"):
        aggregator.found(plan=PLAN, principal_axes=True)
    with aggregator.database.reading() as records:
        assert records.populations() == [] and name_of(records, POPULATION) == ""


@pytest.mark.parametrize(
    ("plan", "principal_axes", "rule"),
    [
        (CodecPlan(mode="topk", basis="ab" * 32), False, "plan.codec.basis is the aggregator's"),
        (CodecPlan(mode="topk", basis="ab" * 32), True, "plan.codec.basis is the aggregator's"),
        (CodecPlan(), True, "principal_axes goes with .*got 'topk4'"),
        (CodecPlan(mode="shared"), True, "principal_axes goes with .*got 'shared'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_the_import(tmp_path, plan, principal_axes, rule):
    aggregator = Aggregator(tmp_path / "d")
    with pytest.raises(InvalidSetting, match=rule):
        aggregator.found(plan=msgspec.structs.replace(PLAN, codec=plan), principal_axes=principal_axes)
    with aggregator.database.reading() as records:
        assert records.populations() == []


def test_an_offer_names_the_basis_which_is_to_be_had_over_http_and_stays_over_restarts_and_releases(aggregator):
    (phone, *others) = phones(aggregator, 4)
    first = basis_of(aggregator)
    assert phone.lease(capabilities=CAN_TURN).plan.codec.basis == first.sha256
    assert seen_by_the_operator(aggregator) == ("topk", first.sha256)
    site = Site(aggregator)
    status, headers, body = site.ask("GET", f"/v1/bases/{first.sha256}")
    missing, *_ = site.ask("GET", f"/v1/bases/{'ab' * 32}")
    site.handle.stop()
    assert (status, hashlib.sha256(body).hexdigest(), missing) == (200, first.sha256, 404)
    assert headers["etag"] == f'"{first.sha256}"' and "immutable" in headers["cache-control"]
    play_round(aggregator, [phone, *others])
    aggregator.service.release(POPULATION, aggregator.clock.now())
    aggregator.restart()
    aggregator.clock.value += LONGEST_WAIT_S
    assert phone.lease(capabilities=CAN_TURN).plan.codec.basis == first.sha256


def test_a_population_without_one_names_none(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found(plan=PLAN)
    (phone,) = phones(aggregator, 1)
    assert phone.lease(capabilities=CAN_TURN).plan.codec.basis == ""
    assert seen_by_the_operator(aggregator) == ("topk", None)


@pytest.mark.parametrize("lacking", ["codec:basis", "codec:threshold", "codec:topk"])
def test_a_device_that_lacks_a_capability_is_turned_away_with_its_name(tmp_path, lacking):
    plan = msgspec.structs.replace(PLAN, codec=msgspec.structs.replace(TOPK, threshold=0.01))
    aggregator = founded(tmp_path / "d", plan=plan)
    (phone,) = phones(aggregator, 1)
    able = tuple(each for each in CAN_TURN if each != lacking)
    aggregator.take(phone.check_in_message(capabilities=able))
    aggregator.turn()
    reply = phone.replies()[-1]
    assert isinstance(reply, TurnedAway) and reply.reason == f"the task needs {lacking}"


def play_round(aggregator, fleet) -> np.ndarray:
    """Send one update each, already in the basis's axes; return the float64 sum of what they said."""
    sums = np.zeros(SIZE)
    aggregator.clock.value += LONGEST_WAIT_S
    for phone in fleet:
        offer = phone.lease(capabilities=CAN_TURN)
        encoded = codec.encode(
            delta_of(phone.number), None, kept=SIZE // 4, clip_norm=CLIP_NORM, entropy="zstd", bits=8
        )
        aggregator.take(*phone.update(offer, plain=encoded.data, codec="topk"))
        sums += encoded.sent.dense()
    aggregator.turn()
    return sums


def turned_back(aggregator, sums: np.ndarray) -> np.ndarray:
    """An independent reading: the toy's one matrix has the basis's axes as columns."""
    rows = np.einsum("rn,on->ro", sums[: ROWS * COLUMNS].reshape(ROWS, COLUMNS), basis_of(aggregator).matrix)
    return np.concatenate([rows.ravel(), sums[ROWS * COLUMNS :]])


def test_the_version_that_a_round_makes_is_what_the_sum_says_turned_back(aggregator):
    sums = play_round(aggregator, phones(aggregator, 4))
    assert aggregator.manifest().version == 2
    with aggregator.database.reading() as records:
        master, record = records.optimizer(POPULATION).master, records.version(POPULATION, 2)
    moved = turned_back(aggregator, sums / 4)
    np.testing.assert_allclose(master, make_bundle().weights + moved, rtol=0, atol=1e-6)
    assert np.abs(master - make_bundle().weights - sums / 4).max() > 1e-3, "the axes are others"
    assert record.delta_norm == pytest.approx(np.linalg.norm(sums / 4), rel=1e-5)


def test_a_restart_in_the_middle_of_a_round_and_a_replay_make_the_same_version(aggregator):
    fleet = phones(aggregator, 4)
    play_round(aggregator, fleet[:2])
    aggregator.restart()
    play_round(aggregator, fleet[2:])
    play_round(aggregator, fleet)
    assert aggregator.manifest().version == 3
    with aggregator.database.reading() as records:
        for version in (2, 3):
            again = replay(records, aggregator.blobs, aggregator.keys, records.populations()[0], version)
            assert again.identical and again.updates, again.differs


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_basis_that_cannot_be_read_stops_steps_until_it_is_back(aggregator, damage):
    fleet = phones(aggregator, 4)
    offers = [phone.lease(capabilities=CAN_TURN) for phone in fleet]
    path = aggregator.blobs.path(basis_of(aggregator).sha256)
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    aggregator.restart()
    plain = codec.encode(delta_of(1), None, kept=9, clip_norm=CLIP_NORM, entropy="zstd", bits=8).data
    for phone, offer in zip(fleet, offers, strict=True):
        aggregator.take(*phone.update(offer, plain=plain, codec="topk"))
    with pytest.raises(StorageFailed, match=path.name[:16]):
        aggregator.turn()
    assert all(phone.receipts() == [] for phone in fleet) and aggregator.manifest().version == 1
    path.write_bytes(whole)
    assert aggregator.turn().verdicts == {"accepted": 4}
    assert aggregator.manifest().version == 2


def test_the_toy_bundle_is_the_plain_one_but_for_its_words():
    assert (bundle_of_words().weights == make_bundle().weights).all() and toy.SIZE == SIZE
