"""Writes a golden file that does not exist yet; never changes one that does."""

import json
import sys
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.wire_contract.samples import DEVICE, MESSAGES
from tests.wire_contract.toy_model import FILE, MANIFEST, TENSORS
from wire_contract import codec, envelope, manifest, messages, topics, vocabulary
from wire_contract.patch import patch

HERE = Path(__file__).parent
SIGNING = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RECIPIENT = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
EPHEMERAL = X25519PrivateKey.from_private_bytes(bytes(range(64, 96)))
WORDS = ["the", "cat", "don't", "sat"]
TEXTS = ["The cat sat.", "Don’t! 1,200 cats; see www.x.yz or a@b.cd", "", "THE\nthe dog?"]


def sample_delta() -> np.ndarray:
    """1,000 values without any random generator, so that another language makes the same."""
    return np.array([((i * 7919) % 2003 - 1001) ** 3 / 1e9 for i in range(1000)], dtype=np.float32)


def messages_v1() -> object:
    return [{"type": type(m).__name__, "hex": messages.encode_message(m).hex()} for m in MESSAGES]


def topics_v1() -> object:
    built = [
        topics.ModelTopic("en-chat", "refresh"),
        topics.DeviceTopic(DEVICE, "down/rcpt"),
        topics.UpdateTopic(7, DEVICE, "f" * 32, None),
        topics.UpdateTopic(7, DEVICE, "f" * 32, 3),
    ]
    shards = {f"{i:032x}": topics.shard_of(f"{i:032x}", 16) for i in range(4)}
    return {"topics": [topics.build_topic(topic) for topic in built], "shards_of_16": shards}


def codec_topk4_v1() -> object:
    cases = {}
    for entropy in codec.ENTROPY_CODES:
        update = codec.encode(sample_delta(), None, kept=21, clip_norm=0.5, entropy=entropy)
        cases[entropy] = {
            "hex": update.data.hex(),
            "indices": update.sent.indices.tolist(),
            "values": [float(v).hex() for v in update.sent.values],
        }
    return {"size": 1000, "delta": "((i * 7919) % 2003 - 1001) ** 3 / 1e9 as float32", "kept": 21, "clip_norm": 0.5,
            "cases": cases}  # fmt: skip


def envelope_v1() -> object:
    sealed = envelope.seal(
        b"an update", header=b"header", ephemeral=EPHEMERAL, recipient=envelope.public_bytes(RECIPIENT)
    )
    return {
        "signing_seed": bytes(range(32)).hex(),
        "public_key": envelope.public_bytes(SIGNING).hex(),
        "key_id": envelope.key_id(envelope.public_bytes(SIGNING)),
        "signed": {"kind": "receipt", "body": b"body".hex(), "hex": envelope.sign(SIGNING, "receipt", b"body").hex()},
        "detached": envelope.sign_detached(SIGNING, "enrolment-proof", b"body").hex(),
        "sealed": {
            "recipient_private": bytes(range(32, 64)).hex(),
            "ephemeral_private": bytes(range(64, 96)).hex(),
            "header": b"header".hex(),
            "plain": b"an update".hex(),
            "hex": sealed.hex(),
        },
    }


def manifest_v1() -> object:
    new = {name: value * np.float32(0.37) for name, value in TENSORS.items()}
    return {
        "manifest": manifest.encode_manifest(MANIFEST).hex(),
        "layout_fingerprint": MANIFEST.layout_fingerprint,
        "template_sha256": MANIFEST.template_sha256,
        "file": FILE.hex(),
        "patched_with_values_times_0.37": patch(FILE, MANIFEST, new).hex(),
    }


def vocabulary_v1() -> object:
    words = vocabulary.Vocabulary.from_words(WORDS)
    return {"file": words.to_bytes().hex(), "sha256": words.sha256(), "ids": {t: words.encode_text(t) for t in TEXTS}}


VECTORS = {
    "messages-v1": messages_v1,
    "topics-v1": topics_v1,
    "codec-topk4-v1": codec_topk4_v1,
    "envelope-v1": envelope_v1,
    "manifest-v1": manifest_v1,
    "vocabulary-v1": vocabulary_v1,
}


def main(names: list[str]) -> int:
    for name in names or list(VECTORS):
        path = HERE / f"{name}.json"
        if path.exists():
            sys.stderr.write(f"{path.name} stands and is never changed\n")
            continue
        path.write_text(json.dumps(VECTORS[name](), indent=1, sort_keys=True) + "\n")
        sys.stderr.write(f"wrote {path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
