"""Enrolling over HTTP: a one-use token and the device's own public key against its identity.

POST SERVER/v1/enrol with an Enrolment message; 200 brings the signed Enrolled, 403 says in one line why not.
"""

from edge_runtime.adapters.downloads import TIMEOUT_S, connect, request
from edge_runtime.identity import Identity, read_enrolled
from edge_runtime.ports import PortError
from wire_contract import envelope
from wire_contract.errors import Malformed
from wire_contract.messages import MAX_MESSAGE_BYTES, Enrolled, Enrolment, encode_message

PROOF = "enrolment-proof"


class EnrolmentRefused(PortError):  # noqa: N818
    """The aggregator said no; the message is its reason."""


def make_enrolment(identity: Identity, token: str, population: str, label: str) -> Enrolment:
    """Return the request, with the proof that the device holds the key it names."""
    proof = envelope.sign_detached(identity.key, PROOF, token.encode() + b"\n" + identity.public_key)
    return Enrolment(token=token, public_key=identity.public_key, population=population, label=label[:80], proof=proof)


def enrol(
    server: str,
    identity: Identity,
    *,
    token: str,
    population: str,
    label: str,
    pinned: bytes | None = None,
    ca_file: str = "",
) -> tuple[Enrolled, bytes]:
    """Ask `server` (http://HOST:PORT) for an identity; return the answer and its signed bytes.

    `ca_file` holds the certificates that an https server is checked against; empty: the system's.

    Raises `Unreachable`, `EnrolmentRefused`, or a `ContractError` if the answer is not signed as it should be.
    """
    url = server.rstrip("/") + "/v1/enrol"
    body = encode_message(make_enrolment(identity, token, population, label))
    connection = connect(url, TIMEOUT_S, ca_file)
    try:
        response = request(connection, "POST", url, body, {"Content-Type": "application/msgpack"})
        answer = response.read(MAX_MESSAGE_BYTES + 1)
    finally:
        connection.close()
    if response.status != 200:
        raise EnrolmentRefused(answer.decode("utf-8", "replace").strip()[:200] or f"{url} answers {response.status}")
    enrolled = read_enrolled(answer, pinned)
    if enrolled.device != identity.device:
        raise Malformed(f"this device is {identity.device}, the answer is for {enrolled.device}")
    return enrolled, answer
