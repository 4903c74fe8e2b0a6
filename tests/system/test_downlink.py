"""How a version gets to a device that holds an older one: the real HTTP server, real files on both sides."""

import hashlib
import http.client
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.delta_files import DeltaFiles
from cloud_aggregator.adapters.key_files import make_keys
from cloud_aggregator.bundle import read_bundle
from cloud_aggregator.config import DownlinkSettings, PopulationSettings
from cloud_aggregator.delta_publisher import DeltaPublisher
from cloud_aggregator.deltas import Pair
from cloud_aggregator.population import found, make_announcement
from cloud_aggregator.records import VersionRecord
from cloud_aggregator.registry import Registered
from cloud_aggregator.service import Service
from cloud_aggregator.web.server import start_http
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.model_slots import ModelSlots
from edge_runtime.ports import Unreachable
from edge_runtime.trust import Keys
from edge_runtime.version_keeper import CountedDownloads
from tests.cloud_aggregator.fleet import SetClock, Wire, entropy
from tests.edge_runtime.fakes import MIDNIGHT, TINY
from wire_contract.patch import patch, read_tensors


class Cloud:
    """An aggregator whose versions are made by a seeded walk instead of by a fleet."""

    def __init__(self, folder: Path, downlink: DownlinkSettings) -> None:
        self.folder, self.keys = folder, make_keys(folder, entropy(b"service"))
        self.database, self.blobs = SqlDatabase.in_folder(folder), FileBlobs(folder / "blobs")
        self.bundle = read_bundle(TINY, None)
        self.manifest, self.population = self.bundle.manifest, self.bundle.manifest.population
        with self.database.transaction() as records:
            found(records, self.blobs, self.keys, self.bundle, PopulationSettings(downlink=downlink), MIDNIGHT)
        self.deltas = DeltaPublisher(self.database, self.blobs, DeltaFiles(folder / "deltas"))
        self.service = Service(
            self.database, self.blobs, self.keys, Wire(), SetClock(MIDNIGHT), entropy=entropy(b"x"), deltas=self.deltas
        )
        self.http = start_http(self.service, "127.0.0.1", 0, operator_token="secret")
        self.files = [self.bundle.model]
        self.master = read_tensors(self.bundle.model, self.manifest)
        self.rng = np.random.default_rng(4)

    def step(self, count: int = 1, size: float = 0.002) -> str:
        """Publish training versions one after another; return the last one's hash."""
        for _ in range(count):
            for name, value in self.master.items():
                mask = self.rng.random(value.shape) < 0.2
                self.master[name] = (value + mask * self.rng.normal(size=value.shape) * size).astype(np.float32)
            file = patch(self.files[-1], self.manifest, self.master, keep=0.75)
            self.files.append(file)
            sha256, number = self.blobs.put(file), self.manifest.version + len(self.files) - 1
            made = VersionRecord(
                population=self.population, version=number, sha256=sha256, ordinal=len(self.files) - 1,
                made_at=MIDNIGHT, opened_at=MIDNIGHT, cause="goal count", updates=1, staleness=(1, 0, 0, 0),
                delta_norm=1.0,
            )  # fmt: skip
            registered = Registered(number, sha256, made.ordinal)
            with self.database.transaction() as records:
                records.add_version(made)
                records.announce(make_announcement(self.manifest, self.keys, "training", registered, MIDNIGHT, 90))
        return sha256

    def hashes(self) -> list[str]:
        return [hashlib.sha256(file).hexdigest() for file in self.files]

    def cached(self) -> set[Pair]:
        return DeltaFiles(self.folder / "deltas").pairs()

    def ask(self, path: str, method: str = "GET", **headers: str):
        parts = urlsplit(self.http.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        try:
            connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        self.http.stop()
        self.deltas.close()
        self.database.close()


class Cut:
    """A link that breaks off after so many bytes, once; remembers what was asked for."""

    def __init__(self) -> None:
        self.http, self.after, self.asked = HttpDownloads(30), None, []

    def fetch(self, url, start, limit_bytes):
        self.asked.append((urlsplit(url).path, start))
        opened = self.http.fetch(url, start, limit_bytes)
        return replace(opened, chunks=self._cut(opened.chunks))

    def _cut(self, chunks):
        for piece in chunks:
            if self.after is not None:
                yield piece[: self.after]
                self.after = None
                raise Unreachable("the link broke")
            yield piece


class Phone:
    """A device's slots over a folder."""

    def __init__(self, home: Path, cloud: Cloud) -> None:
        self.home, self.cloud, self.link = home, cloud, Cut()
        self.downloads = CountedDownloads(self.link)
        keys = Keys(cloud.bundle.manifest_key, cloud.keys.public)
        self.slots = ModelSlots(
            home, keys, cloud.population, cloud.http.url, self.downloads, lambda data, manifest: None
        )

    def install(self) -> int:
        """Install what the training track announces; return how many bytes of model that took."""
        signed = self.slots.fetch(f"/v1/populations/{self.cloud.population}/training", 100_000)
        before = self.downloads.bytes_down
        self.slots.install(signed, "training", MIDNIGHT)
        assert self.slots.current("training").data == self.cloud.files[-1]
        return self.downloads.bytes_down - before

    def names(self) -> set[str]:
        return {path.name for path in (self.home / "models").iterdir()}

    def asked_for(self, word: str) -> list[tuple[str, int]]:
        return [(path, start) for path, start in self.link.asked if word in path]


SIZE = (TINY / "model.tflite").stat().st_size


@pytest.fixture
def cloud(tmp_path, request):
    made = Cloud(tmp_path / "cloud", getattr(request, "param", DownlinkSettings()))
    yield made
    made.close()


@pytest.fixture
def phone(tmp_path, cloud):
    made = Phone(tmp_path / "phone", cloud)
    cloud.step()
    assert made.install() > SIZE
    return made


def test_a_device_three_versions_behind_gets_a_delta_and_ends_with_the_same_bytes(cloud, phone):
    for behind in (1, 3, 8):
        target = cloud.step(behind)
        assert phone.install() < SIZE / 12
        assert phone.asked_for("/models/")[1:] == []
        assert f"{target}.tflite" in phone.names() and all(name.endswith(".tflite") for name in phone.names())
    assert phone.slots.refused_parts == []


def test_a_device_that_missed_ten_versions_gets_the_file_where_deltas_go_back_eight(cloud, phone):
    cloud.step(10)
    assert phone.install() == SIZE
    assert phone.asked_for("/deltas/")[-1][0].endswith(cloud.hashes()[-1])
    cloud.step()
    assert phone.install() < SIZE / 12


@pytest.mark.parametrize("cloud", [DownlinkSettings(delta_versions=12)], indirect=True)
def test_a_device_that_missed_ten_versions_gets_a_delta_where_they_go_back_twelve(cloud, phone):
    cloud.step(10)
    assert phone.install() < SIZE / 8


@pytest.mark.parametrize("cloud", [DownlinkSettings(delta_versions=0)], indirect=True)
def test_without_deltas_every_version_is_a_whole_file(cloud, phone):
    cloud.step()
    assert phone.install() == SIZE


def test_a_damaged_slot_is_passed_over_for_the_previous_one_and_two_damaged_ones_for_the_file(cloud, phone):
    cloud.step()
    phone.install()
    cloud.step()
    current = phone.home / "models" / f"{phone.slots.slot('training').current}.tflite"
    rotten = bytearray(current.read_bytes())
    rotten[70_000] ^= 1
    current.write_bytes(rotten)
    assert phone.install() < SIZE / 8 and not current.exists()
    for path in (phone.home / "models").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    cloud.step()
    assert phone.install() == SIZE


def test_a_broken_download_of_a_delta_goes_on_by_range(cloud, phone):
    target = cloud.step(5)
    phone.link.after = 1_000
    with pytest.raises(Unreachable):
        phone.slots.install(announced(cloud), "training", MIDNIGHT)
    (part,) = (phone.home / "models").glob("*.part")
    assert part.name.startswith(f"{target}.") and part.stat().st_size == 1_000
    assert phone.slots.current("training").data == cloud.files[1]
    phone.install()
    assert phone.asked_for("/deltas/")[-1][1] == 1_000 and phone.asked_for("/models/")[1:] == []


def announced(cloud):
    with cloud.database.reading() as records:
        return records.announcement(cloud.population, "training").signed_manifest


def test_a_delta_that_breaks_off_three_times_gives_way_to_the_whole_file(cloud, phone):
    cloud.step()
    for _ in range(3):
        phone.link.after = 10
        with pytest.raises(Unreachable):
            phone.slots.install(announced(cloud), "training", MIDNIGHT)
    assert phone.install() == SIZE


def plant(cloud, pair, data):
    (cloud.folder / "deltas" / f"{pair.base}-{pair.target}").write_bytes(data)


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        ("wrong base", "delta_wrong_base"),
        ("wrong target", "delta_wrong_target"),
        ("wrong hash", "delta_wrong_hash"),
        ("noise", "delta_malformed"),
        ("too large", "delta_too_large"),
    ],
)
def test_a_delta_of_no_use_is_refused_by_name_deleted_and_the_file_fetched(cloud, phone, lie, name):
    from wire_contract import delta

    cloud.step(2)
    hashes = cloud.hashes()
    pair = Pair(hashes[1], hashes[3])
    honest = delta.encode(cloud.files[1], cloud.files[3], cloud.manifest)
    hop = delta.read(delta.encode(cloud.files[1], cloud.files[2], cloud.manifest)).hops[0]
    lies = {
        "wrong base": delta.encode(cloud.files[2], cloud.files[3], cloud.manifest),
        "wrong target": delta.encode(cloud.files[1], cloud.files[2], cloud.manifest),
        "wrong hash": delta.write(delta.Delta(cloud.manifest.template_sha256, (replace(hop, target=hashes[3]),))),
        "noise": honest[:40] + b"noise" + honest[45:],
        "too large": honest + bytes(SIZE),
    }
    plant(cloud, pair, lies[lie])
    assert phone.install() >= SIZE
    assert phone.slots.refused_parts == [name]
    assert phone.names() == {f"{hashes[1]}.tflite", f"{hashes[3]}.tflite"}


