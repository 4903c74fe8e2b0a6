"""A `shared` plan on a device: the set is fetched by hash, refused by name, and the update says nothing by its form."""

import hashlib

import numpy as np
import pytest

from edge_runtime import public_files
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.adapters.vectors import Vectors, pack_kept, unpack_kept
from edge_runtime.model_slots import VersionRefused
from edge_runtime.ports import NotThere
from edge_runtime.public_files import INDEX_SET
from tests.edge_runtime.fakes import World
from wire_contract import codec
from wire_contract.codec import SparseVector
from wire_contract.index_set import decode_index_set, encode_index_set
from wire_contract.messages import MAX_INDEX_SET_BYTES, CodecPlan, Plan

UNIT = 2.0**-8


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "home")
    yield world
    world.agent.abandon()


def name_set(world, every: int = 20, data: bytes | None = None, path_hash: str | None = None) -> str:
    """Let the aggregator's plan name a set of every 20th value, and serve its file; return its hash."""
    size = world.aggregator.manifest.parameters
    file = encode_index_set(size, np.arange(0, size, every)) if data is None else data
    sha256 = hashlib.sha256(file).hexdigest() if path_hash is None else path_hash
    world.downloads.files[f"/v1/index-sets/{sha256}"] = file
    shared = CodecPlan(mode="shared", bits=6, headroom_bits=10, unit=UNIT, index_set=sha256)
    world.aggregator.plan = Plan(signature="train_sampled", rows=48, learning_rate=0.5, clip_norm=10.0, codec=shared)
    return sha256


def set_files(world) -> set[str]:
    folder = world.home / "index_sets"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def refusals(reports) -> list[str]:
    return [name for report in reports for name in report.refused]


def test_the_update_of_a_shared_plan_speaks_of_the_public_places_and_of_no_others(world):
    sha256 = name_set(world)
    world.type_text()
    world.night()
    ((update_id, update),) = world.aggregator.updates.items()
    index_set = decode_index_set((world.home / "index_sets" / f"{sha256}.efi").read_bytes())
    seen = codec.decode(
        update.plain, size=index_set.size, plan=world.aggregator.plan.codec, index_set=index_set
    )  # fmt: skip
    assert np.array_equal(seen.indices, np.arange(0, index_set.size, 20))
    assert np.count_nonzero(seen.values) > 20
    assert update.header.codec == "shared" and update.header.update_id == update_id
    assert len(update.plain) == 24 + 8 + (len(seen.indices) * 16 + 7) // 8


def test_two_people_send_updates_of_one_size(tmp_path):
    sizes = []
    for number, sentences in enumerate((60, 12)):
        world = World(tmp_path / str(number), seed=number)
        name_set(world)
        world.type_text(sentences)
        world.night()
        ((_, update),) = world.aggregator.updates.items()
        sizes.append((update.init.size_bytes, update.init.chunks))
        world.agent.abandon()
    assert sizes[0] == sizes[1]


def test_what_the_set_does_not_hold_stays_in_the_residual_with_the_bases_version(world):
    name_set(world)
    world.type_text()
    world.night()
    manifest = world.aggregator.manifest
    store = StateStore(world.home / "state.db")
    left = Vectors(world.home / "vectors", store).residual(manifest.layout_fingerprint, manifest.parameters)
    store.close()
    outside = np.ones(manifest.parameters, bool)
    outside[::20] = False
    assert left.base_version == manifest.version
    assert np.linalg.norm(left.vector[outside]) > 0
    assert np.abs(left.vector[~outside]).max() <= UNIT / 2 * (1 + 1e-3), "the set's own values but for rounding"


def test_the_device_says_that_it_can(world):
    world.type_text()
    world.night()
    assert {"codec:shared", "codec:topk", "codec:topk4"} <= set(world.aggregator.check_ins[0].capabilities)


def test_a_set_is_fetched_once_and_only_the_two_newest_stay(world):
    world.type_text()
    names = []
    for every in (20, 20, 30, 40):
        names.append(name_set(world, every))
        world.night()
        world.clock.time += 3600
    asked = [path for path, _ in world.downloads.requests if path.startswith("/v1/index-sets/")]
    assert asked == [f"/v1/index-sets/{name}" for name in (names[0], *names[2:])]
    assert set_files(world) == {f"{name}.efi" for name in names[2:]}
    assert len(world.aggregator.updates) == 4


def test_a_set_whose_bytes_are_others_is_refused_by_name_and_leaves_no_file(world):
    name_set(world, path_hash="ab" * 32)
    world.type_text()
    reports = world.night()
    assert "index_set_hash" in refusals(reports)
    assert set_files(world) == set() and world.aggregator.updates == {}
    assert world.agent.state.phase.value == "fetching"


def test_a_set_that_is_longer_than_any_may_be_is_refused_by_name(world):
    name_set(world, data=bytes(MAX_INDEX_SET_BYTES + 1))
    world.type_text()
    assert "too_large" in refusals(world.night())
    assert set_files(world) == set() and world.aggregator.updates == {}


def test_a_set_that_is_not_there_is_waited_for_within_the_lease_and_no_longer(world):
    sha256 = name_set(world)
    file = world.downloads.files.pop(f"/v1/index-sets/{sha256}")
    world.type_text()
    assert "not_there" in refusals(world.night())
    assert world.aggregator.updates == {} and len(world.aggregator.check_ins) == 1
    world.clock.time += world.aggregator.lease_s
    world.agent.turn()
    assert world.agent.state.phase.value == "resting"
    world.downloads.files[f"/v1/index-sets/{sha256}"] = file
    world.clock.time += 3600
    world.night()
    assert len(world.aggregator.updates) == 1


