"""Errors of the contract, sorted by what the caller does next.

The rules that every decoder follows:
- bytes from outside raise a `ContractError` or return a value; no other exception leaves a decoder;
- the message states the rule and the value that broke it;
- an expected refusal (stale, duplicate) is not an error: it is an admission verdict, a value.
"""


class ContractError(Exception):
    """Base of what a decoder or verifier raises; raise one of the three below, which say what to do next."""


class Malformed(ContractError):  # noqa: N818 - named for what the bytes are
    """The bytes break the contract: discard them; the same bytes will never be right."""


class Unsupported(ContractError):  # noqa: N818
    """The bytes are whole but need a version or a capability that this side lacks: upgrade, or negotiate another."""


class Untrusted(ContractError):  # noqa: N818
    """A signature, a seal or a hash does not hold: discard the bytes and say so; somebody changed them."""
