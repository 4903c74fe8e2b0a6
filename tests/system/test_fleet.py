"""A small fleet of real agents and a real aggregator over a real broker: what must hold of any fleet."""

import json
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloud_aggregator.adapters.broker import find_mosquitto, start_broker
from cloud_aggregator.config import PaceSettings, PopulationSettings, ReleaseSettings
from cloud_aggregator.server_optimizer import OptimizerSettings
from fleet_simulator.control import HeldOutPerson
from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import DAY_S, Tick, Visit, play_nights
from wire_contract.codec import MAGIC
from wire_contract.envelope import read_envelope
from wire_contract.manifest import decode_manifest
from wire_contract.messages import CodecPlan, Plan
from wire_contract.vocabulary import Vocabulary, split_sentences

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests/edge_runtime/fixtures/tiny"
DEVICES = 8
SETTINGS = PopulationSettings(
    goal_count=3,
    minimum_updates=1,
    lease_seconds=5 * DAY_S,
    pace=PaceSettings(minimum_seconds=600, maximum_seconds=3600),
    plan=Plan(rows=32, epochs=1, clip_norm=10.0, example_cap=32, codec=CodecPlan(kept=0.02)),
    optimizer=OptimizerSettings(warmup_steps=0),
    release=ReleaseSettings(cron=""),
)


WORDS = Vocabulary.from_bytes((BUNDLE / "vocabulary.txt").read_bytes())


def people() -> list[tuple[str, ...]]:
    """What 24 people typed, each word replaced by one of the tiny bundle's invented words."""
    lines = (ROOT / "tests/fixtures/people.jsonl").read_text().splitlines()
    return [tuple(map(in_invented_words, json.loads(line)["messages"])) for line in lines]


def in_invented_words(text: str) -> str:
    sentences = [" ".join(WORDS.words[4 + crc32(word.encode()) % 596] for word in tokens) for tokens in
                 split_sentences(text)]  # fmt: skip
    return ". ".join(sentences)


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.needs_mosquitto), "iotcore"])
def kind(request):
    if request.param == "mosquitto" and find_mosquitto() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mosquitto is missing: apt-get install mosquitto")
        pytest.skip("mosquitto is missing: apt-get install mosquitto")
    return request.param


@contextmanager
def running_broker(kind: str, folder: Path) -> Iterator[str]:
    handle = start_broker("", folder, say=lambda text: None, prefer=kind)
    try:
        yield handle.url
    finally:
        handle.stop()


@pytest.fixture
def broker_url(kind, tmp_path):
    with running_broker(kind, tmp_path / "broker") as url:
        yield url


def first_midnight() -> int:
    return int(time.time()) // DAY_S * DAY_S - 20 * DAY_S


def fleet(home: Path, broker_url: str, seed: int = 3) -> Fleet:
    return Fleet(home, BUNDLE, SETTINGS, seed=seed, now=first_midnight() - 3600, processes=2, broker_url=broker_url)


def tell(home: Path, kind: str, seed: int) -> tuple[str, dict[str, int], dict[str, int], Counter[str]]:
    """Play five nights; return the hash of the last model, staleness, refusals, and states of the update rows."""
    with running_broker(kind, home / "broker") as url, fleet(home, url, seed) as some:
        some.move_in(people()[:DEVICES])
        for tick in play_nights(seed, devices=DEVICES, nights=5, visits_a_tick=6, first_midnight=first_midnight()):
            some.play(tick)
        some.release()
        some.host.write_refresh(home / "last")
        some.leave()
        totals = some.totals()
    sha256 = decode_manifest(read_envelope((home / "last/manifest.bin").read_bytes()).body).sha256
    rows = sqlite3.connect(next((home / "cloud").glob("*.db"))).execute(
        "select verdict, count(*), count(distinct update_id) from updates group by verdict"
    )
    counted = Counter()
    for verdict, count, distinct in rows:
        assert count == distinct
        counted[verdict] = count
    return sha256, totals.staleness, totals.refused, counted


