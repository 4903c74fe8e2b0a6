"""A version made of one that is here and a delta: the refusals by name, before and after the bytes are believed.

The rules:
- the base is a file that was hashed a moment ago, of the template that the new version has;
- whatever is wrong with a delta, the version is not refused for it: the delta is deleted and the whole file fetched;
- what comes out hashes to what the signed manifest says, or nothing comes out.
"""

from dataclasses import dataclass

from wire_contract.errors import ContractError, Untrusted
from wire_contract.manifest import Manifest


@dataclass(frozen=True, slots=True)
class DeltaRefused:
    """Why a delta is of no use; `reason` is a stable name."""

    reason: str
    message: str


def rebuild(base: bytes, base_sha256: str, data: bytes, manifest: Manifest) -> bytes | DeltaRefused:
    """Return the bytes of the version that `manifest` describes, or the refusal of the delta `data`."""
    # Here and not above: the idle supervisor opens slots and has no need of numpy.
    from wire_contract import delta

    try:
        parsed = delta.read(data)
        if parsed.base != base_sha256:
            return DeltaRefused("delta_wrong_base", f"it starts from {parsed.base[:16]}, held is {base_sha256[:16]}")
        if parsed.target != manifest.sha256:
            return DeltaRefused(
                "delta_wrong_target", f"it leads to {parsed.target[:16]}, wanted is {manifest.sha256[:16]}"
            )
        return delta.apply(base, data, manifest)
    except Untrusted as e:
        return DeltaRefused("delta_wrong_hash", str(e))
    except ContractError as e:
        return DeltaRefused("delta_malformed", str(e))
