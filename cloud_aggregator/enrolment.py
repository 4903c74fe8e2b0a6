"""A device gets its identity: a one-use token and a key that the device made itself.

The rules:
- only the SHA-256 of a token is stored; it is used in the same transaction that stores the device;
- the proof is the device's signature over token and key, so that nobody enrols a key that is not theirs;
- the same device asking again with the same key and a fresh token of its population keeps its id; a revoked one stays
  revoked, and no token moves a device to another population.
"""

import base64
import hashlib
from typing import Final

from cloud_aggregator.errors import InvalidToken
from cloud_aggregator.labels import check_label
from cloud_aggregator.ports import Entropy
from cloud_aggregator.records import DeviceRecord, Records, TokenRecord
from wire_contract.envelope import key_id, verify_detached
from wire_contract.errors import Untrusted
from wire_contract.messages import Enrolment

TOKEN_BYTES: Final = 20


def mint(records: Records, entropy: Entropy, *, population: str, label: str, uses: int, valid_s: int, now: int) -> str:
    """Store a new token and return it; it is shown once. Raises `InvalidSetting` for the label."""
    token = base64.b32encode(entropy(TOKEN_BYTES)).decode("ascii").lower()
    records.add_token(TokenRecord(_hash(token), check_label(label), population, uses, now, now + valid_s))
    return token


def enrol(records: Records, request: Enrolment, now: int) -> DeviceRecord:
    """Use the token and store the device.

    Raises `InvalidToken` or, for the label, `InvalidSetting`; then the transaction must be rolled back.
    """
    try:
        verify_detached(
            request.proof,
            "enrolment-proof",
            request.token.encode("utf-8") + b"\n" + request.public_key,
            request.public_key,
        )
    except Untrusted as e:
        raise InvalidToken("the enrolment's proof does not hold for this token and key") from e
    token = records.take_token(_hash(request.token), now)
    if token is None:
        raise InvalidToken("the token is unknown, used up or expired")
    if token.population != request.population:
        raise InvalidToken(f"the token is for population {token.population}, the device asks for {request.population}")
    device = key_id(request.public_key)
    known = records.device(device)
    if known is not None:
        if known.revoked_at is not None:
            raise InvalidToken(f"device {device} is revoked")
        if known.population != request.population:
            raise InvalidToken(f"device {device} belongs to population {known.population}, not {request.population}")
        return known
    label = check_label(request.label) or token.label
    record = DeviceRecord(device, request.population, request.public_key, label, now)
    records.add_device(record)
    return record


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8")).hexdigest()
