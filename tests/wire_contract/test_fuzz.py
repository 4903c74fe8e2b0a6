"""A million broken inputs: none is accepted wrongly, none crashes a decoder, and memory stays flat.

`python -m benchmarks.fuzz` does ten million, and gives the updates among them to the aggregation kernels too.
"""

import importlib.util
import tracemalloc
from random import Random

import pytest

from tests.fuzzing import slow_codec, update_targets
from tests.fuzzing.bombs import bombs
from tests.fuzzing.contract import contract_targets
from tests.fuzzing.harness import STRUCTURED, check_seeds, fuzz, peak_memory_mb, shares
from tests.fuzzing.target import Broken, Target
from wire_contract import codec
from wire_contract.errors import ContractError, Malformed

# The device's environment stands for a small machine: there the same code gets a sample.
INPUTS = 1_000_000 if importlib.util.find_spec("numba") else 100_000
SEED = 20_261_124
GROWTH_MB = 8.0
BOMB_PEAK_BYTES = 6 << 20


def test_every_good_seed_is_accepted_and_judged_right():
    assert [str(finding) for finding in check_seeds(contract_targets())] == []


def test_a_million_broken_inputs_are_refused_or_mean_what_another_reader_reads():
    targets = contract_targets()
    fuzz(targets, 3_000, SEED + 1)
    before = peak_memory_mb()
    tallies = fuzz(targets, INPUTS, SEED)
    grown = peak_memory_mb() - before
    assert [str(finding) for tally in tallies for finding in tally.findings] == []
    assert sum(tally.inputs for tally in tallies) == INPUTS
    assert (sum(t.wrongly_accepted for t in tallies), sum(t.crashed for t in tallies)) == (0, 0)
    for target, tally in zip(targets, tallies, strict=True):
        assert {(broken.field, broken.rule) for broken in target.broken} == set(tally.broken), target.name
        assert tally.accepted > 0 or tally.inputs < 2_000, f"{target.name}: no input was good enough to be judged"
        assert tally.refused > tally.inputs / 20, target.name
    assert grown <= GROWTH_MB


@pytest.mark.parametrize("bomb", list(bombs()), ids=lambda bomb: bomb.name)
def test_what_asks_for_much_is_refused_and_takes_little(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(ContractError):
            bomb.decode(bomb.data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= BOMB_PEAK_BYTES + 4 * len(bomb.data)


def planted(decode, judge=lambda data, value: ""):
    return Target("planted", (b"good",), decode, judge, (Broken("field", "is bad", lambda rng: b"bad"),))


def careful(data):
    if data != b"good":
        raise Malformed("only good is good")
    return data


def test_the_harness_sees_a_decoder_that_crashes():
    def careless(data):
        return data[40]

    (tally,) = fuzz([planted(careless)], 100, 1)
    assert tally.crashed == tally.inputs == 100
    assert "crashed with IndexError" in str(tally.findings[0])


def test_the_harness_sees_a_decoder_that_lets_a_broken_rule_pass():
    def lenient(data):
        return data if data == b"bad" else careful(data)

    (tally,) = fuzz([planted(lenient)], 100, 1)
    assert tally.wrongly_accepted == tally.broken[("field", "is bad")] == int(100 * STRUCTURED)
    assert "accepted although field: is bad" in str(tally.findings[0])


def test_the_harness_sees_a_value_that_another_reader_does_not_read():
    (tally,) = fuzz([planted(lambda data: data, lambda data, value: "it differs" if data != b"good" else "")], 100, 1)
    assert tally.wrongly_accepted > 50


def test_the_harness_leaves_a_careful_decoder_in_peace():
    (tally,) = fuzz([planted(careful)], 100, 1)
    assert (tally.wrongly_accepted, tally.crashed) == (0, 0)
    assert tally.refused + tally.accepted == 100


def test_the_slow_reader_notices_one_wrong_bit_of_a_value():
    data = update_targets.topk_seeds()[0]
    seen = codec.decode(data, size=update_targets.SIZE)
    assert update_targets.judge_topk(data, seen) == ""
    seen.values[0] = seen.values[0] * (1 + 2**-52)
    assert "it says" in update_targets.judge_topk(data, seen)
    assert "this rule does not hold" in update_targets.judge_topk(data[:-1], seen)


def test_the_slow_readers_constants_are_the_codecs():
    assert list(codec.SIXTEENTHS) == slow_codec.SIXTEENTHS


def test_the_same_seed_gives_the_same_inputs():
    rng, again = Random(3), Random(3)
    assert [update_targets.topk_bytes(rng) for _ in range(20)] == [update_targets.topk_bytes(again) for _ in range(20)]


def test_every_target_gets_its_share_and_all_together_the_count():
    targets = contract_targets()
    parts = shares(targets, 100_000)
    assert sum(parts) == 100_000
    assert all(part * STRUCTURED >= len(target.broken) for part, target in zip(parts, targets, strict=True))
