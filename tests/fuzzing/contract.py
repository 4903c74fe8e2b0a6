"""Every decoder of the wire contract, for the harness."""

from tests.fuzzing import file_targets, message_targets, plan_targets, update_targets
from tests.fuzzing.target import Target


def contract_targets() -> list[Target]:
    """Return a target for each decoder of bytes from outside that wire_contract has."""
    return [*update_targets.targets(), *message_targets.targets(), *file_targets.targets(), *plan_targets.targets()]
