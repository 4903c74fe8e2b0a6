"""A signer who signs nonsense: `verify` names a rule or finds nothing, and never ends in an unexpected error."""

import hashlib
import json
import random
from collections import Counter

import msgspec
import pytest

from cli_contract.main import run_command
from model_export.bundle import read_bundle
from model_export.cli import build_parser
from wire_contract import envelope
from wire_contract.manifest import template_hash

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]
MANIFESTS, FILES = 150, 60
REFUSED_BY = {"BAD_INPUT", "RULES", "UNTRUSTED"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lies")
    for command in (
        ("keygen", str(folder / "key.pem")),
        ("export", "--words", "80", "--width", "16", "--cells", "72", "--checkpoint", "untrained", "--population", "p",
         "--signing-key", str(folder / "key.pem"), "--output", str(folder / "bundle")),
    ):  # fmt: skip
        assert run_command(build_parser, command) == 0
    return folder


def ending(capfd, folder):
    code = run_command(build_parser, ["verify", str(folder), "--no-tape", "--json"])
    said = json.loads(capfd.readouterr()[0].splitlines()[-1])
    return code, said.get("error_code", "")


def test_flipped_manifests_and_files_that_were_signed_are_refused_by_a_rule_or_hold(bundle, capfd):
    from model_export.signing_key import load_key

    capfd.readouterr()
    folder, key = bundle / "bundle", load_key(bundle / "key.pem")
    held = read_bundle(folder)
    body = envelope.read_envelope(held.signed_manifest).body
    rng, endings = random.Random(9), Counter()
    for _ in range(MANIFESTS):
        lie = bytearray(body)
        lie[rng.randrange(len(lie))] = rng.randrange(256)
        (folder / "manifest.bin").write_bytes(envelope.sign(key, "manifest", bytes(lie)))
        endings[ending(capfd, folder)] += 1
    for _ in range(FILES):
        model = bytearray(held.model)
        model[rng.randrange(len(model))] ^= 1 << rng.randrange(8)
        lie = msgspec.structs.replace(held.manifest, sha256=hashlib.sha256(model).hexdigest())
        lie = msgspec.structs.replace(lie, template_sha256=template_hash(bytes(model), lie))
        (folder / "model.tflite").write_bytes(model)
        (folder / "manifest.bin").write_bytes(envelope.sign(key, "manifest", msgspec.msgpack.encode(lie)))
        endings[ending(capfd, folder)] += 1
    assert {error for code, error in endings if code} == REFUSED_BY, endings
    assert endings[0, ""] > 0, "a flipped weight is another weight, and a flipped date another date"