def test_what_nobody_can_need_is_404_not_remembered_and_never_made(cloud, phone):
    cloud.step(2)
    hashes = cloud.hashes()
    stranger = "ab" * 32
    for base, target in ((stranger, hashes[-1]), (hashes[-1], stranger), (hashes[-1], hashes[1]), (hashes[2],) * 2):
        status, headers, _ = cloud.ask(f"/v1/populations/{cloud.population}/deltas/{base}/{target}")
        assert (status, headers["cache-control"]) == (404, "no-store")
    assert cloud.ask(f"/v1/populations/other/deltas/{hashes[1]}/{hashes[-1]}")[0] == 404
    assert cloud.cached() == set()


def test_a_delta_is_served_with_range_and_etag_like_any_immutable_file(cloud, phone):
    cloud.step(2)
    base, target = cloud.hashes()[1], cloud.hashes()[3]
    path = f"/v1/populations/{cloud.population}/deltas/{base}/{target}"
    status, headers, whole = cloud.ask(path)
    assert (status, headers["etag"]) == (200, f'"{base}-{target}"') and "immutable" in headers["cache-control"]
    assert cloud.ask(path, Range="bytes=100-")[::2] == (206, whole[100:])
    assert cloud.ask(path, If_None_Match=headers["etag"])[0] == 304
    assert cloud.ask(path, "HEAD")[1]["content-length"] == str(len(whole))


