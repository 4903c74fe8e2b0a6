"""Both kernels give the contract's decoder's results and Python's integers' sums, and refuse what they refuse alike."""

import random
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_aggregator import aggregation_kernel, compiled_kernel
from cloud_aggregator.aggregation_kernel import (
    KernelUnavailable,
    NumpyKernel,
    PatientKernel,
    choose_kernel,
    kernel_of,
)
from cloud_aggregator.buffer import MAX_UPDATES, Accumulator, Buffer, close, fold, merge
from cloud_aggregator.compiled_kernel import PLAIN, CompiledKernel
from tests.fuzzing import update_targets
from tests.fuzzing.harness import fuzz
from tests.fuzzing.kernels import KernelPair
from wire_contract import codec
from wire_contract.errors import ContractError, Malformed
from wire_contract.index_set import decode_index_set, encode_index_set
from wire_contract.messages import CodecPlan
from wire_contract.ring import Ring

SIZE = 3_000


def make_kernel(name):
    if name == "loops without a compiler":
        return CompiledKernel(PLAIN)
    return choose_kernel(name)


@pytest.fixture(scope="module", params=["numpy", "numba", "loops without a compiler"])
def kernel(request):
    return make_kernel(request.param)


def delta(seed, size=SIZE):
    rng = np.random.default_rng(seed)
    strength = np.repeat(rng.lognormal(0, 2, -(-size // 50)), 50)[:size]
    return (rng.standard_t(3, size) * strength * 1e-3).astype(np.float32)


def update(seed, *, kept=60, bits=4, entropy="zstd", size=SIZE, clip_norm=10.0):
    made = codec.encode(delta(seed, size), None, kept=kept, clip_norm=clip_norm, entropy=entropy, bits=bits)
    return made.data


def index_set(seed=1, count=200, size=SIZE):
    rng = np.random.default_rng(seed)
    return decode_index_set(encode_index_set(size, np.sort(rng.choice(size, count, replace=False))))


def shared_update(seed, chosen, ring):
    return codec.encode_shared(delta(seed), None, index_set=chosen, ring=ring, clip_norm=10.0).data


def integer_sums(data, weight, index_set=None):
    """What Python's integers and fractions make of an update."""
    vector = codec.decode(data, size=SIZE, index_set=index_set)
    sums = [0] * SIZE
    for index, value in zip(vector.indices.tolist(), vector.values.tolist(), strict=True):
        sums[index] += round(Fraction(value * weight) * (1 << 32))
    return sums


@pytest.mark.parametrize("entropy", ["none", "zstd", "deflate"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kept", [1, 2, 7, 60, 333])
def test_a_kernel_decodes_what_the_contract_decodes(kernel, entropy, bits, kept):
    data = update(kept + bits, kept=kept, bits=bits, entropy=entropy)
    wanted, seen = codec.decode(data, size=SIZE), kernel.decode(data, size=SIZE)
    assert seen.indices.tolist() == wanted.indices.tolist()
    assert seen.values.tobytes() == wanted.values.tobytes()
    assert (seen.size, seen.indices.dtype, seen.norm()) == (wanted.size, wanted.indices.dtype, wanted.norm())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_sum_is_every_entry_rounded_once_half_to_even(kernel, bits):
    data, weight = update(3, bits=bits, kept=301), 0.7 / 3
    into = Accumulator.empty(SIZE)
    kernel.fold(into, data, weight)
    assert into.sums.tolist() == integer_sums(data, weight)
    assert into.count == 1


@pytest.mark.parametrize(
    "ring", [Ring(2.0**-10, 8, 4), Ring(2.0**-6, 4, 0), Ring(0.013671875, 16, 16), Ring(2.0**-3, 2, 1)]
)
def test_a_shared_update_is_decoded_and_summed_alike(kernel, ring):
    chosen = index_set()
    data = shared_update(4, chosen, ring)
    wanted = codec.decode(data, size=SIZE, index_set=chosen)
    assert wanted.values.any()
    seen = kernel.decode(data, size=SIZE, index_set=chosen)
    assert seen.indices.tolist() == wanted.indices.tolist()
    assert seen.values.tobytes() == wanted.values.tobytes()
    into = Accumulator.empty(SIZE)
    kernel.fold(into, data, 0.3, index_set=chosen)
    assert into.sums.tolist() == integer_sums(data, 0.3, chosen)


def test_the_compiled_kernel_does_its_own_work(monkeypatch):
    """Otherwise the tests above would compare the reference with itself."""
    chosen, ring = index_set(), Ring(2.0**-10, 8, 4)
    compiled = make_kernel("numba")
    monkeypatch.setattr(codec, "decode", None)
    into = Accumulator.empty(SIZE)
    for bits in (1, 2, 4, 8):
        compiled.fold(into, update(1, bits=bits), 1.0)
    compiled.fold(into, shared_update(4, chosen, ring), 1.0, index_set=chosen)
    assert (compiled.name, into.count) == ("numba", 5)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(2.0**-20, 1.0)), min_size=1, max_size=12), st.data())
@settings(max_examples=40, deadline=None)
def test_any_order_any_shards_and_any_mixture_of_kernels_give_bitwise_the_same_sums(work, data):
    kernels = [make_kernel(name) for name in ("numpy", "numba")]
    made = {seed: update(seed) for seed, _ in work}
    whole = Buffer.empty(SIZE)
    for seed, weight in work:
        whole = fold(whole, codec.decode(made[seed], size=SIZE), weight)
    shards = [Accumulator.empty(SIZE) for _ in range(data.draw(st.sampled_from([1, 4, 64])))]
    for seed, weight in data.draw(st.permutations(work)):
        data.draw(st.sampled_from(kernels)).fold(data.draw(st.sampled_from(shards)), made[seed], weight)
    total = Accumulator.empty(SIZE)
    for shard in data.draw(st.permutations(shards)):
        total.merge(shard)
    assert total.sums.tobytes() == whole.sums.tobytes()
    assert total.count == whole.count
    assert close(total, 5).tobytes() == close(whole, 5).tobytes()


def test_what_was_folded_can_be_taken_out_again_to_the_last_bit(kernel):
    into = Accumulator.empty(SIZE)
    kernel.fold(into, update(1), 0.37)
    before = into.value()
    kernel.fold(into, update(2), 0.61)
    into.unfold(codec.decode(update(2), size=SIZE), 0.61)
    assert (into.sums.tobytes(), into.count) == (before.sums.tobytes(), 1)
    into.unfold(codec.decode(update(1), size=SIZE), 0.37)
    assert (into.sums.any(), into.count) == (False, 0)
    with pytest.raises(ValueError, match="an empty buffer holds no update"):
        into.unfold(codec.decode(update(1), size=SIZE), 0.37)


def test_a_value_handed_out_does_not_change_with_the_accumulator(kernel):
    into = Accumulator.empty(SIZE)
    kernel.fold(into, update(1), 1.0)
    value = into.value()
    kept = value.sums.tobytes()
    kernel.fold(into, update(2), 1.0)
    assert (value.sums.tobytes(), value.count) == (kept, 1)
    again = Accumulator.of(value)
    kernel.fold(again, update(2), 1.0)
    assert again.sums.tobytes() == into.sums.tobytes()
    assert value.sums.tobytes() == kept


def extreme(sign):
    """One value of +-64, the largest that the buffer takes, as an update of a model of one value."""
    code = 0 if sign > 0 else 8
    return struct.pack("<4sBBBBIIfI", b"EFU1", 1, 0, 1, 0, 1, 1, 64.0, 2) + bytes([0, code])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_that_the_bounds_allow_does_not_overflow(kernel, sign):
    """2^20 updates of the extreme value at weight 1, made by doubling shards: 2^6 x 2^32 x 2^20 = 2^58."""
    shard = Accumulator.empty(1)
    kernel.fold(shard, extreme(sign), 1.0)
    whole = shard.value()
    while whole.count < MAX_UPDATES:
        whole = merge(whole, whole)
    assert whole.count == MAX_UPDATES
    assert int(whole.sums[0]) == sign * 2**58
    assert close(whole, MAX_UPDATES)[0] == sign * 64.0
    full = Accumulator.of(whole)
    with pytest.raises(ValueError, match="at most 1048576 updates"):
        kernel.fold(full, extreme(sign), 1.0)
    with pytest.raises(ValueError, match="at most 1048576 updates"):
        full.merge(shard)
    assert (int(full.sums[0]), full.count) == (sign * 2**58, MAX_UPDATES)


def header(**changes):
    fields = {"magic": b"EFU1", "mode": 1, "entropy": 0, "step": 4, "width": 0, "n": SIZE, "k": 2, "scale": 1.0,
              "body": bytes([3, 5, 0x21])}  # fmt: skip
    fields.update(changes)
    length = fields.pop("length", len(fields["body"]))
    *head, body = fields.values()
    return struct.pack("<4sBBBBIIfI", *head, length) + body


REFUSED = {
    "another magic": {"magic": b"EFU2"},
    "another mode": {"mode": 3},
    "a shared update without its set": {"mode": 2, "width": 8},
    "an unknown stage": {"entropy": 3},
    "no step": {"step": 0},
    "levels over too many octaves": {"width": 8, "step": 16, "body": bytes([3, 5, 1, 2])},
    "an unknown width": {"width": 3},
    "four bits written as 4": {"width": 4},
    "another model": {"n": SIZE + 1},
    "more values than the model": {"k": SIZE + 1},
    "more values than bytes": {"k": 3},
    "fewer values than bytes": {"k": 1},
    "a scale of zero": {"scale": 0.0},
    "a negative scale": {"scale": -1.0},
    "a scale that is no number": {"scale": float("nan")},
    "an infinite scale": {"scale": float("inf")},
    "a length that lies": {"length": 4},
    "bytes behind": {"body": bytes([3, 5, 0x21, 0]), "length": 3},
    "an index beyond the model": {"body": bytes([0x80 | (SIZE - 2) & 127, (SIZE - 2) >> 7, 1, 0x21])},
    "a padded gap": {"body": bytes([0x83, 0, 5, 0x21])},
    "a gap of five bytes": {"k": 1, "body": bytes([0xFF, 0xFF, 0xFF, 0xFF, 1, 1])},
    "a gap that does not end": {"body": bytes([3, 0x85, 0x21])},
    "a spare nibble": {"k": 1, "body": bytes([3, 0x21])},
    "spare codes of one bit": {"width": 1, "body": bytes([3, 5, 4])},
    "no zstd frame": {"entropy": 1},
    "no deflate stream": {"entropy": 2, "body": b"\xff\xff\xff"},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_has_the_contracts_words_and_leaves_the_sums_as_they_were(kernel, changes):
    data = header(**changes)
    with pytest.raises(ContractError) as wanted:
        codec.decode(data, size=SIZE)
    into = Accumulator.empty(SIZE)
    kernel.fold(into, update(1), 1.0)
    before = into.sums.tobytes()
    with pytest.raises(ContractError) as seen:
        kernel.fold(into, data, 1.0)
    assert (type(seen.value), str(seen.value)) == (type(wanted.value), str(wanted.value))
    assert (into.sums.tobytes(), into.count) == (before, 1)
    with pytest.raises(type(wanted.value)):
        kernel.decode(data, size=SIZE)


def test_the_update_that_is_broken_above_is_good(kernel):
    assert kernel.decode(header(), size=SIZE).indices.tolist() == [3, 9]
    assert kernel.decode(header(k=0, body=b""), size=SIZE).indices.tolist() == []


@pytest.mark.parametrize("broken", ["another set", "a cut body", "a spare bit", "beyond the range", "another model"])
def test_a_broken_shared_update_leaves_the_sums_as_they_were(kernel, broken):
    chosen, ring = index_set(count=201), Ring(2.0**-10, 7, 2)
    data = bytearray(shared_update(4, chosen, ring))
    if broken == "another set":
        chosen = index_set(2, count=201)
    elif broken == "a cut body":
        del data[-1]
    elif broken == "a spare bit":
        data[-1] |= 0x80
    elif broken == "beyond the range":
        # The first number is 9 bits behind header and set id: 64 is one more than 7 bits hold.
        data[32:34] = bytes([64, data[33] & 0xFE])
    else:
        data[8] ^= 1
    into = Accumulator.empty(SIZE)
    with pytest.raises(Malformed):
        kernel.fold(into, bytes(data), 1.0, index_set=chosen)
    assert (into.sums.any(), into.count) == (False, 0)


def test_a_value_above_the_bound_is_refused_before_anything_is_added(kernel):
    into = Accumulator.empty(SIZE)
    with pytest.raises(ValueError, match=r"within 64\.0, got"):
        kernel.fold(into, header(scale=65.0, body=bytes([3, 5, 0x20])), 1.0)
    assert (into.sums.any(), into.count) == (False, 0)
    # No entry has the first level here, and the others lie within the bound.
    kernel.fold(into, header(scale=65.0, body=bytes([3, 5, 0x21])), 1.0)
    assert into.count == 1


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.5, float("nan")])
def test_a_weight_out_of_range_is_refused_before_anything_is_added(kernel, weight):
    into = Accumulator.empty(SIZE)
    with pytest.raises(ValueError, match="a weight is above 0 and at most 1"):
        kernel.fold(into, update(1), weight)
    assert (into.sums.any(), into.count) == (False, 0)


@pytest.mark.parametrize(
    "plan",
    [
        CodecPlan(kept=60 / SIZE),
        CodecPlan(mode="topk", bits=8, kept=60 / SIZE),
        CodecPlan(mode="topk", bits=1, kept=0.5),
        CodecPlan(mode="topk", bits=8, kept=59 / SIZE),
        CodecPlan(mode="shared"),
    ],
)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_an_update_of_another_plan_is_refused_alike(kernel, plan, bits):
    data = update(1, bits=bits)
    try:
        wanted = codec.decode(data, size=SIZE, plan=plan).values.tobytes()
    except ContractError as e:
        with pytest.raises(type(e)):
            kernel.decode(data, size=SIZE, plan=plan)
    else:
        assert kernel.decode(data, size=SIZE, plan=plan).values.tobytes() == wanted


def test_an_update_that_keeps_more_than_its_plan_says_is_refused_by_the_compiled_kernel_too(kernel):
    assert len(kernel.decode(update(1), size=SIZE, plan=CodecPlan(kept=60 / SIZE)).indices) == 60
    with pytest.raises(Malformed, match="the plan keeps at most 59 of 3000 values, the update has 60"):
        kernel.decode(update(1), size=SIZE, plan=CodecPlan(kept=59 / SIZE))


@pytest.mark.parametrize("entropy", ["none", "zstd", "deflate"])
def test_mutated_updates_are_accepted_or_refused_alike_with_the_same_sums(entropy):
    """The fuzz harness does this at length; here a thousand."""
    rng = random.Random(entropy)
    good = [update(seed, kept=40, bits=bits, entropy=entropy) for seed in range(3) for bits in (1, 2, 4, 8)]
    kernels = NumpyKernel(), make_kernel("numba")
    accepted = 0
    for _ in range(1_000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 2)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        seen = []
        for each in kernels:
            into = Accumulator.empty(SIZE)
            try:
                each.fold(into, bytes(data), 0.5)
            except (ContractError, ValueError) as e:
                seen.append((type(e), str(e), into.sums.any()))
            else:
                seen.append(into.sums.tobytes())
        assert seen[0] == seen[1]
        accepted += isinstance(seen[0], bytes)
    assert accepted > 20


def test_the_fuzz_corpus_of_updates_is_refused_alike_or_makes_the_same_sums():
    pair = KernelPair(NumpyKernel(), make_kernel("numba"))
    updates = [target for target in update_targets.targets() if target.name.startswith("codec")]
    fuzz(updates, 60_000, 20_261_124, pair.see)
    assert pair.disagreements == []
    assert pair.seen == 60_000
    assert pair.accepted > 1_000


def test_kernels_that_disagree_are_seen():
    class Lenient(NumpyKernel):
        def fold(self, into, data, weight, *, index_set=None):
            into.sums[0] += 1
            super().fold(into, data, weight, index_set=index_set)

    pair = KernelPair(NumpyKernel(), Lenient())
    fuzz([update_targets.targets()[0]], 100, 1, pair.see)
    assert "refused, and the sums are others" in "".join(pair.disagreements)


def test_auto_begins_with_numpy_and_compiles_when_it_pays():
    patient = PatientKernel(after=2)
    into = Accumulator.empty(SIZE)
    names = []
    for seed in range(4):
        patient.fold(into, update(seed), 0.5)
        names.append(patient.name)
    assert names == ["numpy", "numpy", "numba", "numba"]
    other = Accumulator.empty(SIZE)
    for seed in range(4):
        NumpyKernel().fold(other, update(seed), 0.5)
    assert into.sums.tobytes() == other.sums.tobytes()


def test_auto_stays_with_numpy_where_nothing_compiles(monkeypatch):
    def missing():
        raise KernelUnavailable("numba cannot be imported: No module named 'numba'")

    monkeypatch.setattr(aggregation_kernel, "compiled_kernel", missing)
    patient = PatientKernel(after=0)
    into = Accumulator.empty(SIZE)
    patient.fold(into, update(1), 0.5)
    assert (patient.name, into.count) == ("numpy", 1)
    assert "numba cannot be imported" in patient.unavailable
    with pytest.raises(KernelUnavailable):
        choose_kernel("numba")
    with pytest.raises(ValueError, match=r"a kernel is one of .*, got 'cuda'"):
        choose_kernel("cuda")


def test_the_environment_chooses_the_kernel():
    assert isinstance(kernel_of({}), PatientKernel)
    assert isinstance(kernel_of({"EDGE_FEDERATION_KERNEL": "numpy"}), NumpyKernel)
    assert kernel_of({"EDGE_FEDERATION_KERNEL": "numba"}).name == "numba"
    with pytest.raises(ValueError, match="got ''"):
        kernel_of({"EDGE_FEDERATION_KERNEL": ""})


def test_the_kernel_compiles_where_the_cache_folder_cannot_be_written(monkeypatch, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("no folder")
    monkeypatch.setattr(compiled_kernel, "_cache_folder", lambda: blocked / "kernels")
    into = Accumulator.empty(SIZE)
    CompiledKernel.load().fold(into, update(1), 1.0)
    assert into.sums.tolist() == integer_sums(update(1), 1.0)
    assert blocked.read_text() == "no folder"


def test_compiled_code_is_cached_in_the_users_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    CompiledKernel.load()
    folder = tmp_path / "edge-federation" / "kernels"
    assert list(folder.rglob("*.nbi"))
    assert folder.stat().st_mode & 0o022 == 0
