"""Writes a golden file that does not exist yet; never changes one that does."""

import hashlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.wire_contract.samples import DEVICE, MESSAGES, OFFLINE_BUNDLE, TRUST_MESSAGES
from tests.wire_contract.toy_model import ARRAY_MANIFEST, FILE, FULL_MANIFEST, MANIFEST, TENSORS
from wire_contract import codec, delta, envelope, manifest, messages, topics, vocabulary
from wire_contract.basis import Turned, decode_basis, encode_basis, turn_back
from wire_contract.index_set import decode_index_set, encode_index_set
from wire_contract.layout import Layout
from wire_contract.offline_bundle import encode_offline_bundle
from wire_contract.patch import patch

HERE = Path(__file__).parent
SIGNING = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RECIPIENT = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
EPHEMERAL = X25519PrivateKey.from_private_bytes(bytes(range(64, 96)))
WORDS = ["the", "cat", "don't", "sat"]
INDICES = np.array([0, 7, 130, 131, 500, 999], dtype=np.int64)
TEXTS = ["The cat sat.", "Don’t! 1,200 cats; see www.x.yz or a@b.cd", "", "THE\nthe dog?"]


# The set's hash is its golden file's: what today's compressor makes of the same indices may hash to another.
SHARED_PLAN = messages.CodecPlan(mode="shared", bits=4, headroom_bits=6, unit=2.0**-3)


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


def codec_topk_v2() -> object:
    cases = {}
    for bits in (1, 2, 8):
        update = codec.encode(sample_delta(), None, kept=21, clip_norm=0.5, entropy="none", bits=bits)
        cases[str(bits)] = {
            "hex": update.data.hex(),
            "indices": update.sent.indices.tolist(),
            "values": [float(v).hex() for v in update.sent.values],
        }
    return {"size": 1000, "delta": "as in codec-topk4-v1", "kept": 21, "clip_norm": 0.5, "cases": cases}


def index_set_v1() -> object:
    data = encode_index_set(1000, INDICES)
    return {"size": 1000, "indices": INDICES.tolist(), "hex": data.hex(), "sha256": hashlib.sha256(data).hexdigest()}


def codec_shared_v1() -> object:
    path = HERE / "index-set-v1.json"
    index_set = decode_index_set(bytes.fromhex(json.loads(path.read_text())["hex"]))
    update = codec.encode_shared(
        sample_delta(), None, index_set=index_set, ring=codec.ring_of(SHARED_PLAN), clip_norm=1.5
    )
    return {
        "delta": "as in codec-topk4-v1",
        "clip_norm": 1.5,
        "index_set": "index-set-v1",
        "bits": SHARED_PLAN.bits,
        "headroom_bits": SHARED_PLAN.headroom_bits,
        "unit": SHARED_PLAN.unit.hex(),
        "hex": update.data.hex(),
        "values": [float(v).hex() for v in update.sent.values],
    }


