"""Which offers a device takes: those whose plan it can carry out, and that its ledger lets it take part in.

`CAPABILITIES` is what a check-in names, so that an aggregator with devices of several releases offers each what it
knows; a plan that asks for something else all the same is refused by that name.
"""

from collections.abc import Callable

from edge_runtime import local_rules, session
from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.turn_report import Notes
from wire_contract.messages import EVALUATION_CAPABILITY, EvaluationOffer, TaskOffer, capabilities_needed

CAPABILITIES = (
    "codec:basis", "codec:shared", "codec:threshold", "codec:topk", "codec:topk4", "entropy:deflate", "entropy:none",
    "entropy:zstd", "signature:train", "signature:train_private", "signature:train_sampled", "plan:separation",
    "plan:variant", EVALUATION_CAPABILITY, *local_rules.CAPABILITIES,
)  # fmt: skip


def declined(
    offer: TaskOffer | EvaluationOffer, ledger: LedgerRows, notes: Notes, *, now: float, draw: Callable[[], float]
) -> session.Declined | None:
    """Return why an offer is not taken, or None. Raises `StorageFailed`."""
    permission = ledger.admit(offer, now)
    if not permission.may:
        notes.refused.append("took_part")
        return session.Declined(now, draw(), permission.reason, permission.not_before or 0.0)
    needed = capabilities_needed(offer.plan) if isinstance(offer, TaskOffer) else frozenset()
    unknown = sorted(needed - set(CAPABILITIES))
    if unknown:
        notes.refused.append("plan_refused")
        return session.Declined(now, draw(), f"this device does not know {', '.join(unknown)}")
    return None
