"""A plan with a basis or a threshold on a device: the basis is fetched by hash, and the update is in its axes."""

import hashlib

import msgspec
import numpy as np
import pytest

from edge_runtime.adapters.state_store import StateStore
from edge_runtime.adapters.vectors import Vectors
from tests.edge_runtime.fakes import World
from wire_contract import codec
from wire_contract.basis import Basis, Turned, decode_basis, encode_basis
from wire_contract.layout import Layout
from wire_contract.messages import MAX_BASIS_BYTES, CodecPlan, Plan

TURNED = (Turned(tensor="embedding", axis=1), Turned(tensor="kernel", axis=1), Turned(tensor="projection", axis=0))


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "home")
    yield world
    world.agent.abandon()


def layout_of(world) -> Layout:
    return Layout.of(world.aggregator.manifest)


def some_basis(world, seed: int = 1, turned=TURNED, width: int = 0) -> bytes:
    (_, own) = next(tensor.shape for tensor in layout_of(world).tensors if tensor.name == "embedding")
    width = width or own
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]
    return encode_basis(matrix.astype(np.float32), turned)


def plan_with(world, file: bytes | None, path_hash: str | None = None, **changes: object) -> str:
    """Let the aggregator's plan name a basis and serve its file (None: no basis); return its hash."""
    sha256 = ""
    if file is not None:
        sha256 = path_hash or hashlib.sha256(file).hexdigest()
        world.downloads.files[f"/v1/bases/{sha256}"] = file
    topk = CodecPlan(**{"mode": "topk", "kept": 1.0, "bits": 8, "basis": sha256, **changes})
    world.aggregator.plan = Plan(rows=48, learning_rate=0.5, clip_norm=10.0, codec=topk)
    return sha256


def basis_files(world) -> set[str]:
    folder = world.home / "bases"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def refusals(reports) -> list[str]:
    return [name for report in reports for name in report.refused]


def residual_of(world):
    manifest = world.aggregator.manifest
    store = StateStore(world.home / "state.db")
    left = Vectors(world.home / "vectors", store).residual(manifest.layout_fingerprint, manifest.parameters)
    store.close()
    return left


def sent_by(world, number: int = -1) -> np.ndarray:
    plain = list(world.aggregator.updates.values())[number].plain
    return codec.decode(plain, size=world.aggregator.manifest.parameters).dense()


def turned_back(world, values: np.ndarray, basis: Basis) -> np.ndarray:
    """An independent reading, by einsum."""
    layout, matrix = layout_of(world), basis.matrix.astype(np.float64)
    tensors = {name: value.astype(np.float64) for name, value in layout.unflatten(values).items()}
    tensors["embedding"] = np.einsum("vn,on->vo", tensors["embedding"], matrix)
    tensors["projection"] = np.einsum("nc,on->oc", tensors["projection"], matrix)
    blocks = tensors["kernel"].reshape(len(tensors["kernel"]), 2, basis.width)
    tensors["kernel"] = np.einsum("kbn,on->kbo", blocks, matrix).reshape(tensors["kernel"].shape)
    return np.concatenate([tensors[tensor.name].ravel() for tensor in layout.tensors])


def train_once(folder, name_basis: bool) -> tuple[World, np.ndarray, Basis | None]:
    """One night under a plan that keeps everything; return update plus residual: the delta, in the update's axes."""
    world = World(folder)
    file = some_basis(world) if name_basis else None
    plan_with(world, file)
    world.type_text()
    world.night()
    whole = sent_by(world) + residual_of(world).vector
    world.agent.abandon()
    return world, whole, None if file is None else decode_basis(file)


def test_update_and_residual_are_the_same_nights_delta_in_the_axes_of_the_basis(tmp_path):
    world, plain, _ = train_once(tmp_path / "plain", False)
    _, turned, basis = train_once(tmp_path / "turned", True)
    assert basis is not None
    tolerance = 1e-3 * float(np.abs(plain).max())
    np.testing.assert_allclose(turned_back(world, turned, basis), plain, atol=tolerance)
    assert np.abs(turned - plain).max() > 10 * tolerance
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(plain), rel=1e-4)


def test_the_residual_on_the_disk_says_whose_axes_it_is_in(world):
    sha256 = plan_with(world, some_basis(world), kept=0.02)
    world.type_text()
    world.night()
    assert residual_of(world).basis == bytes.fromhex(sha256)[:8] and residual_of(world).vector.any()


@pytest.mark.parametrize(("first", "second", "same"), [(1, 1, False), (1, 2, True), (None, 2, True), (2, None, True)])
def test_a_residual_goes_out_with_an_update_of_its_own_basis_and_with_no_other(tmp_path, first, second, same):
    def night(world, seed):
        plan_with(world, None if seed is None else some_basis(world, seed), kept=0.02)
        world.night()
        world.clock.time += 3600

    # The toy aggregator gives the same base and seed each night, so a night alone trains the same delta.
    world, alone = World(tmp_path / "both"), World(tmp_path / "alone")
    for each in (world, alone):
        each.type_text()
    night(world, first)
    night(world, second)
    night(alone, second)
    assert np.array_equal(sent_by(world), sent_by(alone)) == same
    for each in (world, alone):
        each.agent.abandon()


