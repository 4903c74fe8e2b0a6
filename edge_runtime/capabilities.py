"""What this release of the runtime can do, by the names that a manifest's `needs` uses; its own number.

The rules:
- a version that needs what is not listed is refused before anything of it is fetched, with the name of what lacks;
- a capability is listed when its code is here, whichever interpreter runs: what an interpreter lacks its check finds;
- `RELEASE` is the version in pyproject.toml, a test says so: a bundle for devices has no metadata to ask.
"""

from typing import Final

from wire_contract.manifest import ARRAY_FAMILY, TEXT_FAMILY, TRAIN_FAMILIES

RELEASE: Final = "0.1.0"
FAMILIES: Final = tuple(f"family:{name}" for name in (TEXT_FAMILY, ARRAY_FAMILY))
WEIGHTS: Final = ("weights:int8", "weights:float16", "weights:float32")
SIGNATURES: Final = tuple(
    f"signature:{name}" for name in (*TRAIN_FAMILIES, "evaluate", "suggest", "suggest_context", "predict")
)
# Train signatures of other static shapes, chosen by the plan.
VARIANTS: Final = ("signature:variants",)
CHECKS: Final = ("check:golden_vectors",)
CAPABILITIES: Final = frozenset((*FAMILIES, *WEIGHTS, *SIGNATURES, *VARIANTS, *CHECKS))


def lacking(needs: tuple[str, ...]) -> tuple[str, ...]:
    """Return what of `needs` this release cannot do, in order."""
    return tuple(need for need in needs if need not in CAPABILITIES)


def too_old(minimum: str) -> bool:
    """Whether this release is older than `minimum`, a release like 0.4 or 0.4.1; "" asks for none."""
    return bool(minimum) and _number(RELEASE) < _number(minimum)


def _number(release: str) -> tuple[int, ...]:
    parts = tuple(int(part) for part in release.split("."))
    return parts + (0,) * (3 - len(parts))
