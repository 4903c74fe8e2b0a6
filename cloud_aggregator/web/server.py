"""The HTTP server in a thread of its own, on a socket that is bound before anything else happens."""

import socket
import threading
import time
from dataclasses import dataclass, replace

import uvicorn

from cloud_aggregator.errors import Refused, StorageFailed
from cloud_aggregator.service import Service
from cloud_aggregator.web.app import make_app

START_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class HttpHandle:
    """A running server: its URL, and how to stop it."""

    url: str
    operator_token: str
    _server: uvicorn.Server
    _thread: threading.Thread

    def stop(self) -> None:
        """Stop accepting, finish what runs, and return. Safe to call twice."""
        self._server.should_exit = True
        self._thread.join(timeout=10)


def start_http(service: Service, host: str, port: int, *, operator_token: str, public_url: str = "") -> HttpHandle:
    """Serve on `host`:`port` (0: a free one) and tell enrolling devices `public_url` or the address itself.

    Raises `Refused` if the address can't be used.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise Refused(f"{host}:{port} cannot be listened on: {e.strerror}", "choose another port in [http]") from e
    bound = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{bound}"
    service.addresses = replace(service.addresses, model_url=public_url or url)
    settings = uvicorn.Config(
        make_app(service, operator_token),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="http", daemon=True)
    thread.start()
    end = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if time.monotonic() > end or not thread.is_alive():
            raise StorageFailed(f"the HTTP server on {url} did not start")
        time.sleep(0.005)
    return HttpHandle(url, operator_token, server, thread)