def basis_v1() -> object:
    matrix = np.array([[0.6, 0.8], [-0.8, 0.6]], dtype=np.float32)
    data = encode_basis(matrix, (Turned(tensor="rows", axis=1), Turned(tensor="kernel", axis=0)))
    layout = Layout.of(MANIFEST)
    values = layout.flatten(TENSORS)
    return {
        "hex": data.hex(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "layout": "that of the manifest of manifest-v1",
        "turned": [float(value).hex() for value in values],
        "turned_back": [float(value).hex() for value in turn_back(values, layout, decode_basis(data))],
    }


def task_offer_v2() -> object:
    shared = messages.CodecPlan(mode="shared", bits=6, headroom_bits=10, unit=2.0**-9, index_set="cd" * 32, kept=0.05)
    plan = messages.Plan(codec=shared, residual_keep=0.5, residual_versions=20)
    offer = next(message for message in MESSAGES if isinstance(message, messages.TaskOffer))
    both = {"first plan": offer, "shared plan": msgspec.structs.replace(offer, plan=plan)}
    return {name: messages.encode_message(each).hex() for name, each in both.items()}


def task_offer_v3() -> object:
    turned = messages.CodecPlan(mode="topk", bits=4, kept=0.1, threshold=2.0**-10, basis="ef" * 32)
    offer = next(message for message in MESSAGES if isinstance(message, messages.TaskOffer))
    both = {"first plan": offer, "turned plan": msgspec.structs.replace(offer, plan=messages.Plan(codec=turned))}
    return {name: messages.encode_message(each).hex() for name, each in both.items()}


def task_offer_v4() -> object:
    rules = (
        messages.LocalRule(name="momentum", value=0.9),
        messages.LocalRule(name="freeze", tensors=("embedding", "lstm/kernel")),
    )
    ruled = messages.Plan(rules=rules, separation_versions=8, separation_s=6 * 86_400)
    offer = next(message for message in MESSAGES if isinstance(message, messages.TaskOffer))
    both = {"first plan": offer, "ruled plan": msgspec.structs.replace(offer, plan=ruled)}
    return {name: messages.encode_message(each).hex() for name, each in both.items()}


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


def manifest_v2() -> object:
    return {
        "text": manifest.encode_manifest(FULL_MANIFEST).hex(),
        "arrays": manifest.encode_manifest(ARRAY_MANIFEST).hex(),
    }


def offline_bundle_v1() -> object:
    return encode_offline_bundle(OFFLINE_BUNDLE).hex()


def delta_v1() -> object:
    files = [FILE]
    for i in range(1, 4):
        moved = {name: value * np.float32(1 + i / 64) - np.float32(i / 512) for name, value in TENSORS.items()}
        files.append(patch(files[-1], MANIFEST, moved, keep=0.75))
    hops = [delta.encode(old, new, MANIFEST) for old, new in pairwise(files)]
    return {
        "template": "the file and manifest of manifest-v1",
        "keep": 0.75,
        "files": [file.hex() for file in files],
        "deltas": [hop.hex() for hop in hops],
        "chain": delta.chain(hops).hex(),
    }


def _rows_of(*kinds: type) -> object:
    return [
        {"type": type(m).__name__, "hex": messages.encode_message(m).hex()} for m in MESSAGES if isinstance(m, kinds)
    ]


def model_messages_v1() -> object:
    return _rows_of(messages.ModelRequest, messages.ModelChunk, messages.ModelDenied)


def evaluation_messages_v1() -> object:
    return _rows_of(messages.EvaluationOffer, messages.EvaluationReport)


def trust_messages_v1() -> object:
    return [{"type": type(m).__name__, "hex": messages.encode_message(m).hex()} for m in TRUST_MESSAGES]


def vocabulary_v1() -> object:
    words = vocabulary.Vocabulary.from_words(WORDS)
    return {"file": words.to_bytes().hex(), "sha256": words.sha256(), "ids": {t: words.encode_text(t) for t in TEXTS}}


VECTORS = {
    "messages-v1": messages_v1,
    "topics-v1": topics_v1,
    "task-offer-v2": task_offer_v2,
    "task-offer-v3": task_offer_v3,
    "task-offer-v4": task_offer_v4,
    "codec-topk4-v1": codec_topk4_v1,
    "codec-topk-v2": codec_topk_v2,
    "index-set-v1": index_set_v1,
    "codec-shared-v1": codec_shared_v1,
    "basis-v1": basis_v1,
    "envelope-v1": envelope_v1,
    "manifest-v1": manifest_v1,
    "manifest-v2": manifest_v2,
    "trust-messages-v1": trust_messages_v1,
    "offline-bundle-v1": offline_bundle_v1,
    "delta-v1": delta_v1,
    "model-messages-v1": model_messages_v1,
    "evaluation-messages-v1": evaluation_messages_v1,
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
