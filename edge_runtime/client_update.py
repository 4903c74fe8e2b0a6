"""From trained weights to what goes on the wire. Pure, but for the ephemeral key's entropy, which is an argument.

Order (design 7): model delta = trained minus received, plus the residual (`residual.carry`), selected and quantized as
the plan's codec says, scaled into the clip norm, encoded; then sealed to the aggregator's key, cut into chunks, and the
init signed by the device.
"""

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_runtime.local_training import TrainingResult
from wire_contract import codec, envelope
from wire_contract.basis import Basis, turn
from wire_contract.errors import Malformed
from wire_contract.index_set import IndexSet
from wire_contract.layout import Layout, Tensors, Vector
from wire_contract.messages import Chunk, TaskOffer, UpdateHeader, UpdateInit, encode_message, examples_share, lease_id

KIND = "update"


@dataclass(frozen=True, slots=True)
class SealedUpdate:
    """What is published: the init's envelope and the chunks' payloads."""

    update_id: str
    init: bytes
    chunks: tuple[bytes, ...]


def make(
    result: TrainingResult, base: Tensors, residual: Vector | None, offer: TaskOffer, layout: Layout,
    index_set: IndexSet | None = None, basis: Basis | None = None,
) -> codec.EncodedUpdate:  # fmt: skip
    """Return the encoded update and the next residual; `base` are the received fleet tensors.

    `index_set` is the one that a `shared` plan names, `basis` the one that a `topk` plan names: residual and update are
    in its axes. Raises `Malformed` if the training left the finite numbers, or the plan's codec cannot be met.
    """
    delta = layout.flatten(layout.unpack(result.packed)) - layout.flatten(base)
    plan, clip_norm = offer.plan.codec, offer.plan.clip_norm
    if plan.basis:
        if basis is None or basis.sha256 != plan.basis:
            raise Malformed(f"the plan names the basis {plan.basis[:16]!r}, and it is not here")
        delta = turn(delta, layout, basis)
    if plan.mode != "shared":
        kept = codec.kept_count(plan, layout.size)
        # What the aggregator will weigh less must be larger to be worth its bytes.
        threshold = plan.threshold / examples_share(offer.plan, result.examples) if plan.threshold else 0.0
        return codec.encode(
            delta, residual, kept=kept, clip_norm=clip_norm, entropy=plan.entropy, bits=plan.bits, threshold=threshold
        )
    if index_set is None or index_set.sha256 != plan.index_set:
        raise Malformed(f"the plan names the index set {plan.index_set[:16]!r}, and it is not here")
    return codec.encode_shared(delta, residual, index_set=index_set, ring=codec.ring_of(plan), clip_norm=clip_norm)


def seal_update(
    encoded: codec.EncodedUpdate,
    result: TrainingResult,
    offer: TaskOffer,
    *,
    key: Ed25519PrivateKey,
    ephemeral_secret: bytes,
    finished_at: int,
    chunk_bytes: int,
) -> SealedUpdate:
    """Seal, cut and sign an encoded update; `ephemeral_secret` is 32 fresh bytes, used for nothing else."""
    ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_secret)
    name = lease_id(offer.device, offer.task, offer.lease)
    header = encode_message(
        UpdateHeader(
            device=offer.device,
            population=offer.population,
            task=offer.task,
            lease=offer.lease,
            update_id=name,
            base_version=offer.base_version,
            layout_fingerprint=offer.layout_fingerprint,
            codec=offer.plan.codec.mode,
            examples=result.examples,
            steps=result.steps,
            loss_before=result.loss_before,
            loss_after=result.loss_after,
            finished_at=finished_at,
            ephemeral_key=envelope.public_bytes(ephemeral),
        )
    )
    sealed = envelope.seal(encoded.data, header=header, ephemeral=ephemeral, recipient=offer.sealing_key)
    init = UpdateInit(
        header=header,
        size_bytes=len(sealed),
        sha256=hashlib.sha256(sealed).hexdigest(),
        chunk_bytes=chunk_bytes,
    )
    chunks = tuple(
        encode_message(Chunk(update_id=name, index=i, data=sealed[i * chunk_bytes : (i + 1) * chunk_bytes]))
        for i in range(init.chunks)
    )
    return SealedUpdate(name, envelope.sign(key, KIND, encode_message(init)), chunks)
