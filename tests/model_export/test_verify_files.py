"""`verify` of a folder, of a lone file, of an offline bundle: trusted, or refused in one line."""

import hashlib
import json
import shutil
import time

import msgspec
import pytest

from cli_contract.main import run_command
from model_export.bundle import write_bundle
from model_export.cli import build_parser
from wire_contract.envelope import public_bytes
from wire_contract.manifest import GoldenVector
from wire_contract.offline_bundle import MAGIC
from wire_contract.trust_roles import ONLINE_ROLES

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def lone_file(tmp_path, bundle_folder):
    folder = tmp_path / "lone"
    folder.mkdir()
    shutil.copy(bundle_folder / "model.tflite", folder / "v1.tflite")
    shutil.copy(bundle_folder / "manifest.bin", folder / "v1.manifest.bin")
    return folder / "v1.tflite"


def test_a_lone_file_is_verified_with_its_signers_key(lone_file, signing_key, capfd):
    key = public_bytes(signing_key).hex()
    code, out, err = run(capfd, "verify", lone_file, "--manifest-key", key, "--no-tape", "--json")
    assert code == 0, err
    assert json.loads(out)["failed"] == 0
    code, _, err = run(capfd, "verify", lone_file, "--manifest-key", "11" * 32, "--no-tape")
    assert code == 4 and err.count("\n") == 1
    code, _, err = run(capfd, "verify", lone_file, "--no-tape")
    assert code == 2 and "give --manifest-key" in err


def test_a_lone_files_manifest_may_be_named(tmp_path, lone_file, signing_key, capfd):
    named = lone_file.with_suffix(".manifest.bin").rename(tmp_path / "elsewhere.bin")
    options = ("--manifest-key", public_bytes(signing_key).hex(), "--no-tape")
    assert run(capfd, "verify", lone_file, *options)[0] == 3
    assert run(capfd, "verify", lone_file, "--manifest", named, *options)[0] == 0


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        (b"<pad>\n<s>\n<unk>\n<num>\none\none\n", "names each word once"),
        (b"<pad>\n<s>\n<unk>\n<num>\n\xff\xfe\n", "UTF-8"),
        (b"<pad>\n<s>\n<unk>\n<num>\none\n", "hashes to what the manifest says"),
        (b"", "ends with a line break"),
    ],
)
def test_a_vocabulary_that_breaks_a_rule_is_refused(bundle_folder, written, rule, capfd):
    (bundle_folder / "vocabulary.txt").write_bytes(written)
    code, out, err = run(capfd, "verify", bundle_folder, "--no-tape")
    assert code in (1, 4) and out == "" and rule in err and err.count("\n") == 1


def resigned(folder, model, manifest, vocabulary, key):
    """What a signer does who signs nonsense: every hash is right."""
    from wire_contract.manifest import template_hash

    manifest = msgspec.structs.replace(manifest, size_bytes=len(model), sha256=hashlib.sha256(model).hexdigest())
    manifest = msgspec.structs.replace(manifest, template_sha256=template_hash(model, manifest))
    write_bundle(folder, model, vocabulary, manifest, key)
    return folder


def test_a_truncated_file_that_somebody_signed_is_refused_in_one_line(
    tmp_path, bundle_parts, vocabulary, signing_key, capfd
):
    model, manifest = bundle_parts
    last = max(offset + t.size_bytes for t in manifest.tensors for offset in t.offsets)
    last = max(last, *(offset + 4 for t in manifest.tensors for offset in t.scale_offsets))
    shorter = resigned(tmp_path / "short", model[: max(last, len(model) - 64)], manifest, vocabulary, signing_key)
    flipped = bytearray(model)
    flipped[0] ^= 0x40
    other = resigned(tmp_path / "flipped", bytes(flipped), manifest, vocabulary, signing_key)
    for folder in (shorter, other):
        code, out, err = run(capfd, "verify", folder, "--no-tape")
        if code:
            assert code == 4 and out == "" and err.count("\n") == 1
    assert run(capfd, "verify", other, "--no-tape")[0] == 4


