"""The structure of a `.tflite`, before anything native opens it."""

import hashlib
import importlib.util
import random
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_runtime import model_slots
from edge_runtime.flatbuffer_check import MAX_FIELDS, MAX_READ_BYTES, MAX_TABLES, FileRefused, check, verify
from edge_runtime.flatbuffer_operators import OPERATORS
from edge_runtime.model_slots import ModelSlots, VersionRefused
from edge_runtime.trust import Keys
from tests.edge_runtime.fakes import FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from wire_contract import envelope
from wire_contract.manifest import encode_manifest, template_hash

ROOT = Path(__file__).parents[2]
MIXED_PATH = Path(__file__).parent / "fixtures" / "mixed.tflite"
MIXED = MIXED_PATH.read_bytes()
TOY = ToyAggregator(FakeBroker(), FakeDownloads(), FakeClock())
MANIFEST, MODEL = TOY.manifest, TOY.model


def refusal(data, manifest=MANIFEST):
    with pytest.raises(FileRefused) as caught:
        check(data, manifest)
    return caught.value.reason


def test_what_the_exporter_made_is_sound():
    contents = check(MODEL, MANIFEST)
    assert sorted(contents.signatures) == sorted(MANIFEST.signatures) and contents.tables > 4000
    assert sorted(verify(MIXED).signatures) == ["step", "train"]


