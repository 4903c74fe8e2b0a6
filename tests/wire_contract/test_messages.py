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
