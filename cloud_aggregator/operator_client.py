"""Talking to a running service, found by the files that `serve` leaves in the data directory.

Every failure is a `CommandError` with the exit code that the command contract gives it.
"""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode

ADDRESS_FILE = "service.json"
OPERATOR_TOKEN = "operator.token"
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_EXIT = {401: ExitCode.REFUSED, 403: ExitCode.REFUSED, 404: ExitCode.NOT_FOUND, 409: ExitCode.REFUSED}
_CODE = {401: "NO_TOKEN", 403: "FORBIDDEN", 404: "NOT_FOUND", 409: "REFUSED", 422: "BAD_VALUE"}


@dataclass(frozen=True, slots=True)
class OperatorClient:
    """The API of one running service."""

    host: str
    port: int
    token: str

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """Return a resource; `query` holds its parameters."""
        words = [f"{key}={quote(str(value), safe='')}" for key, value in query.items() if value is not None]
        return self._ask("GET", path + ("?" + "&".join(words) if words else ""), None, ANSWER_TIMEOUT_S)

    def send(
        self, method: str, path: str, body: Mapping[str, object], *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        """Do something and return its outcome."""
        return self._ask(method, path, json.dumps(body).encode(), timeout_s)

    def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, f"/v1/operator{path}", body, headers)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES)
        except TimeoutError as e:
            raise CommandError(
                f"the service at {self.host}:{self.port} did not answer in time",
                exit_code=ExitCode.TIMEOUT,
                code="TIMEOUT",
            ) from e
        except (OSError, http.client.HTTPException) as e:
            raise _not_running(f"{self.host}:{self.port}: {e}") from e
        finally:
            connection.close()
        if answer.status >= 400:
            line = (data.decode("utf-8", "replace").strip().splitlines() or ["no message"])[0]
            exit_code = _EXIT.get(answer.status, ExitCode.USAGE if answer.status == 422 else ExitCode.FAILED)
            code = _CODE.get(answer.status, "FAILED")
            raise CommandError(line[:300], exit_code=exit_code, code=code, hint=answer.headers.get("X-Hint", ""))
        found: dict[str, Any] = json.loads(data) if data else {}
        return found


def _not_running(detail: str) -> CommandError:
    return CommandError(
        f"no service answers ({detail})",
        exit_code=ExitCode.UNREACHABLE,
        code="NO_SERVICE",
        hint="start it: cloud-aggregator serve",
    )


def find_service(data: Path) -> OperatorClient:
    """Return the client of the service that `data` names. Raises `CommandError` (5) if none answers there."""
    try:
        address = json.loads((data / ADDRESS_FILE).read_text("utf-8"))
        parts = urlsplit(address["url"])
        host, port = str(parts.hostname), int(parts.port or 80)
    except FileNotFoundError as e:
        raise _not_running(f"{data / ADDRESS_FILE} is not there") from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise _not_running(f"{data / ADDRESS_FILE} is no address: {e}") from e
    try:
        token = (data / OPERATOR_TOKEN).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise CommandError(
            f"{data / OPERATOR_TOKEN} cannot be read", exit_code=ExitCode.REFUSED, code="NO_TOKEN",
            hint="run it as the user that runs the service",
        ) from e  # fmt: skip
    try:
        with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S):
            return OperatorClient(host, port, token)
    except OSError as e:
        raise _not_running(f"{host}:{port}: {e.strerror or e}") from e