@pytest.mark.parametrize("data", [MODEL, MIXED], ids=["a keyboard's model", "a small one"])
def test_a_file_that_is_cut_anywhere_is_refused(data):
    for part in range(64):
        with pytest.raises(FileRefused):
            verify(data[: len(data) * part // 64])


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\x08\0\0\0TFL3", bytes(100), b"\xff" * 100, b"\x08\0\0\0TFL3" + bytes(64)]
)
def test_what_is_no_model_is_refused(data):
    with pytest.raises(FileRefused) as caught:
        verify(data)
    assert caught.value.reason == "bad_flatbuffer"


def test_other_signatures_than_the_manifests_are_refused_by_name():
    more = {**MANIFEST.signatures, "train_private_b2_l8": MANIFEST.signatures["train"]}
    fewer = {"train": MANIFEST.signatures["train"]}
    for signatures in (more, fewer):
        assert refusal(MODEL, msgspec.structs.replace(MANIFEST, signatures=signatures)) == "bad_signatures"


@pytest.mark.parametrize("shift", [-4, -1, 1, 4, 4096, -1_000_000, 1 << 40])
@pytest.mark.parametrize("field", ["offsets", "scale_offsets"])
def test_a_manifest_whose_offsets_lie_about_the_file_is_refused(field, shift):
    entry = next(entry for entry in MANIFEST.tensors if entry.kind == "int8")
    wrong = msgspec.structs.replace(entry, **{field: tuple(offset + shift for offset in getattr(entry, field))})
    manifest = msgspec.structs.replace(MANIFEST, tensors=(wrong, *(e for e in MANIFEST.tensors if e is not entry)))
    assert refusal(MODEL, manifest) == "bad_ranges"


def test_a_range_over_a_constant_of_another_kind_is_refused():
    floats = next(entry for entry in MANIFEST.tensors if entry.kind == "float32")
    lying = msgspec.structs.replace(floats, kind="float16")
    manifest = msgspec.structs.replace(MANIFEST, tensors=(lying,))
    assert refusal(MODEL, manifest) == "bad_ranges"


def test_a_constant_that_holds_a_piece_of_the_structure_is_no_place_for_a_version_to_write():
    """A later version could turn the name into anything: only the first one's structure was looked at."""
    whole, name = bytearray(MODEL), struct.pack("<I", 8) + b"evaluate\0"
    leads = next(
        at for at in range(0, len(whole), 4) if whole[at + struct.unpack_from("<I", whole, at)[0] :][:13] == name
    )
    weight = max((entry for entry in MANIFEST.tensors if entry.size_bytes > 64), key=lambda entry: entry.offsets[0])
    place = -(-weight.offsets[0] // 4) * 4
    whole[place : place + len(name)] = name
    struct.pack_into("<I", whole, leads, place - leads)
    assert sorted(verify(bytes(whole)).signatures) == sorted(MANIFEST.signatures)
    with pytest.raises(FileRefused, match="a version changes no table") as caught:
        check(bytes(whole), MANIFEST)
    assert caught.value.reason == "bad_ranges"


def test_constants_that_lie_in_each_other_are_refused():
    """What a version may change of the one is what an op does in the other."""
    contents, whole = verify(MODEL), bytearray(MODEL)
    large = max(contents.constants, key=lambda each: each[1] - each[0])
    small, size = next(
        (start, stop - start) for start, stop, kind in contents.constants if kind == "int32" and start < large[0]
    )
    # Nearly always one place: the Buffer that leads to it.
    (leads,) = [at for at in range(0, small, 4) if at + struct.unpack_from("<I", whole, at)[0] == small - 4]
    place = -(-large[0] // 16) * 16 + 16
    struct.pack_into("<I", whole, place - 4, size)
    struct.pack_into("<I", whole, leads, place - 4 - leads)
    with pytest.raises(FileRefused, match="constants and scales lie apart"):
        verify(bytes(whole))


def tables_upon_tables(fields, count):
    """A model of `count` subgraphs, each a table of four bytes with the same vtable of `fields` empty fields."""
    data = bytearray(8192 + 8 * count + 2 * fields)
    data[4:8] = b"TFL3"
    struct.pack_into("<I", data, 0, 64)
    struct.pack_into("<HH8H", data, 16, 20, 16, 4, 0, 8, 0, 0, 0, 0, 0)
    vector, shared = 4096, len(data) - 4 - 2 * fields
    struct.pack_into("<iII", data, 64, 64 - 16, 3, vector - 72)
    struct.pack_into("<I", data, vector, count)
    struct.pack_into("<HH", data, shared, 4 + 2 * fields, 4)
    for at in range(vector + 4, vector + 4 + 4 * count, 4):
        table = at + 4 * count
        struct.pack_into("<I", data, at, table - at)
        struct.pack_into("<i", data, table, table - shared)
    return bytes(data)


def test_a_flood_of_tables_or_fields_is_refused_before_it_is_in_memory():
    assert verify(tables_upon_tables(MAX_FIELDS, 8)).tables == 9
    for data, rule in (
        (tables_upon_tables(0, MAX_TABLES), "at most 131072 tables"),
        (tables_upon_tables(MAX_FIELDS + 1, 8), "at most 64 fields"),
    ):
        with pytest.raises(FileRefused, match=rule):
            verify(data)


def test_one_table_that_is_referred_to_without_end_is_refused():
    """4 bytes a reference, and a whole subgraph to look at for each: the work must not be their product."""
    whole = bytearray(tables_upon_tables(0, MAX_READ_BYTES // 32))
    count = struct.unpack_from("<I", whole, 4096)[0]
    for at in range(4100, 4100 + 4 * count, 4):
        struct.pack_into("<I", whole, at, 4100 + 4 * count - at)
    with pytest.raises(FileRefused, match="each reference counted"):
        verify(bytes(whole))


def test_a_file_that_hashes_right_and_is_built_wrong_never_reaches_the_interpreter(tmp_path):
    """The exporter's own key lies: a manifest whose hashes are those of a broken file."""
    broken = bytearray(MODEL)
    broken[0] ^= 0x40
    broken = bytes(broken)
    manifest = msgspec.structs.replace(
        MANIFEST, sha256=hashlib.sha256(broken).hexdigest(), template_sha256=template_hash(broken, MANIFEST)
    )
    downloads, opened = FakeDownloads(), []
    aggregator = ToyAggregator(FakeBroker(), downloads, FakeClock())
    downloads.files[f"/v1/models/{manifest.sha256}"] = broken
    keys = Keys(envelope.public_bytes(aggregator.key), bytes(32))
    slots = ModelSlots(tmp_path, keys, "keyboard", "http://toy/", downloads, lambda *each: opened.append(each))
    with pytest.raises(VersionRefused) as caught:
        slots.install(envelope.sign(aggregator.key, "manifest", encode_manifest(manifest)), "training", 1_800_400_000.0)
    assert caught.value.reason == "bad_flatbuffer" and opened == []
    assert list((tmp_path / "models").iterdir()) == []


def test_with_the_true_hash_each_of_ten_thousand_flips_is_a_wrong_hash(tmp_path):
    manifest = msgspec.structs.replace(
        MANIFEST, size_bytes=len(MIXED), sha256=hashlib.sha256(MIXED).hexdigest(), url="/v1/models/mixed"
    )
    slots = ModelSlots(
        tmp_path, Keys(bytes(32), bytes(32)), "keyboard", "http://toy/", FakeDownloads(), lambda *_: None
    )
    rng = random.Random(4)
    for _ in range(10_000):
        broken = bytearray(MIXED)
        broken[rng.randrange(len(MIXED))] ^= 1 << rng.randrange(8)
        with pytest.raises(VersionRefused) as caught:
            slots._check_bytes(bytes(broken), manifest)
        assert caught.value.reason == "wrong_hash"


def test_versions_of_one_template_are_looked_at_once(tmp_path):
    downloads = FakeDownloads()
    aggregator = ToyAggregator(FakeBroker(), downloads, FakeClock())
    keys = Keys(aggregator.manifest_key, envelope.public_bytes(aggregator.key))
    slots = ModelSlots(tmp_path, keys, "keyboard", "http://toy/", downloads, lambda data, manifest: None)
    slots.install(aggregator.signed, "training", 1_800_400_000.0)
    known = len(model_slots._sound)
    aggregator.move_on()
    slots.install(aggregator.signed, "training", 1_800_400_000.0)
    assert len(model_slots._sound) == known


# Where both suites run, one of them flips ten thousand bits; the other interpreter's ten thousand are in tests/system.
FLIPS = 10_000 if importlib.util.find_spec("tensorflow") is not None else 500


def test_an_interpreter_survives_every_broken_file_that_is_found_sound():
    words = [sys.executable, "-m", "tests.edge_runtime.flipped_models", str(MIXED_PATH), "3", str(FLIPS), "all"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, f"died after {done.stdout[-200:]} {done.stderr[-500:]}"
    told = {name: int(count) for name, count in (each.split("=") for each in done.stdout.splitlines()[-1].split())}
    assert sum(told.values()) == FLIPS
    assert told["bad_flatbuffer"] > FLIPS // 4 and told["runs"] > FLIPS // 10


@pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="needs its schema: pip install ai-edge-litert"
)
def test_the_table_of_operators_names_them_as_the_schema_does():
    """The schema's generated module is the independent judge of codes and of options' types."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    options = {code: name for name, code in vars(schema.BuiltinOptions).items() if isinstance(code, int)}
    for code, operator in OPERATORS.items():
        assert names[code] == operator.name
        assert operator.options in options
