"""The golden bytes: what this implementation writes and reads is what the first one did."""

import json

import pytest

from tests.vectors.write import HERE, RECIPIENT, VECTORS
from tests.wire_contract.samples import MESSAGES
from wire_contract import codec, envelope, messages


def golden(name: str):
    return json.loads((HERE / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(set(VECTORS) - {"codec-topk4-v1"}))
def test_what_we_write_today_is_the_golden_bytes(name):
    assert json.loads(json.dumps(VECTORS[name]())) == golden(name)


def test_golden_messages_still_decode_to_the_same_values():
    for message, row in zip(MESSAGES, golden("messages-v1"), strict=True):
        assert messages.decode_message(bytes.fromhex(row["hex"]), type(message)) == message


@pytest.mark.parametrize("entropy", sorted(codec.ENTROPY_CODES))
def test_golden_updates_decode_to_the_exact_values(entropy):
    whole = golden("codec-topk4-v1")
    case = whole["cases"][entropy]
    seen = codec.decode(bytes.fromhex(case["hex"]), size=whole["size"])
    assert seen.indices.tolist() == case["indices"]
    assert [float(v).hex() for v in seen.values] == case["values"]


def test_without_an_entropy_stage_the_update_bytes_are_fixed():
    assert VECTORS["codec-topk4-v1"]()["cases"]["none"] == golden("codec-topk4-v1")["cases"]["none"]


def test_golden_signature_and_seal_open():
    whole = golden("envelope-v1")
    public = bytes.fromhex(whole["public_key"])
    assert envelope.verify(bytes.fromhex(whole["signed"]["hex"]), "receipt", public) == b"body"
    sealed = whole["sealed"]
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(sealed["ephemeral_private"]))
    opened = envelope.unseal(
        bytes.fromhex(sealed["hex"]),
        header=bytes.fromhex(sealed["header"]),
        ephemeral_key=envelope.public_bytes(ephemeral),
        recipient=RECIPIENT,
    )
    assert opened.hex() == sealed["plain"]