def test_many_that_ask_at_once_get_one_and_the_same_delta(cloud, phone):
    cloud.step(3)
    path = f"/v1/populations/{cloud.population}/deltas/{cloud.hashes()[1]}/{cloud.hashes()[4]}"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(cloud.ask(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in answers} == {200} and len({body for _, _, body in answers}) == 1
    assert cloud.cached() == {Pair(cloud.hashes()[1], cloud.hashes()[4])}


def test_a_new_version_prepares_its_neighbours_delta_and_drops_what_led_to_older_ones(cloud, phone):
    for _ in range(2):
        cloud.step(2)
        phone.install()
    cloud.deltas.prepare(cloud.population)
    cloud.step()
    cloud.deltas.prepare(cloud.population)
    hashes = cloud.hashes()
    # One worker does one thing after another: what is asked for now comes last.
    assert cloud.ask(f"/v1/populations/{cloud.population}/deltas/{hashes[-3]}/{hashes[-1]}")[0] == 200
    assert Pair(hashes[-2], hashes[-1]) in cloud.cached()
    assert Pair(hashes[1], hashes[3]) not in cloud.cached() and Pair(hashes[3], hashes[5]) not in cloud.cached()
    assert cloud.deltas.troubles() == []


def test_that_a_pair_has_no_delta_worth_sending_is_remembered_as_an_empty_file(cloud, phone):
    cloud.step()
    base, target = cloud.hashes()[1:]
    plant(cloud, Pair(base, target), b"")
    assert cloud.ask(f"/v1/populations/{cloud.population}/deltas/{base}/{target}")[0] == 404
    assert phone.install() == SIZE


def test_a_damaged_blob_makes_no_delta_and_a_trouble_and_the_device_is_told_to_take_the_file(cloud, phone):
    cloud.step()
    base, target = cloud.hashes()[1:]
    path = cloud.blobs.path(base)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert cloud.ask(f"/v1/populations/{cloud.population}/deltas/{base}/{target}")[0] == 404
    assert "damaged" in cloud.deltas.troubles()[0] and cloud.cached() == set()
    assert phone.install() == SIZE


def test_a_fleet_that_waits_for_a_new_delta_stops_no_other_route(cloud, phone):
    cloud.step(2)
    base, target = cloud.hashes()[1], cloud.hashes()[3]
    path = f"/v1/populations/{cloud.population}/deltas/{base}/{target}"
    worker_may_go_on = threading.Event()
    cloud.deltas._pool.submit(worker_may_go_on.wait, 60)
    answers = []
    # More than the server has threads.
    threads = [threading.Thread(target=lambda: answers.append(cloud.ask(path))) for _ in range(60)]
    try:
        for thread in threads:
            thread.start()
        parts = urlsplit(cloud.http.url)
        for _ in range(60):
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
            connection.request("GET", "/v1/health")
            assert connection.getresponse().status == 200
            connection.close()
        assert answers == [] and cloud.deltas.makes(Pair(base, target))
    finally:
        worker_may_go_on.set()
        for thread in threads:
            thread.join()
    assert {status for status, _, _ in answers} == {200} and len({body for _, _, body in answers}) == 1


class CountedFiles(DeltaFiles):
    looked = 0

    def pairs(self):
        self.looked += 1
        return super().pairs()


def test_versions_that_come_faster_than_deltas_are_prepared_for_once(cloud, tmp_path):
    cloud.step(1)
    files = CountedFiles(tmp_path / "counted")
    publisher = DeltaPublisher(cloud.database, cloud.blobs, files)
    worker_may_go_on = threading.Event()
    publisher._pool.submit(worker_may_go_on.wait, 60)
    for _ in range(100):
        publisher.prepare(cloud.population)
    worker_may_go_on.set()
    publisher._pool.submit(int).result(60)
    publisher.close()
    assert files.looked == 1 and files.pairs() == {Pair(*cloud.hashes())}


def test_a_publisher_that_is_closed_begins_nothing_and_leaves_no_thread(cloud):
    cloud.step(1)
    pair = Pair(*cloud.hashes())
    cloud.deltas.close()
    cloud.deltas.prepare(cloud.population)
    cloud.deltas.begin(cloud.population, pair)
    assert not cloud.deltas.makes(pair) and cloud.cached() == set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deltas")]


def test_the_directory_of_deltas_may_be_deleted_while_the_service_runs(cloud, phone):
    target = cloud.step(2)
    shutil.rmtree(cloud.folder / "deltas")
    cloud.deltas.prepare(cloud.population)
    assert phone.install() < SIZE / 2
    assert Pair(cloud.hashes()[1], target) in cloud.cached() and cloud.deltas.troubles() == []
