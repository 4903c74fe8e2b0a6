"""Real agents, aggregator and HTTP side under `principal_axes` and a threshold; each version is judged by einsum."""

import msgspec
import numpy as np

from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.key_files import load_keys
from cloud_aggregator.named_basis import name_of
from cloud_aggregator.round_replay import replay
from cloud_aggregator.server_optimizer import OptimizerSettings
from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import DAY_S, Tick, Visit
from tests.system.test_fleet import BUNDLE, SETTINGS, first_midnight, people, running_broker
from wire_contract import codec, envelope
from wire_contract.basis import Basis, decode_basis
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.messages import CodecPlan, UpdateHeader, decode_message
from wire_contract.patch import read_tensors

DEVICES = 3
NIGHTS = 3
TURNED = CodecPlan(mode="topk", kept=0.1, bits=8, threshold=2e-4)


def test_a_fleet_whose_updates_are_in_principal_axes_makes_the_versions_that_an_independent_sum_makes(tmp_path):
    settings = msgspec.structs.replace(
        SETTINGS,
        plan=msgspec.structs.replace(SETTINGS.plan, codec=TURNED),
        principal_axes=True,
        optimizer=OptimizerSettings(name="fedavg", learning_rate=1.0, warmup_steps=0),
        hysteresis=0.0,
    )
    start, home = first_midnight(), tmp_path / "home"
    with running_broker("iotcore", tmp_path / "broker") as url, Fleet(
        home, BUNDLE, settings, seed=3, now=start - 3600, processes=2, broker_url=url
    ) as fleet:  # fmt: skip
        fleet.move_in(people()[:DEVICES])
        visits = tuple(Visit(device, "quiet") for device in range(DEVICES))
        accepted = [fleet.play(Tick(n, start + n * DAY_S + 3600, visits, ())).accepted for n in range(NIGHTS)]
        fleet.leave()
    assert accepted == [DEVICES] * NIGHTS
    database, blobs, keys = (
        SqlDatabase.in_folder(home / "cloud"),
        FileBlobs(home / "cloud/blobs"),
        load_keys(home / "cloud"),
    )
    with database.reading() as records:
        (population,) = records.populations()
        basis = decode_basis(blobs.get(name_of(records, population.population)))
        manifest = decode_manifest(envelope.verify(population.signed_template, "manifest", population.manifest_key))
        versions = sorted(records.versions(population.population), key=lambda version: version.version)
        master = Layout.of(manifest).flatten(read_tensors(blobs.get(versions[0].sha256), manifest)).astype(np.float64)
        for version in versions[1:]:
            rows = records.updates_of_version(population.task, version.version)
            sums = np.zeros(len(master))
            for row in rows:
                sums += row.weight * vector_of(records.sealed_bytes(row.id), row.header, keys, len(master))
            master = master + turned_back(sums / settings.goal_count, manifest, basis)
            published = read_tensors(blobs.get(version.sha256), manifest)
            for name, expected in Layout.of(manifest).unflatten(master.astype(np.float32)).items():
                step = np.abs(expected).max() / 127
                assert np.abs(published[name] - expected).max() <= 0.51 * step
            assert len(rows) == DEVICES
        np.testing.assert_allclose(records.optimizer(population.population).master, master, rtol=0, atol=1e-6)
        last = versions[-1].version
        assert len(versions) == 1 + NIGHTS
        again = replay(records, blobs, keys, population, last)
    database.close()
    assert again.identical and again.updates == DEVICES * NIGHTS, again.differs
    on_devices = [path.name for path in (home / "devices").rglob("bases/*")]
    assert on_devices == [f"{basis.sha256}.efb"] * DEVICES


def vector_of(sealed: bytes, header_bytes: bytes, keys, size: int) -> np.ndarray:
    header = decode_message(header_bytes, UpdateHeader)
    plain = envelope.unseal(
        sealed, header=header_bytes, ephemeral_key=header.ephemeral_key, recipient=keys.sealing
    )  # fmt: skip
    return codec.decode(plain, size=size).dense()


def turned_back(values: np.ndarray, manifest: Manifest, basis: Basis) -> np.ndarray:
    """The tensors by name in float64: rows of the embedding, rows' axis of the projection, two blocks of the kernel."""
    tensors, start = {}, 0
    for entry in manifest.tensors:
        size = int(np.prod(entry.shape))
        tensors[entry.name] = values[start : start + size].reshape(entry.shape)
        start += size
    matrix = basis.matrix.astype(np.float64)
    tensors["embedding"] = np.einsum("vn,on->vo", tensors["embedding"], matrix)
    tensors["projection"] = np.einsum("nc,on->oc", tensors["projection"], matrix)
    blocks = tensors["kernel"].reshape(len(tensors["kernel"]), 2, basis.width)
    tensors["kernel"] = np.einsum("kbn,on->kbo", blocks, matrix).reshape(tensors["kernel"].shape)
    return np.concatenate([tensors[entry.name].ravel() for entry in manifest.tensors])