@pytest.mark.parametrize("file", [b"no set", None])
def test_a_named_set_that_is_no_set_of_this_model_is_a_plan_that_the_device_cannot_do(world, file):
    name_set(world, data=encode_index_set(77, np.arange(5)) if file is None else file)
    world.type_text()
    reports = world.night()
    assert "plan_refused" in refusals(reports)
    assert world.aggregator.updates == {}
    assert sum(report.training_steps for report in reports) == 0, "told before the first step"


def test_a_server_that_is_down_is_asked_again_within_the_lease(world):
    sha256 = name_set(world)
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.downloads.up = False
    world.agent.turn()
    assert world.agent.state.phase.value == "fetching" and set_files(world) == set()
    world.downloads.up = True
    world.clock.time += 3600
    world.agent.turn()
    world.aggregator.work()
    assert set_files(world) == {f"{sha256}.efi"}
    assert len(world.aggregator.updates) == len(world.aggregator.check_ins) == 1


def test_a_set_that_rotted_on_the_disk_is_not_here(world):
    sha256 = name_set(world)
    data = world.downloads.files[f"/v1/index-sets/{sha256}"]
    fetched = []

    def fetch(path, limit_bytes):
        fetched.append((path, limit_bytes))
        return data

    public_files.ensure(world.home, INDEX_SET, sha256, fetch)
    public_files.ensure(world.home, INDEX_SET, sha256, fetch)
    assert fetched == [(f"/v1/index-sets/{sha256}", MAX_INDEX_SET_BYTES)]
    path = world.home / "index_sets" / f"{sha256}.efi"
    path.write_bytes(data[:-1])
    assert public_files.read(world.home, INDEX_SET, sha256) is None
    public_files.ensure(world.home, INDEX_SET, sha256, fetch)
    assert path.read_bytes() == data and len(fetched) == 2


def test_a_refused_set_leaves_the_older_ones(tmp_path):
    public_files.ensure(tmp_path, INDEX_SET, hashlib.sha256(b"old").hexdigest(), lambda path, limit: b"old")
    with pytest.raises(VersionRefused, match="hashes to"):
        public_files.ensure(tmp_path, INDEX_SET, "ab" * 32, lambda path, limit: b"other")

    def gone(path, limit_bytes):
        raise NotThere(path)

    with pytest.raises(NotThere):
        public_files.ensure(tmp_path, INDEX_SET, "cd" * 32, gone)
    assert [path.name for path in (tmp_path / "index_sets").iterdir()] == [f"{hashlib.sha256(b'old').hexdigest()}.efi"]


def test_a_kept_vector_leaves_out_the_zeros_of_a_shared_update():
    sent = SparseVector(10, np.array([1, 4, 7]), np.array([0.5, 0.0, -0.25]))
    seen = unpack_kept(pack_kept(sent), 10)
    assert (seen.indices.tolist(), seen.values.tolist()) == ([1, 7], [0.5, -0.25])


def test_a_stale_shared_update_returns_whole(world):
    name_set(world)
    world.aggregator.verdict = "stale"
    world.type_text()
    world.night()
    manifest = world.aggregator.manifest
    ((_, update),) = world.aggregator.updates.items()
    index_set = decode_index_set(next((world.home / "index_sets").iterdir()).read_bytes())
    sent = codec.decode(update.plain, size=manifest.parameters, index_set=index_set)
    store = StateStore(world.home / "state.db")
    back = Vectors(world.home / "vectors", store).residual(manifest.layout_fingerprint, manifest.parameters)
    store.close()
    says = sent.values != 0
    # What was sent lies within half a unit of what is back there.
    assert np.abs(back.vector[sent.indices[says]] - sent.values[says]).max() <= UNIT / 2 * (1 + 1e-2)


@pytest.mark.parametrize(("changes", "same"), [({}, False), ({"residual_keep": 0.0}, True)])
def test_the_plan_says_what_becomes_of_the_residual(world, changes, same):
    # The toy aggregator gives the same base and seed each night, so two nights train the same delta.
    plan = Plan(signature="train_sampled", rows=48, learning_rate=0.5, clip_norm=10.0, **changes)
    world.aggregator.plan = plan
    world.type_text()
    world.night()
    world.clock.time += 3600
    world.night()
    first, second = (update.plain for update in world.aggregator.updates.values())
    assert (first == second) == same


@pytest.mark.parametrize(
    "codec_plan", [CodecPlan(mode="topk", bits=3), CodecPlan(mode="topk9"), CodecPlan(mode="topk4", bits=1)]
)
def test_a_codec_that_cannot_be_is_refused_before_the_first_step(world, codec_plan):
    world.aggregator.plan = Plan(signature="train_sampled", rows=48, learning_rate=0.5, codec=codec_plan)
    world.type_text()
    reports = world.night()
    assert "plan_refused" in refusals(reports) and world.aggregator.updates == {}
    assert sum(report.training_steps for report in reports) == 0


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_plan_of_another_code_width_is_met(world, bits):
    plan = CodecPlan(mode="topk", bits=bits)
    world.aggregator.plan = Plan(signature="train_sampled", rows=48, learning_rate=0.5, codec=plan)
    world.type_text()
    world.night()
    ((_, update),) = world.aggregator.updates.items()
    seen = codec.decode(update.plain, size=world.aggregator.manifest.parameters, plan=plan)
    assert len(seen.indices) > 0 and update.header.codec == "topk"
