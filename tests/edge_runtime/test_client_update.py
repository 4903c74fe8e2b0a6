import hashlib

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_runtime import client_update
from edge_runtime.local_training import TrainingResult
from tests.edge_runtime.test_local_training import MANIFEST, MODEL
from tests.edge_runtime.test_session import OFFER
from wire_contract import codec, envelope
from wire_contract.errors import Malformed, Untrusted
from wire_contract.layout import Layout
from wire_contract.messages import Chunk, UpdateHeader, UpdateInit, decode_message, lease_id
from wire_contract.patch import read_tensors

LAYOUT = Layout.of(MANIFEST)
BASE = read_tensors(MODEL, MANIFEST)
KEY = Ed25519PrivateKey.from_private_bytes(b"d" * 32)
SEALING = X25519PrivateKey.from_private_bytes(b"s" * 32)
DEVICE = envelope.key_id(envelope.public_bytes(KEY))
LEASED = msgspec.structs.replace(
    OFFER, device=DEVICE, sealing_key=envelope.public_bytes(SEALING), layout_fingerprint=LAYOUT.fingerprint
)


def trained(scale=0.01, seed=4):
    rng = np.random.default_rng(seed)
    tensors = {name: value + rng.normal(0, scale, value.shape).astype(np.float32) for name, value in BASE.items()}
    return TrainingResult(LAYOUT.pack(tensors), steps=5, loss_before=4.0, loss_after=3.5, examples=80), tensors


def test_what_is_sent_and_what_is_left_make_up_the_delta():
    result, tensors = trained()
    encoded = client_update.make(result, BASE, None, LEASED, LAYOUT)
    delta = LAYOUT.flatten(tensors) - LAYOUT.flatten(BASE)
    np.testing.assert_allclose(encoded.sent.dense() + encoded.residual, delta, atol=1e-6)
    assert len(encoded.sent.indices) == round(LEASED.plan.codec.kept * LAYOUT.size)


def test_the_residual_goes_out_with_the_next_update():
    result, _ = trained(scale=0.0)
    residual = np.zeros(LAYOUT.size, np.float32)
    residual[[5, 77]] = (0.5, -0.25)
    encoded = client_update.make(result, BASE, residual, LEASED, LAYOUT)
    assert encoded.sent.indices.tolist() == [5, 77]


def test_a_training_that_left_the_finite_numbers_is_refused():
    result, _ = trained()
    result.packed["projection"][0, 0] = np.nan
    with pytest.raises(Malformed, match="finite"):
        client_update.make(result, BASE, None, LEASED, LAYOUT)


def test_the_aggregator_opens_what_the_device_sealed_and_nobody_else_does():
    result, _ = trained()
    encoded = client_update.make(result, BASE, None, LEASED, LAYOUT)
    sealed = client_update.seal_update(
        encoded, result, LEASED, key=KEY, ephemeral_secret=b"e" * 32, finished_at=1_800_000_000, chunk_bytes=1024
    )
    init = decode_message(envelope.verify(sealed.init, "update", envelope.public_bytes(KEY)), UpdateInit)
    header = decode_message(init.header, UpdateHeader)
    body = b"".join(decode_message(chunk, Chunk).data for chunk in sealed.chunks)
    assert (len(body), hashlib.sha256(body).hexdigest()) == (init.size_bytes, init.sha256)
    plain = envelope.unseal(body, header=init.header, ephemeral_key=header.ephemeral_key, recipient=SEALING)
    assert plain == encoded.data
    assert np.array_equal(codec.decode(plain, size=LAYOUT.size).values, encoded.sent.values)
    assert (header.examples, header.steps, header.device) == (80, 5, DEVICE)
    assert encoded.data not in body and encoded.data[32:64] not in body
    with pytest.raises(Untrusted):
        envelope.unseal(body, header=init.header + b" ", ephemeral_key=header.ephemeral_key, recipient=SEALING)


def test_one_lease_has_one_update_id_whatever_is_trained_for_it():
    expected = hashlib.sha256(f"{DEVICE}|{LEASED.task}|{LEASED.lease}".encode()).hexdigest()[:32]
    assert lease_id(DEVICE, LEASED.task, LEASED.lease) == expected
