"""Downloads and enrolment against a real HTTP server of the standard library."""

import contextlib
import http.server
import ssl
import threading
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime import identity
from edge_runtime.adapters.downloads import HttpDownloads, read_all
from edge_runtime.adapters.enrolment import EnrolmentRefused, enrol
from edge_runtime.ports import NotThere, TooLarge, Unreachable
from tests.edge_runtime.certificates import make_certificate
from tests.edge_runtime.conftest import free_port
from tests.edge_runtime.fakes import Entropy
from wire_contract import envelope
from wire_contract.errors import Untrusted
from wire_contract.messages import Enrolled, Enrolment, decode_message, encode_message

BODY = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    ranges, cut_after, answer = True, None, None
    drips = ""

    def do_GET(self):
        if self.path != "/v1/models/x":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        if self.drips == "head":
            self.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50)
            return
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        if self.drips:
            self.drip(BODY)
            return
        self.wfile.write(BODY[start:][: self.cut_after])
        if self.cut_after is not None:
            self.wfile.flush()
            self.connection.close()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, answer = type(self).answer(self.path, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def drip(self, data):
        with contextlib.suppress(OSError):
            for byte in data[:200]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    handler = type("OneTest", (Handler,), {})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    handler.url = f"http://127.0.0.1:{running.server_address[1]}"
    yield handler
    running.shutdown()
    running.server_close()
    thread.join()


SIZE = len(BODY)


def fetch(server, start=0, limit=SIZE, path="/v1/models/x"):
    return HttpDownloads(5).fetch(server.url + path, start, limit)


def test_a_file_comes_whole_and_from_the_middle(server):
    assert read_all(fetch(server)) == BODY
    opened = fetch(server, 1_000_000)
    assert opened.start == 1_000_000 and read_all(opened) == BODY[1_000_000:]


def test_a_server_without_ranges_says_where_its_bytes_begin(server):
    server.ranges = False
    opened = fetch(server, 1_000_000)
    assert opened.start == 0 and read_all(opened) == BODY


def test_a_download_that_is_whole_already_brings_nothing_more(server):
    assert read_all(fetch(server, len(BODY))) == b""


def test_more_bytes_than_announced_are_refused_and_a_cut_is_unreachable(server):
    with pytest.raises(TooLarge):
        read_all(fetch(server, limit=len(BODY) - 1))
    server.cut_after = 300_000
    with pytest.raises(Unreachable, match="broke off"):
        read_all(fetch(server))


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_is_a_link_that_broke_and_what_came_is_kept(server, part):
    server.drips = part
    downloads, came = HttpDownloads(15, patience_s=0.3), bytearray()
    with pytest.raises(Unreachable):
        for piece in downloads.fetch(f"{server.url}/v1/models/x", 0, len(BODY)).chunks:
            came += piece
    # Not the whole drip, for nobody waited so long; and none of it was lost.
    assert bytes(came) == BODY[: len(came)] and len(came) < 200
    assert bool(came) == (part == "body")


def test_what_came_before_a_link_broke_is_not_lost(server):
    server.cut_after = 300_000
    came = bytearray()
    with pytest.raises(Unreachable, match="broke off"):
        for piece in fetch(server).chunks:
            came += piece
    assert bytes(came) == BODY[:300_000]


def test_what_is_missing_and_what_does_not_answer_are_told_apart(server):
    with pytest.raises(NotThere, match="404"):
        fetch(server, path="/nothing")
    with pytest.raises(Unreachable, match="does not answer"):
        HttpDownloads(2).fetch(f"http://127.0.0.1:{free_port()}/x", 0, 10)
    for address in ("ftp://x/y", "http://", "http://h:port/", "nonsense"):
        with pytest.raises(Unreachable, match="an address is"):
            HttpDownloads(2).fetch(address, 0, 10)


def test_over_https_the_servers_name_and_authority_are_checked(tmp_path):
    ca, certificate, key = make_certificate(tmp_path, "localhost")
    handler = type("OneTest", (Handler,), {})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    running.socket = context.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    port = running.server_address[1]
    try:
        opened = HttpDownloads(5, ca_file=ca).fetch(f"https://localhost:{port}/v1/models/x", 1000, SIZE)
        assert opened.start == 1000 and read_all(opened) == BODY[1000:]
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            HttpDownloads(5).fetch(f"https://localhost:{port}/v1/models/x", 0, SIZE)
        with pytest.raises(Unreachable, match=r"(?i)certificate|mismatch"):
            HttpDownloads(5, ca_file=ca).fetch(f"https://127.0.0.1:{port}/v1/models/x", 0, SIZE)
        with pytest.raises(Unreachable, match="PEM"):
            HttpDownloads(5, ca_file=key).fetch(f"https://localhost:{port}/v1/models/x", 0, SIZE)
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


KEY = Ed25519PrivateKey.from_private_bytes(b"a" * 32)


def enrolled_answer(path, body, key=KEY, device=None):
    request = decode_message(body, Enrolment)
    proof_of = request.token.encode() + b"\n" + request.public_key
    envelope.verify_detached(request.proof, "enrolment-proof", proof_of, request.public_key)
    if request.token != "good":
        return 403, b"the token was used already\n"
    answer = Enrolled(
        device=device or envelope.key_id(request.public_key), population=request.population,
        aggregator_key=envelope.public_bytes(KEY), manifest_key=b"m" * 32, broker_url="mqtt://127.0.0.1:1883",
        model_url="http://127.0.0.1:1/", shard=0, issued_at=1,
    )  # fmt: skip
    return 200, envelope.sign(key, "enrolled", encode_message(answer))


@pytest.fixture
def who(tmp_path):
    return identity.load_or_make(tmp_path, Entropy(3))


def ask(server, who, token="good", **named):
    return enrol(server.url, who, token=token, population="keyboard", label="kitchen", **named)


def test_a_good_token_brings_an_identity_that_can_be_kept_and_read_again(server, who, tmp_path):
    server.answer = enrolled_answer
    enrolled, signed = ask(server, who)
    identity.save_enrolled(tmp_path, signed)
    assert identity.load_enrolled(tmp_path) == enrolled and enrolled.device == who.device


def test_a_used_token_is_refused_with_the_aggregators_reason(server, who):
    server.answer = enrolled_answer
    with pytest.raises(EnrolmentRefused, match="used already"):
        ask(server, who, token="old")


def test_an_answer_by_another_key_than_the_pinned_or_named_one_is_not_trusted(server, who):
    server.answer = enrolled_answer
    assert ask(server, who, pinned=envelope.public_bytes(KEY))
    with pytest.raises(Untrusted, match="pinned"):
        ask(server, who, pinned=b"p" * 32)
    stranger = Ed25519PrivateKey.generate()
    server.answer = lambda path, body: enrolled_answer(path, body, key=stranger)
    with pytest.raises(Untrusted):
        ask(server, who)


def test_an_answer_for_another_device_is_refused(server, who):
    server.answer = lambda path, body: enrolled_answer(path, body, device="0" * 32)
    with pytest.raises(Exception, match="the answer is for"):
        ask(server, who)


def test_an_address_that_is_none_is_unreachable_and_nothing_worse(server):
    for address in (
        "http://[x",
        "http://[x]:y/",
        server.url + "/\u00e9",
        server.url + "/a b\n",
        "http://" + "x" * 70 + "/",
    ):
        with pytest.raises(Unreachable):
            HttpDownloads(2).fetch(address, 0, 10)