def test_a_stale_update_returns_in_its_own_axes(world):
    sha256 = plan_with(world, some_basis(world), kept=0.02)
    world.aggregator.verdict = "stale"
    world.type_text()
    world.night()
    back, sent = residual_of(world), sent_by(world)
    assert back.basis == bytes.fromhex(sha256)[:8]
    says = sent != 0
    np.testing.assert_allclose(back.vector[says], sent[says], rtol=0.05, atol=0.05 * np.abs(sent).max())


def test_the_device_says_that_it_can(world):
    world.type_text()
    world.night()
    assert {"codec:basis", "codec:threshold"} <= set(world.aggregator.check_ins[0].capabilities)


def test_a_basis_is_fetched_once_and_only_the_two_newest_stay(world):
    world.type_text()
    names = []
    for seed in (1, 1, 2, 3):
        names.append(plan_with(world, some_basis(world, seed)))
        world.night()
        world.clock.time += 3600
    asked = [path for path, _ in world.downloads.requests if path.startswith("/v1/bases/")]
    assert asked == [f"/v1/bases/{name}" for name in (names[0], *names[2:])]
    assert basis_files(world) == {f"{name}.efb" for name in names[2:]}
    assert len(world.aggregator.updates) == 4


@pytest.mark.parametrize(
    ("file", "path_hash", "name"), [(None, "ab" * 32, "basis_hash"), (bytes(MAX_BASIS_BYTES + 1), None, "too_large")]
)
def test_bytes_that_are_not_the_named_basis_are_refused_by_name_and_leave_no_file(world, file, path_hash, name):
    plan_with(world, some_basis(world) if file is None else file, path_hash)
    world.type_text()
    assert name in refusals(world.night())
    assert basis_files(world) == set() and world.aggregator.updates == {}
    assert world.agent.state.phase.value == "fetching"


def test_a_basis_that_is_not_there_is_waited_for_within_the_lease_and_no_longer(world):
    sha256 = plan_with(world, some_basis(world))
    file = world.downloads.files.pop(f"/v1/bases/{sha256}")
    world.type_text()
    assert "not_there" in refusals(world.night())
    assert world.aggregator.updates == {} and len(world.aggregator.check_ins) == 1
    world.clock.time += world.aggregator.lease_s
    world.agent.turn()
    assert world.agent.state.phase.value == "resting"
    world.downloads.files[f"/v1/bases/{sha256}"] = file
    world.clock.time += 3600
    world.night()
    assert len(world.aggregator.updates) == 1 and basis_files(world) == {f"{sha256}.efb"}


@pytest.mark.parametrize("wrong", ["no basis", "another model's", "another width", "mode topk4"])
def test_a_basis_that_this_model_cannot_have_is_a_plan_that_the_device_cannot_do(world, wrong):
    files = {
        "no basis": b"no basis",
        "another model's": some_basis(world, turned=(Turned(tensor="elsewhere", axis=0),)),
        "another width": some_basis(world, width=7),
    }
    changes = {"mode": "topk4", "bits": 4} if wrong == "mode topk4" else {}
    plan_with(world, files.get(wrong, some_basis(world)), **changes)
    world.type_text()
    reports = world.night()
    assert "plan_refused" in refusals(reports) and world.aggregator.updates == {}
    assert sum(report.training_steps for report in reports) == 0, "told before the first step"


def test_under_a_threshold_what_adds_little_is_not_sent_and_a_short_text_sends_fewer_bytes(tmp_path):
    sizes, sent = [], []
    for number, sentences in enumerate((60, 6)):
        world = World(tmp_path / str(number), seed=number)
        plan_with(world, some_basis(world), kept=0.1, bits=4, threshold=2e-3)
        plan = msgspec.structs.replace(world.aggregator.plan, weight_rule="examples", example_cap=48)
        world.aggregator.plan = plan
        world.type_text(sentences)
        world.night()
        ((_, update),) = world.aggregator.updates.items()
        sizes.append(update.init.size_bytes)
        values = np.abs(sent_by(world))
        share = min(update.header.examples, 48) / 48
        # A code of 4 bits stands for a value by up to half a level more or less.
        assert values[values > 0].min() * share >= 2e-3 / 2
        sent.append(np.count_nonzero(values))
        left = np.abs(residual_of(world).vector) * share
        assert np.count_nonzero(left) > sent[-1], "what is below it stays here"
        world.agent.abandon()
    assert sizes[1] < 0.7 * sizes[0] and sent[1] < sent[0]
