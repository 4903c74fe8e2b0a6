import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from wire_contract import envelope
from wire_contract.errors import ContractError, Malformed, Unsupported, Untrusted

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = envelope.public_bytes(KEY)


def test_verifying_gives_back_the_exact_bytes():
    assert envelope.verify(envelope.sign(KEY, "receipt", b"\x00body"), "receipt", PUBLIC) == b"\x00body"


def test_a_receipt_can_never_pass_for_a_manifest():
    with pytest.raises(Untrusted, match="manifest"):
        envelope.verify(envelope.sign(KEY, "receipt", b"x"), "manifest", PUBLIC)


def test_kind_and_body_cannot_slide_into_each_other():
    detached = envelope.sign_detached(KEY, "a", b"b\nc")
    with pytest.raises(Untrusted):
        envelope.verify_detached(detached, "a\nb", b"c"[:0] + b"c\n", PUBLIC)


def test_anothers_signature_is_untrusted():
    with pytest.raises(Untrusted, match="names"):
        envelope.verify(envelope.sign(OTHER, "receipt", b"x"), "receipt", PUBLIC)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_flipped_byte_of_an_envelope_verifies_as_another_body(position, flip):
    data = bytearray(envelope.sign(KEY, "receipt", b"the body of it"))
    data[position % len(data)] ^= flip
    try:
        body = envelope.verify(bytes(data), "receipt", PUBLIC)
    except ContractError:
        return
    assert body == b"the body of it"


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_the_contracts_error(data):
    with pytest.raises(ContractError):
        envelope.verify(data, "receipt", PUBLIC)


def test_an_envelope_of_another_version_is_unsupported_and_an_oversized_one_malformed():
    import msgspec

    newer = msgspec.msgpack.encode(envelope.Signed(2, "receipt", "", b"", bytes(64)))
    with pytest.raises(Unsupported, match="got 2"):
        envelope.verify(newer, "receipt", PUBLIC)
    with pytest.raises(Malformed, match="at most"):
        envelope.verify(bytes(100_000), "receipt", PUBLIC)


def sealed():
    recipient, ephemeral = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    data = envelope.seal(
        b"plain words", header=b"head", ephemeral=ephemeral, recipient=envelope.public_bytes(recipient)
    )
    return recipient, envelope.public_bytes(ephemeral), data


def test_only_the_recipient_opens_a_seal_and_only_with_the_same_header():
    recipient, ephemeral_key, data = sealed()
    opened = envelope.unseal(data, header=b"head", ephemeral_key=ephemeral_key, recipient=recipient)
    assert opened == b"plain words"
    assert b"plain" not in data
    for header, key, who in [
        (b"Head", ephemeral_key, recipient),
        (b"head", envelope.public_bytes(X25519PrivateKey.generate()), recipient),
        (b"head", ephemeral_key, X25519PrivateKey.generate()),
        (b"head", bytes(32), recipient),
        (b"head", b"short", recipient),
    ]:
        with pytest.raises(Untrusted):
            envelope.unseal(data, header=header, ephemeral_key=key, recipient=who)


@pytest.mark.parametrize("recipient", [bytes(32), b"short"])
def test_sealing_to_a_useless_key_is_refused(recipient):
    with pytest.raises(Malformed):
        envelope.seal(b"x", header=b"", ephemeral=X25519PrivateKey.generate(), recipient=recipient)
