"""What services on the system's bus say, asked for over a real socket of a bus that is played here."""

import socket
import threading
import time
from pathlib import Path

import pytest
from jeepney import HeaderFields, MessageType, Parser, new_error, new_method_return

from edge_runtime.adapters.clock import NetworkTime
from edge_runtime.adapters.sensors import logind, metered_link
from edge_runtime.adapters.sensors.files import write_fixture
from edge_runtime.adapters.sensors.linux import LinuxSensors
from edge_runtime.adapters.sensors.system_bus import RETRY_S, SystemBus

NOW = 1_800_000_000.0
IDLE = (logind.INTERFACE, "IdleHint")
SINCE = (logind.INTERFACE, "IdleSinceHintMonotonic")
METERED = (metered_link.SERVICE, "Metered")


class PlayedBus:
    """Answers property questions from `properties` {(interface, name): (signature, value)}.

    `manner`: "well", "mute after hello", "mute" (no greeting), "hangs up", "endless", "nonsense" or "lies" (of a
    length inside its reply).
    """

    def __init__(self, root: Path) -> None:
        self.properties: dict[tuple[str, str], tuple[str, object]] = {}
        self.manner = "well"
        self.questions = 0
        self.connections = 0
        place = root / "run/dbus/system_bus_socket"
        place.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()
        self._thread.join(5.0)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._talk(connection)
        except OSError:
            return

    def _talk(self, connection: socket.socket) -> None:
        data = b""
        while b"BEGIN\r\n" not in data:
            data += connection.recv(4096)
            if self.manner != "mute" and data.endswith(b"\r\n") and b"BEGIN" not in data:
                connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
        parser, serial = Parser(), 0
        data = data.split(b"BEGIN\r\n", 1)[1] or connection.recv(4096)
        while data:
            for message in parser.feed(data):
                serial += 1
                reply = bytearray(self._answer(message).serialise(serial))
                if self.manner == "lies" and self.questions:
                    reply[-20] = 200
                connection.sendall(reply)
                if self.manner == "endless":
                    while True:
                        connection.sendall(bytes(65536))
            data = connection.recv(4096)

    def _answer(self, message):
        if message.header.fields[HeaderFields.member] == "Hello":
            return new_method_return(message, "s", (":1.7",))
        self.questions += 1
        if self.manner == "mute after hello":
            time.sleep(2.0)
        if self.manner == "hangs up":
            raise OSError("gone")
        if self.manner == "nonsense":
            return new_method_return(message, "s", ("what?",))
        value = self.properties.get(tuple(message.body))
        if self.manner == "lies":
            value = ("aau", [[1], [2, 3]])
        if value is None:
            return new_error(message, "org.freedesktop.DBus.Error.UnknownProperty", "s", ("no such property",))
        return new_method_return(message, "v", (value,))


@pytest.fixture
def bus(tmp_path):
    played = PlayedBus(tmp_path)
    yield played
    played.close()


def test_a_session_in_use_is_no_idleness_and_an_idle_one_says_since_when(tmp_path, bus):
    asked = SystemBus(tmp_path)
    bus.properties[IDLE] = ("b", False)
    assert logind.read_idle_s(asked) == 0.0
    bus.properties |= {IDLE: ("b", True), SINCE: ("t", 400_000_000)}
    assert logind.read_idle_s(asked, monotonic=lambda: 1000.0) == 600.0
    bus.properties[SINCE] = ("t", 0)
    assert logind.read_idle_s(asked, monotonic=lambda: 1000.0) == 1000.0, "no session since the start"
    assert bus.connections == 1
    asked.close()


@pytest.mark.parametrize(("value", "metered"), [(0, None), (1, True), (2, False), (3, True), (4, False), (9, None)])
def test_what_network_manager_says_or_guesses_about_the_link(tmp_path, bus, value, metered):
    bus.properties[METERED] = ("u", value)
    assert metered_link.read_metered(SystemBus(tmp_path)) is metered


