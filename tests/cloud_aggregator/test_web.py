"""The HTTP side over a real socket: what devices fetch, Range and resume, and the operator's API behind its token."""

import hashlib
import http.client
import json
from urllib.parse import urlsplit

import pytest

from cloud_aggregator.web.server import start_http
from tests.cloud_aggregator.fleet import (
    NOW,
    POPULATION,
    VOCABULARY,
    Aggregator,
    Phone,
    make_bundle,
    phones,
)
from wire_contract import envelope
from wire_contract.messages import Enrolled, decode_message, encode_message
from wire_contract.trust_roles import template_path

TOKEN = "the-operators-token"


class Site:
    """A running server and requests to it."""

    def __init__(self, aggregator):
        self.aggregator = aggregator
        self.handle = start_http(aggregator.service, "127.0.0.1", 0, operator_token=TOKEN)

    def ask(self, method, path, body=None, **headers):
        parts = urlsplit(self.handle.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def operate(self, method, path, **body):
        status, _, data = self.ask(
            method,
            f"/v1/operator{path}",
            json.dumps(body) if method != "GET" else None,
            Authorization=f"Bearer {TOKEN}",
        )
        return status, json.loads(data) if data.startswith(b"{") else data.decode()


@pytest.fixture
def site(aggregator):
    site = Site(aggregator)
    yield site
    site.handle.stop()


def trained(aggregator):
    for phone in phones(aggregator, 4):
        aggregator.take(*phone.update(phone.lease()))
    aggregator.turn()
    assert aggregator.manifest().version == 2


def test_a_device_enrols_over_http_and_is_told_where_to_go(site):
    phone = Phone(1, site.aggregator)
    token = site.aggregator.service.mint_token(POPULATION, "", NOW)
    status, headers, body = site.ask("POST", "/v1/enrol", encode_message(phone.enrolment(token)))
    assert (status, headers["content-type"]) == (200, "application/msgpack")
    enrolled = decode_message(envelope.verify(body, "enrolled", site.aggregator.keys.public), Enrolled)
    assert (enrolled.device, enrolled.model_url) == (phone.id, site.handle.url)


def test_a_used_token_is_forbidden_in_one_line(site):
    token = site.aggregator.service.mint_token(POPULATION, "", NOW)
    assert site.ask("POST", "/v1/enrol", encode_message(Phone(1, site.aggregator).enrolment(token)))[0] == 200
    status, _, body = site.ask("POST", "/v1/enrol", encode_message(Phone(2, site.aggregator).enrolment(token)))
    assert status == 403
    assert body == b"the token is unknown, used up or expired\n"
    with site.aggregator.database.reading() as records:
        assert len(records.devices()) == 1


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"\xff" * 50, 400), (b"x" * 5000, 413)])
def test_a_malformed_or_huge_enrolment_is_refused(site, body, status):
    answer = site.ask("POST", "/v1/enrol", body)
    assert answer[0] == status
    assert answer[2].count(b"\n") == 1


def test_a_model_comes_whole_and_hashes_to_its_name(site):
    manifest = site.aggregator.manifest()
    status, headers, body = site.ask("GET", manifest.url)
    assert (status, headers["etag"]) == (200, f'"{manifest.sha256}"')
    assert headers["accept-ranges"] == "bytes"
    assert hashlib.sha256(body).hexdigest() == manifest.sha256


def test_a_download_that_was_cut_goes_on_where_it_stopped(site):
    manifest = site.aggregator.manifest()
    first = site.ask("GET", manifest.url, Range="bytes=0-199")
    assert (first[0], first[1]["content-range"]) == (206, f"bytes 0-199/{manifest.size_bytes}")
    rest = site.ask("GET", manifest.url, Range="bytes=200-", If_Range=first[1]["etag"])
    assert rest[0] == 206
    assert hashlib.sha256(first[2] + rest[2]).hexdigest() == manifest.sha256
    other = site.ask("GET", manifest.url, Range="bytes=200-", If_Range='"another"')
    assert (other[0], len(other[2])) == (200, manifest.size_bytes)


def test_a_range_beyond_the_end_is_not_satisfiable(site):
    assert site.ask("GET", site.aggregator.manifest().url, Range="bytes=99999-")[0] == 416


def test_a_model_that_is_held_already_is_not_sent_again(site):
    manifest = site.aggregator.manifest()
    assert site.ask("GET", manifest.url, If_None_Match=f'"{manifest.sha256}"')[0] == 304


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/" + "0" * 64,
        "/v1/templates/" + "0" * 64,
        "/v1/populations/other/training",
        "/v1/populations/toy/other",
        "/v1/models/..%2f..%2faggregator.key",
        "/v1/models/../../aggregator.key",
        "/nothing",
    ],
)
def test_what_is_not_there_is_404_in_one_line(site, path):
    status, _, body = site.ask("GET", path)
    assert status == 404
    assert body.count(b"\n") == 1
    assert not body.startswith(b"{")


def test_vocabulary_template_and_announcements_are_served_byte_for_byte(site):
    trained(site.aggregator)
    manifest = site.aggregator.manifest()
    assert site.ask("GET", manifest.vocabulary_url)[2] == VOCABULARY.to_bytes()
    template = site.ask("GET", f"/v1/templates/{manifest.template_sha256}")[2]
    assert site.ask("GET", template_path(manifest.population, manifest.template_sha256))[2] == template
    assert site.ask("GET", template_path("another", manifest.template_sha256))[0] == 404
    assert template == make_bundle().signed_manifest
    for track, version in (("training", 2), ("refresh", 1)):
        body = site.ask("GET", f"/v1/populations/toy/{track}")[2]
        with site.aggregator.database.reading() as records:
            assert body == records.announcement(POPULATION, track).signed_manifest
        assert site.aggregator.manifest(track).version == version


