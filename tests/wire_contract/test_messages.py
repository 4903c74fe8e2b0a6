import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire_contract.samples import MESSAGES
from wire_contract import messages
from wire_contract.errors import ContractError, Malformed, Unsupported


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was_sent(message):
    assert messages.decode_message(messages.encode_message(message), type(message)) == message
    assert messages.decode_message(messages.encode_message(message), messages.AnyMessage) == message


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_the_contracts_error(data):
    with pytest.raises(ContractError):
        messages.decode_message(data, messages.AnyMessage)


@given(st.sampled_from(MESSAGES), st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_gives_a_message_or_the_contracts_error(message, position, flip):
    data = bytearray(messages.encode_message(message))
    data[position % len(data)] ^= flip
    with contextlib.suppress(ContractError):
        messages.decode_message(bytes(data), messages.AnyMessage)


def test_an_unknown_field_is_ignored_by_rule():
    tree = msgspec.msgpack.decode(messages.encode_message(MESSAGES[0]))
    tree["colour"] = "blue"
    assert messages.decode_message(msgspec.msgpack.encode(tree), type(MESSAGES[0])) == MESSAGES[0]


def test_an_unknown_type_is_unsupported_and_a_missing_field_malformed():
    with pytest.raises(Unsupported, match="dance"):
        messages.decode_message(msgspec.msgpack.encode({"type": "dance"}), messages.AnyMessage)
    with pytest.raises(Malformed):
        messages.decode_message(msgspec.msgpack.encode({"type": "check-in"}), messages.CheckIn)


@pytest.mark.parametrize(
    ("field", "value"),
    [("device", "a" * 32 + "\n"), ("population", "a\n"), ("device", "A" * 32), ("device", "a/b"), ("population", "a/+"),
     ("sent_at", -1), ("held_version", 1 << 40), ("capabilities", ["codec:topk4"] * 65), ("capabilities", ["x" * 100])],
)  # fmt: skip
def test_a_field_out_of_its_range_is_malformed(field, value):
    tree = msgspec.msgpack.decode(messages.encode_message(MESSAGES[0]))
    tree[field] = value
    with pytest.raises(Malformed):
        messages.decode_message(msgspec.msgpack.encode(tree), messages.CheckIn)


@pytest.mark.parametrize("missing", [[-1], [65_536], [0] * 5000])
def test_a_receipt_asks_only_for_chunks_that_can_exist(missing):
    receipt = next(message for message in MESSAGES if isinstance(message, messages.Receipt))
    tree = {**msgspec.msgpack.decode(messages.encode_message(receipt)), "missing": missing}
    with pytest.raises(Malformed):
        messages.decode_message(msgspec.msgpack.encode(tree), messages.Receipt)


def test_an_oversized_message_is_refused_before_it_is_read():
    with pytest.raises(Malformed, match="at most"):
        messages.decode_message(bytes(messages.MAX_MESSAGE_BYTES + 1), messages.CheckIn)


def test_deep_nesting_is_malformed_not_a_crash():
    with pytest.raises(Malformed):
        messages.decode_message(b"\x91" * 50_000, messages.CheckIn)


def test_a_plan_names_the_capabilities_it_needs():
    plan = messages.Plan(signature="train", codec=messages.CodecPlan(entropy="deflate"))
    assert messages.capabilities_needed(plan) == {"codec:topk4", "entropy:deflate", "rule:sgd", "signature:train"}


def test_the_number_of_chunks_rounds_up():
    init = messages.UpdateInit(header=b"", size_bytes=2049, sha256="0" * 64, chunk_bytes=1024)
    assert init.chunks == 3


def test_a_plan_with_rules_and_a_separation_is_offered_only_to_who_names_them():
    rules = (messages.LocalRule(name="proximal", value=0.01), messages.LocalRule(name="freeze", tensors=("kernel",)))
    plain = messages.capabilities_needed(messages.Plan())
    assert messages.capabilities_needed(messages.Plan(rules=rules)) - plain == {"rule:proximal", "rule:freeze"}
    for apart in (messages.Plan(separation_s=1), messages.Plan(separation_versions=1)):
        assert messages.capabilities_needed(apart) - plain == {"plan:separation"}


@given(st.from_regex(r"[a-z][a-z0-9-]{0,39}", fullmatch=True))
def test_every_rule_that_a_plan_can_name_a_check_in_can_name_too(name):
    needed = messages.capabilities_needed(messages.Plan(rules=(messages.LocalRule(name=name),)))
    assert f"rule:{name}" in needed
    known = (*sorted(needed), messages.EVALUATION_CAPABILITY)
    check_in = msgspec.structs.replace(MESSAGES[0], capabilities=known)
    assert messages.decode_message(messages.encode_message(check_in), messages.CheckIn) == check_in


counts = st.integers(0, 1 << 31)


@given(counts, counts, counts)
def test_a_reports_counts_are_multiples_of_ten_and_keep_their_order(a, b, c):
    hits1, hits3, words = sorted((a, b, c))
    told = messages.evaluation_buckets(words, hits1, hits3)
    assert all(0 <= real - shown < 10 for real, shown in zip((words, hits1, hits3), told, strict=True))
    assert {shown % 10 for shown in told} == {0}
    assert told[1] <= told[2] <= told[0]


def test_two_reports_that_differ_by_one_word_are_mostly_the_same_report():
    assert messages.evaluation_buckets(421, 79, 125) == messages.evaluation_buckets(420, 78, 124) == (420, 70, 120)


def test_a_lease_has_one_id_and_no_other_lease_has_it():
    ids = {messages.lease_id(d * 32, t * 16, e * 32) for d in "ab" for t in "ab" for e in "ab"}
    assert len(ids) == 8 and all(len(each) == 32 for each in ids)
    # By `printf ... | sha256sum`, so that another program can make the same id.
    assert messages.lease_id("0" * 32, "1" * 16, "2" * 32) == "0c9a6161049af703d37efcdac087b6db"