def stated(manifest, lie):
    """The manifest with one lie in it that its own rules let pass."""
    specs = manifest.signatures
    if lie == "an empty context":
        return msgspec.structs.replace(manifest, golden_vectors=(GoldenVector(ids=(5,)),))
    if lie == "a train input less":
        return msgspec.structs.replace(manifest, train_inputs=manifest.train_inputs[1:])
    if lie == "other rows":
        longer = msgspec.structs.replace(specs["train"], batch=17)
        return msgspec.structs.replace(manifest, signatures={**specs, "train": longer})
    more = msgspec.structs.replace(specs["train_sampled"], candidates=601)
    return msgspec.structs.replace(manifest, signatures={**specs, "train_sampled": more})


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        ("an empty context", "a golden vector's context has 1 to 20 tokens"),
        ("a train input less", "the train inputs are the network's, got ['kernel_rows', 'projection']"),
        ("other rows", "train takes targets (17, 20) by the manifest, got (16, 20)"),
        ("more candidates", "train_sampled takes 601 candidates by the manifest, got (600, 18)"),
    ],
)
def test_a_signed_manifest_that_lies_about_the_file_is_refused_by_rule(
    tmp_path, bundle_parts, vocabulary, signing_key, lie, rule, capfd
):
    model, manifest = bundle_parts
    write_bundle(tmp_path / "lie", model, vocabulary, stated(manifest, lie), signing_key)
    code, out, err = run(capfd, "verify", tmp_path / "lie", "--no-tape")
    assert code == 4 and out == "" and rule in err and err.count("\n") == 1, err


def test_golden_vectors_are_asked_of_every_runtime_and_must_come_out_exactly(
    tmp_path, bundle_parts, vocabulary, signing_key, capfd
):
    import sys

    from model_export.golden_vectors import golden_vectors
    from model_export.interpreter import Interpreter

    model, manifest = bundle_parts
    vectors = golden_vectors(Interpreter(model).run, manifest.vocabulary_words, 20)
    assert len(vectors) >= 4, "the lively weights answer some contexts with conviction"
    right = msgspec.structs.replace(manifest, golden_vectors=vectors)
    wrong = msgspec.structs.replace(
        manifest, golden_vectors=(*vectors[:2], GoldenVector(context=vectors[2].context, ids=vectors[2].ids[::-1]))
    )
    for name, stated, failed in (("right", right, 0), ("wrong", wrong, 1)):
        write_bundle(tmp_path / name, model, vocabulary, stated, signing_key)
        code, out, err = run(capfd, "verify", tmp_path / name, "--no-tape", "--device-python", sys.executable, "--json")
        assert code == failed, err
        said = json.loads(out.splitlines()[-1])
        assert said["failed"] == failed
        golden = [f for f in said["findings"] if f["name"].startswith("golden vector")]
        assert len(golden) == len(stated.golden_vectors)
        assert [f["name"] for f in golden if f["error"]] == (["golden vector 2"] if failed else [])


@pytest.fixture
def offline_bundle(tmp_path, bundle_parts, vocabulary, signing_key, capfd):
    """An offline bundle and the root it is checked from, made by the commands that a person runs."""
    model, manifest = bundle_parts
    now = int(time.time())
    manifest = msgspec.structs.replace(manifest, created_at=now - 60, expires_at=now + 86_400)
    write_bundle(tmp_path / "fresh", model, vocabulary, manifest, signing_key)
    online = {role: bytes([number] * 32).hex() for number, role in enumerate(ONLINE_ROLES)}
    (tmp_path / "online.json").write_text(json.dumps({"keys": online}))
    keys, file = tmp_path / "keys", tmp_path / "offline.bin"
    for command in (
        ("keys", "init", keys, "--online", tmp_path / "online.json"),
        ("keys", "add-template", keys, "--bundle", tmp_path / "fresh"),
        ("offline", "make", keys, "--bundle", tmp_path / "fresh", "--population", "test", "--output", file),
    ):
        code, _, err = run(capfd, *command)
        assert code == 0, err
    return file, keys / "metadata" / "1.root.json"


def test_an_offline_bundle_is_verified_from_the_pinned_root(offline_bundle, capfd):
    file, root = offline_bundle
    code, out, err = run(capfd, "verify", file, "--root", root, "--no-tape", "--json")
    assert code == 0, err
    assert json.loads(out)["failed"] == 0
    code, _, err = run(capfd, "verify", file, "--no-tape")
    assert code == 2 and "give --root" in err


def test_a_damaged_offline_bundle_is_refused_in_one_line(tmp_path, offline_bundle, capfd):
    file, root = offline_bundle
    data = file.read_bytes()
    for place in (len(MAGIC) + 3, len(data) // 7, len(data) // 2, len(data) - 3):
        broken = bytearray(data)
        broken[place] ^= 1
        (tmp_path / "broken.bin").write_bytes(broken)
        code, out, err = run(capfd, "verify", tmp_path / "broken.bin", "--root", root, "--no-tape")
        assert code in (1, 4) and out == "" and err.count("\n") == 1, err
    (tmp_path / "broken.bin").write_bytes(data[:-9])
    assert run(capfd, "verify", tmp_path / "broken.bin", "--root", root)[0] in (1, 4)