@pytest.mark.parametrize("path", ["/status", "/devices", "/rounds", "/releases", "/schedule", "/devices/00"])
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
def test_the_operators_api_is_closed_without_the_token(site, path, header):
    status, headers, body = site.ask("GET", f"/v1/operator{path}", **header)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert b"token is needed" in body


def test_nothing_changes_without_the_token(site):
    site.ask("POST", "/v1/operator/tokens", b"{}")
    site.ask("POST", "/v1/operator/releases", b"{}", Authorization="Bearer ")
    with site.aggregator.database.reading() as records:
        assert records.tokens() == []
        assert len(records.releases(None)) == 1


def test_a_minted_token_enrols_and_the_device_is_found_by_prefix_and_label(site):
    status, minted = site.operate("POST", "/tokens", label="kitchen pi")
    assert (status, minted["population"], minted["server"]) == (200, POPULATION, site.handle.url)
    phone = Phone(1, site.aggregator)
    assert site.ask("POST", "/v1/enrol", encode_message(phone.enrolment(minted["token"])))[0] == 200
    assert site.operate("GET", f"/devices/{phone.id[:6]}")[1]["device"] == phone.id
    assert site.operate("POST", f"/devices/{phone.id}/label", label="attic")[1]["label"] == "attic"
    assert site.operate("GET", "/devices/attic")[1]["device"] == phone.id
    assert site.operate("POST", f"/devices/{phone.id}/revoke")[1]["state"] == "revoked"
    assert site.operate("GET", "/devices/zz")[0] == 404


def test_what_changes_a_device_takes_its_whole_id(site):
    phone, other = phones(site.aggregator, 2)
    for name in (phone.id[:6], "phone%201"):
        assert site.operate("GET", f"/devices/{name}")[1]["device"] == phone.id
        assert site.operate("POST", f"/devices/{name}/revoke")[0] == 404
        assert site.operate("POST", f"/devices/{name}/label", label="x")[0] == 404
    assert site.operate("POST", f"/devices/{phone.id}/label", label=other.id)[0] == 422
    shown = site.operate("GET", f"/devices/{phone.id}")[1]
    assert (shown["state"], shown["label"]) == ("offline", "phone 1")


def test_rounds_and_releases_tell_what_happened(site):
    trained(site.aggregator)
    _, rounds = site.operate("GET", "/rounds")
    assert [(r["round"], r["state"], r["updates"]) for r in rounds["items"]] == [
        ("r-0002", "collecting", 0),
        ("r-0001", "closed", 4),
    ]
    _, shown = site.operate("GET", "/rounds/r-0001")
    assert [update["staleness"] for update in shown["accepted"]] == [0] * 4
    assert not any("data" in key or "sealed" in key for key in shown["accepted"][0])
    _, plan = site.operate("POST", "/releases", dry_run=True)
    assert (plan["outcome"], plan["version"]) == ("planned", 2)
    assert site.aggregator.manifest("refresh").version == 1
    _, release = site.operate("POST", "/releases")
    assert (release["outcome"], release["release"]) == ("released", "v-0002")
    assert site.operate("POST", "/releases")[0] == 409
    _, undone = site.operate("POST", "/releases/undo")
    assert (undone["version"], undone["previous"]) == (3, 2)
    _, listed = site.operate("GET", "/releases?limit=1")
    assert (listed["total"], [r["outcome"] for r in listed["items"]]) == (3, ["undone"])
    assert site.operate("GET", "/releases/v-0002")[1]["outcome"] == "released"


def test_the_schedule_can_be_set_and_a_wrong_one_changes_nothing(site):
    assert site.operate("PUT", "/schedule", cron="30 4 * * 1", time_zone="Europe/Berlin")[0] == 200
    assert site.operate("PUT", "/schedule", cron="often")[0] == 422
    assert site.operate("PUT", "/schedule", corn="0 6 * * 0")[0] == 422
    shown = site.operate("GET", "/schedule")[1]
    assert (shown["cron"], shown["time_zone"]) == ("30 4 * * 1", "Europe/Berlin")


def test_status_counts_what_was_accepted_and_refused(site):
    trained(site.aggregator)
    phone = Phone(9, site.aggregator)
    phone.enrol()
    site.aggregator.take(*phone.update(phone.lease(), layout_fingerprint="ab" * 32))
    site.aggregator.turn()
    _, status = site.operate("GET", "/status")
    (population,) = status["populations"]
    assert population["accepted_by_staleness"] == {"0": 4}
    assert population["refused"] == {"wrong_layout": 1}
    assert (population["training_version"], population["refresh_version"]) == (2, 1)


def test_a_taken_port_is_refused_by_name(site):
    port = urlsplit(site.handle.url).port
    from cloud_aggregator.errors import Refused

    with pytest.raises(Refused, match=f"127.0.0.1:{port} cannot be listened on"):
        start_http(site.aggregator.service, "127.0.0.1", port, operator_token=TOKEN)


def test_the_public_url_is_what_devices_are_told(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    handle = start_http(aggregator.service, "127.0.0.1", 0, operator_token=TOKEN, public_url="https://fleet.example")
    handle.stop()
    assert aggregator.service.addresses.model_url == "https://fleet.example"