def test_one_seed_gives_one_model_on_any_broker_and_every_update_is_counted_once(tmp_path, kind):
    sha256, staleness, refused, rows = tell(tmp_path / "a", kind, 3)
    again, *_ = tell(tmp_path / "b", kind, 3)
    other, *_ = tell(tmp_path / "c", kind, 4)
    assert sha256 == again
    assert sha256 != other
    assert sum(staleness.values()) == rows["accepted"] > 15
    assert set(staleness) & {"1", "2", "3"}
    assert {name: count for name, count in rows.items() if name != "accepted"} == refused


def visit(device: int, fate: str, **more: int) -> Visit:
    return Visit(device, fate, **more)  # type: ignore[arg-type]


def test_fates_do_what_they_say_and_nothing_is_lost(tmp_path, broker_url):
    start = first_midnight()
    ticks = [
        Tick(0, start + 3600, (visit(0, "busy"), visit(1, "battery"), visit(2, "warm"), visit(3, "metered", late=1),
                               visit(4, "unplugged", step=1), visit(5, "killed", step=1)), ()),
        Tick(1, start + DAY_S + 3600, (visit(0, "quiet"), visit(4, "quiet"), visit(5, "quiet")), (3,)),
    ]  # fmt: skip
    with fleet(tmp_path / "home", broker_url) as some:
        some.move_in(people()[:DEVICES])
        first = some.play(ticks[0])
        assert (first.check_ins, first.accepted) == (3, 0)
        stayed = some.totals().stayed_away
        assert stayed == {"busy": 1, "on battery": 1, "warm": 1}
        assert (some.totals().interrupted, some.totals().killed) == (1, 1)
        second = some.play(ticks[1])
        some.leave()
        # The waiting update, the resumed one, the killed device's and the quiet one: all four, each once.
        assert second.accepted == 4
        assert some.totals().resumed == 1


def test_the_brokers_bytes_show_neither_update_nor_text(tmp_path, broker_url):
    seen: list[tuple[str, bytes]] = []
    subscribed = threading.Event()
    listener = paho.Client(CallbackAPIVersion.VERSION2, client_id="listener", protocol=paho.MQTTv5)
    listener.on_connect = lambda client, *_: client.subscribe("#", qos=1)
    listener.on_subscribe = lambda *_: subscribed.set()
    listener.on_message = lambda _c, _d, message: seen.append((message.topic, bytes(message.payload)))
    host, port = broker_url.removeprefix("mqtt://").split(":")
    listener.connect(host, int(port))
    listener.loop_start()
    assert subscribed.wait(10)
    start = first_midnight()
    plan = Plan(rows=32, epochs=1, example_cap=32, codec=CodecPlan(kept=0.02, entropy="none"))
    plain = msgspec.structs.replace(SETTINGS, plan=plan)
    texts = [(*text, "my neighbour whispered zanzibar and quicksilver") for text in people()[:3]]
    with Fleet(tmp_path / "home", BUNDLE, plain, seed=1, now=start - 3600, processes=1, broker_url=broker_url) as some:
        some.move_in(texts)
        outcome = some.play(Tick(0, start + 3600, tuple(visit(i, "quiet") for i in range(3)), ()))
        some.leave()
    listener.loop_stop()
    listener.disconnect()
    assert outcome.accepted == 3
    chunks = [payload for topic, payload in seen if topic.startswith("fl/v1/up/") and not topic.endswith("init")]
    assert len(chunks) >= 3
    everything = b"\n".join(payload for _, payload in seen)
    assert MAGIC not in everything
    for word in (b"zanzibar", b"quicksilver", b"neighbour whispered"):
        assert word not in everything


def test_held_out_people_are_scored_on_every_position_of_their_tail(tmp_path, broker_url):
    texts = people()
    held_out = [HeldOutPerson(f"p{i}", texts[i][:20], texts[i][20:30]) for i in range(10, 13)]
    with fleet(tmp_path / "home", broker_url) as some:
        some.move_in(texts[:2])
        scored = some.score(held_out, 500)
        some.leave()
    expected = 0
    for person in held_out:
        ids = [i for text in person.tail for i in WORDS.encode_text(text)]
        expected += sum(i not in (0, 1, 3) for i in ids[1:])
    assert scored.before.words == scored.after.words == scored.personal.words == expected
    # Nothing was trained, so the released version is the first one.
    assert scored.before == scored.after
