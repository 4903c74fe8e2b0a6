"""Bundles: written whole or not at all, refused when a bit is wrong, patched in place."""

import hashlib

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from model_export import reference
from model_export.bundle import make_manifest, read_bundle, write_bundle
from model_export.network import LENGTH
from tests.model_export.conftest import WORDS, lively_tensors
from wire_contract.envelope import public_bytes
from wire_contract.errors import ContractError, Malformed, Untrusted
from wire_contract.manifest import check_manifest, patched_ranges, template_hash
from wire_contract.patch import patch, read_tensors
from wire_contract.vocabulary import Vocabulary

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]


def test_a_bundle_reads_back_as_it_was_written(bundle_folder, bundle_parts, vocabulary, signing_key):
    model, manifest = bundle_parts
    bundle = read_bundle(bundle_folder, public_bytes(signing_key))
    assert bundle.model == model
    assert bundle.manifest == manifest
    assert bundle.vocabulary == vocabulary
    check_manifest(manifest)
    assert sorted(path.name for path in bundle_folder.iterdir()) == [
        "manifest.bin", "manifest_key.pub", "model.tflite", "vocabulary.txt",
    ]  # fmt: skip


def test_a_patched_file_behaves_as_the_new_weights_and_differs_nowhere_else(bundle_parts, size):
    from model_export.interpreter import Interpreter

    model, manifest = bundle_parts
    new = lively_tensors(size, seed=77)
    # Scales far from the template's: one that is left behind anywhere shows.
    new["embedding"] *= np.float32(2.5)
    new["kernel"] *= np.float32(0.3)
    new["projection"] *= np.float32(1.7)
    patched = patch(model, manifest, new)
    allowed = np.zeros(len(model), bool)
    for start, stop in patched_ranges(manifest):
        allowed[start:stop] = True
    differs = np.frombuffer(model, np.uint8) != np.frombuffer(patched, np.uint8)
    assert differs.any()
    assert not (differs & ~allowed).any()
    assert template_hash(patched, manifest) == manifest.template_sha256
    weights = read_tensors(patched, manifest)
    context = np.arange(5, 5 + LENGTH, dtype=np.int32)
    exact = reference.suggestion_log_probs(reference.context_logits(weights, context))
    before = Interpreter(model).run("suggest_context", {"tokens": context})["log_probs"][4:]
    after = Interpreter(patched).run("suggest_context", {"tokens": context})["log_probs"][4:]
    assert np.abs(after - exact).max() < 0.15
    assert np.abs(before - exact).max() > 1.0


def test_the_first_version_is_the_template_patched_by_the_contract(template, tensors, bundle_parts):
    model, manifest = bundle_parts
    assert patch(template.data, manifest, tensors) == model
    assert patch(model, manifest, read_tensors(model, manifest)) == model


def test_the_template_does_not_depend_on_the_weights(template, vocabulary, size, bundle_parts):
    _, other = make_manifest(
        template, lively_tensors(size, seed=8), vocabulary, population="test", candidates=WORDS,
        logit_tolerance=0.3, now=1, valid_s=1,
    )  # fmt: skip
    assert other.template_sha256 == bundle_parts[1].template_sha256
    assert other.sha256 != bundle_parts[1].sha256


@pytest.mark.parametrize("place", [0.001, 0.3, 0.9, 0.9999])
def test_one_flipped_bit_is_refused(bundle_folder, place):
    path = bundle_folder / "model.tflite"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(Untrusted, match="hashes to what the manifest says"):
        read_bundle(bundle_folder)


def test_a_manifest_that_states_another_template_is_refused(tmp_path, bundle_parts, vocabulary, signing_key):
    model, manifest = bundle_parts
    other = msgspec.structs.replace(manifest, template_sha256="0" * 64)
    write_bundle(tmp_path / "b", model, vocabulary, other, signing_key)
    with pytest.raises(Untrusted, match="outside the weights"):
        read_bundle(tmp_path / "b")


