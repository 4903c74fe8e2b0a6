"""The device's own noise: normal, its own, the same twice for one offer and step, and another for anything else."""

import math

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edge_runtime.example_noise import Normals, secret_of
from wire_contract.messages import Plan, RetryWindow, TaskOffer

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OFFER = TaskOffer(
    device="1" * 32, population="keyboard", task="2" * 16, lease="3" * 32, nonce="4" * 32, base_version=7,
    base_sha256="5" * 64, layout_fingerprint="6" * 64, plan=Plan(), seed=9, sealing_key=bytes(32), shard=0,
    issued_at=100, deadline=200, retry=RetryWindow(earliest=1, latest=2),
)  # fmt: skip
SECRET = secret_of(KEY, OFFER)


def test_the_values_are_standard_normal():
    drawn = Normals(SECRET, 0).draw(400_000)
    assert abs(drawn.mean()) < 5 / math.sqrt(len(drawn))
    assert abs(drawn.std() - 1.0) < 5 / math.sqrt(2 * len(drawn))
    for at in (-2.5, -1.0, 0.0, 0.3, 1.96, 3.0):
        share = 0.5 * (1 + math.erf(at / math.sqrt(2)))
        assert abs((drawn < at).mean() - share) < 5 * math.sqrt(share * (1 - share) / len(drawn))
    # Box and Muller's two halves are independent, and so are neighbours.
    half = len(drawn) // 2
    for one, other in ((drawn[:half], drawn[half:]), (drawn[:-1], drawn[1:])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(half)


def test_the_bits_are_chacha20s_of_the_step():
    # The AEAD encrypts zeros with the same key and nonce from block 1 on: an implementation of its own of RFC 8439.
    stream = ChaCha20Poly1305(SECRET).encrypt((5).to_bytes(12, "big"), bytes(64), None)[:64]
    # Block 0 is sixteen bytes for each of four pairs, of which values 4 to 7 of 8 pairs lie in block 1.
    drawn = Normals(SECRET, 5).draw(16)
    words = np.frombuffer(stream, "<u8") >> np.uint64(11)
    angles = words * (2.0**-53 * 2 * np.pi)
    np.testing.assert_allclose(drawn[8:] / drawn[:8], np.tan(angles), rtol=1e-9)


def test_one_offer_and_step_give_one_noise_however_it_is_drawn():
    assert np.array_equal(Normals(SECRET, 3).draw(100), Normals(SECRET, 3).draw(100))
    assert len(Normals(SECRET, 3).draw(7)) == 7
    first, second = Normals(SECRET, 3), Normals(SECRET, 3)
    assert not np.array_equal(first.draw(10), first.draw(10))
    assert np.array_equal(np.concatenate([second.draw(10), second.draw(10)])[:10], Normals(SECRET, 3).draw(10))


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "f" * 32}, {"lease": "f" * 32}, {"base_version": 8}, {"base_sha256": "f" * 64}, {"seed": 10},
        {"plan": Plan(learning_rate=0.5)}, {"deadline": 201}, {"task": "f" * 16},
    ],
    ids=str,
)  # fmt: skip
def test_an_offer_that_differs_in_anything_gives_another_noise(change):
    other = secret_of(KEY, msgspec.structs.replace(OFFER, **change))
    assert other != SECRET
    assert abs(np.corrcoef(Normals(other, 0).draw(10_000), Normals(SECRET, 0).draw(10_000))[0, 1]) < 0.05


def test_another_device_and_another_step_give_another_noise():
    other = secret_of(Ed25519PrivateKey.from_private_bytes(bytes(32)), OFFER)
    assert other != SECRET and len(SECRET) == 32
    assert not np.intersect1d(Normals(SECRET, 0).draw(1000), Normals(SECRET, 1).draw(1000)).size


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(64)])
def test_a_secret_of_another_length_is_refused(secret):
    with pytest.raises(ValueError, match=f"32 bytes, got {len(secret)}"):
        Normals(secret, 0)