def test_a_property_of_another_type_or_none_at_all_is_unknown(tmp_path, bus):
    asked = SystemBus(tmp_path)
    assert logind.read_idle_s(asked) is None and metered_link.read_metered(asked) is None
    bus.properties |= {IDLE: ("s", "yes"), METERED: ("b", True)}
    assert logind.read_idle_s(asked) is None and metered_link.read_metered(asked) is None
    assert bus.questions == 4 and bus.connections == 1, "an answer that says no is no reason to hang up"


@pytest.mark.parametrize("manner", ["mute", "mute after hello", "hangs up", "endless", "nonsense", "lies"])
def test_a_bus_that_does_not_answer_as_it_should_is_unknown_and_not_asked_again_for_a_minute(tmp_path, bus, manner):
    elapsed = [50.0]
    asked = SystemBus(tmp_path, lambda: elapsed[0])
    bus.properties[IDLE], bus.manner = ("b", False), manner
    assert logind.read_idle_s(asked) is None
    assert logind.read_idle_s(asked) is None
    assert bus.connections == 1
    bus.manner = "well"
    elapsed[0] += RETRY_S
    assert logind.read_idle_s(asked) == 0.0 and bus.connections == 2


def test_without_a_bus_nothing_is_loaded_and_everything_is_unknown(tmp_path):
    assert SystemBus(tmp_path).get("a.b", "/", "a.b", "C") is None
    assert LinuxSensors(tmp_path).read(NOW).idle_s.value is None


def test_the_owners_hook_counts_before_the_bus_while_it_is_fresh(tmp_path, bus):
    bus.properties |= {IDLE: ("b", False), METERED: ("u", 1)}
    write_fixture(tmp_path, charging=True, battery=80, idle_seconds=900, metered=False, celsius=40)
    sensors = LinuxSensors(tmp_path, elapsed=iter(range(1000)).__next__)
    readings = sensors.read(NOW)
    assert (readings.idle_s.value, readings.metered.value) == (900.0, False) and bus.questions == 0
    (tmp_path / "run/edge-runtime/idle_seconds").write_text(f"900 {NOW - 500}\n")
    (tmp_path / "run/edge-runtime/metered").unlink()
    readings = sensors.read(NOW)
    assert (readings.idle_s.value, readings.idle_s.source) == (0.0, "logind")
    assert (readings.metered.value, readings.metered.source) == (True, "NetworkManager")
    sensors.close()


def test_the_bus_is_asked_once_a_second_and_the_reading_says_how_old_it_is(tmp_path, bus):
    now = [100.0]
    bus.properties |= {IDLE: ("b", False), METERED: ("u", 2)}
    sensors = LinuxSensors(tmp_path, elapsed=lambda: now[0])
    for now[0] in (100.0, 100.3, 100.6, 100.9):
        readings = sensors.read(NOW)
    assert bus.questions == 2 and readings.metered.value is False
    assert readings.idle_s.age_s == pytest.approx(0.9)
    now[0] = 101.2
    assert sensors.read(NOW).idle_s.age_s == 0.0 and bus.questions == 4
    sensors.close()


def test_network_time_is_a_mark_of_timesyncd_or_the_kernels_flag_over_the_bus(tmp_path, bus):
    told = ("org.freedesktop.timedate1", "NTPSynchronized")
    asked = NetworkTime(tmp_path)
    assert not asked()
    bus.properties[told] = ("b", False)
    assert not asked()
    bus.properties[told] = ("b", True)
    assert asked()
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    (tmp_path / "run/systemd/timesync/synchronized").touch()
    before = bus.questions
    assert NetworkTime(tmp_path)() and bus.questions == before


def test_the_played_bus_speaks_of_errors_as_a_real_one_does(bus, tmp_path):
    asked = SystemBus(tmp_path)
    asked._open()
    from jeepney import DBusAddress, Properties

    reply = asked._ask(Properties(DBusAddress("/x", bus_name="a.b", interface="a.b")).get("C"))
    assert reply.header.message_type is MessageType.error
    asked.close()
