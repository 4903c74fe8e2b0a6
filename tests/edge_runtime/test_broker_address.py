import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.broker_address import RETURN_S, BrokerAddress, Route, parse_addresses
from edge_runtime.ports import Unreachable


def test_addresses_are_read_in_their_order_with_the_ports_of_their_schemes():
    text = "mqtts://broker.example mqtt://10.0.0.1:1884 wss://broker.example ws://[fe80::1]:8080/deep/path"
    assert parse_addresses(text) == (
        BrokerAddress("mqtts", "broker.example", 8883),
        BrokerAddress("mqtt", "10.0.0.1", 1884),
        BrokerAddress("wss", "broker.example", 443, "/mqtt"),
        BrokerAddress("ws", "fe80::1", 8080, "/deep/path"),
    )
    assert [(a.tls, a.websocket) for a in parse_addresses(text)] == [
        (True, False), (False, False), (True, True), (False, True)
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:1883/"])
def test_a_single_address_of_an_older_enrolment_stays_valid(text):
    assert parse_addresses(text) == (BrokerAddress("mqtt", "127.0.0.1", 1883),)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "mqtt://a  mqtt://b", " mqtt://a", "mqtt://a\tmqtt://b", "mqtt://a\n", "http://a:80", "mqtt:a", "mqtt://",
        "mqtt://user:secret@a", "mqtt://a:0", "mqtt://a:65536", "mqtt://a:1883x", "mqtt://a/path", "ws://a/mqtt?x=1",
        "ws://a/mq tt", "wss://a/../#x", "mqtt://-a", "mqtt://a mqtt://a:1883", "ws://a\r\nX: y",
        " ".join(f"mqtt://h{i}" for i in range(5)), "mqtt://[fe80::1", "MQTT://a",
    ],
)  # fmt: skip
def test_what_is_no_list_of_addresses_is_refused(text):
    with pytest.raises(Unreachable, match=r"mqtt://HOST:PORT|a port is|has a path"):
        parse_addresses(text)


hosts = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20})", fullmatch=True)
addresses = st.builds(
    lambda scheme, host, port: BrokerAddress(scheme, host, port, "/mqtt" if scheme in ("ws", "wss") else ""),
    st.sampled_from(["mqtt", "mqtts", "ws", "wss"]), hosts, st.integers(1, 65_535),
)  # fmt: skip


@given(st.lists(addresses, min_size=1, max_size=4, unique=True))
def test_what_is_written_reads_back(some):
    assert parse_addresses(" ".join(map(str, some))) == tuple(some)


THREE = parse_addresses("mqtts://a mqtt://b wss://c")


def test_what_worked_is_tried_first_and_the_first_has_its_chance_again_after_six_hours():
    route = Route(THREE, since=100.0)
    assert route.order(100.0) == (0, 1, 2)
    route = route.worked(2, 200.0)
    assert route.order(201.0) == (2, 0, 1)
    assert route.order(200.0 + RETURN_S - 1) == (2, 0, 1)
    assert route.order(200.0 + RETURN_S) == (0, 1, 2)
    # The first failed again, the last worked: the next chance is six hours later, not at every connection.
    again = route.worked(2, 200.0 + RETURN_S)
    assert again.order(300.0 + RETURN_S) == (2, 0, 1)
    assert route.worked(0, 200.0 + RETURN_S).order(300.0 + RETURN_S) == (0, 1, 2)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1e5)), max_size=20))
def test_every_address_is_tried_once_whatever_worked_before(history):
    route, now = Route(THREE), 0.0
    for place, later in history:
        now += later
        assert sorted(route.order(now)) == [0, 1, 2]
        route = route.worked(place, now)
        assert route.order(now)[0] == place or now - route.since >= RETURN_S