def test_a_flipped_bit_outside_the_weights_changes_the_template_hash_and_one_inside_does_not(bundle_parts):
    model, manifest = bundle_parts
    start, stop = patched_ranges(manifest)[0]
    for position, same in ((start, True), (stop - 1, True), (start - 1, False), (stop, False), (len(model) - 1, False)):
        changed = bytearray(model)
        changed[position] ^= 1
        assert (template_hash(bytes(changed), manifest) == manifest.template_sha256) is same


def test_another_key_than_the_trusted_one_is_refused(bundle_folder):
    stranger = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    with pytest.raises(Untrusted):
        read_bundle(bundle_folder, public_bytes(stranger))


def test_a_swapped_vocabulary_is_refused(bundle_folder, vocabulary):
    words = list(vocabulary.words[4:])
    words[0], words[1] = words[1], words[0]
    (bundle_folder / "vocabulary.txt").write_bytes(Vocabulary.from_words(words).to_bytes())
    with pytest.raises(Untrusted, match=r"vocabulary\.txt"):
        read_bundle(bundle_folder)


@pytest.mark.parametrize("name", ["manifest.bin", "model.tflite", "vocabulary.txt", "manifest_key.pub"])
@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None])
def test_a_damaged_file_raises_only_the_contracts_errors(bundle_folder, name, damage):
    path = bundle_folder / name
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    with pytest.raises(ContractError):
        read_bundle(bundle_folder)


def test_a_vocabulary_of_another_length_than_the_embedding_is_refused(template, tensors):
    short = Vocabulary.from_words(["one", "two"])
    with pytest.raises(Malformed, match="a row for each word: 600, got 6"):
        make_manifest(template, tensors, short, population="p", candidates=WORDS, logit_tolerance=0.3, now=1, valid_s=1)


def test_weights_that_are_not_finite_make_no_bundle(template, tensors, vocabulary):
    broken = {**tensors, "kernel": np.full_like(tensors["kernel"], np.nan)}
    with pytest.raises(Malformed, match="finite"):
        make_manifest(
            template, broken, vocabulary, population="p", candidates=WORDS, logit_tolerance=0.3, now=1, valid_s=1
        )


def test_a_write_that_fails_leaves_the_older_bundle_whole_and_nothing_beside_it(
    bundle_folder, bundle_parts, vocabulary
):
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in bundle_folder.iterdir()}

    class KeyThatGoesAway:
        def __init__(self, key):
            self.key, self.asked = key, 0

        def sign(self, data):
            return self.key.sign(data)

        def public_key(self):
            self.asked += 1
            if self.asked > 1:
                raise OSError("the token was unplugged")
            return self.key.public_key()

    model, manifest = bundle_parts
    key = KeyThatGoesAway(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
    with pytest.raises(OSError, match="unplugged"):
        write_bundle(bundle_folder, model, vocabulary, manifest, key)
    after = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in bundle_folder.iterdir()}
    assert after == before
    assert [path.name for path in bundle_folder.parent.iterdir()] == ["bundle"]


def test_an_older_bundle_is_replaced(bundle_folder, bundle_parts, vocabulary):
    model, manifest = bundle_parts
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    write_bundle(bundle_folder, model, vocabulary, manifest, key)
    assert read_bundle(bundle_folder).public_key == public_bytes(key)
    assert [path.name for path in bundle_folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["a file", "a folder with something else in it", "a link"])
def test_what_is_no_bundle_is_never_replaced(bundle_folder, bundle_parts, vocabulary, signing_key, kind):
    model, manifest = bundle_parts
    place = bundle_folder
    if kind == "a file":
        place = bundle_folder.parent / "model.keras"
        place.write_bytes(b"months of work")
    elif kind == "a link":
        place = bundle_folder.parent / "link"
        place.symlink_to(bundle_folder)
    else:
        (bundle_folder / "key.pem").write_bytes(b"months of work")
    before = {path: path.read_bytes() for path in bundle_folder.parent.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError):
        write_bundle(place, model, vocabulary, manifest, signing_key)
    assert {path: path.read_bytes() for path in bundle_folder.parent.rglob("*") if path.is_file()} == before
    assert place.is_symlink() == (kind == "a link")
