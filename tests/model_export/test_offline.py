"""Offline bundles: what is packed is what a device believes, and nothing else is."""

import hashlib
import json
import random

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli_contract.main import run_command
from model_export import trust_metadata as meta
from model_export.ceremony import found_ceremony, replace_key
from model_export.cli import build_parser
from model_export.lineage import export_lineage, exporter_code
from model_export.offline import OfflineVersion, check_offline_bundle, check_version, pack
from model_export.trust_metadata import PublicKey
from tests.cloud_aggregator.fleet import make_bundle, write_bundle
from wire_contract import envelope
from wire_contract import trust_roles as roles
from wire_contract.errors import ContractError, Malformed, Untrusted
from wire_contract.lineage import check_lineage
from wire_contract.manifest import encode_manifest
from wire_contract.offline_bundle import MAX_ROOTS, decode_offline_bundle, encode_offline_bundle

NOW = 1_800_000_000
DAY = 86_400
SERVICE = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def ceremony(tmp_path):
    online = {role: PublicKey.of(Ed25519PrivateKey.generate()).data for role in roles.ONLINE_ROLES}
    made = found_ceremony(tmp_path / "ceremony", 3, 2, online, NOW)
    add(
        made,
        "targets",
        roles.template_target(make_bundle().manifest.population, make_bundle().manifest.template_sha256),
        make_bundle().signed_manifest,
    )
    return made


def add(ceremony, role, path, content, now=NOW):
    ceremony.store(role, meta.with_target(ceremony.newest(role), role, path, content, {}, now))


def released(number=7, population="toy"):
    """A version that the service signed: the toy model under another number."""
    bundle = make_bundle(population)
    manifest = msgspec.structs.replace(bundle.manifest, version=number)
    signed = envelope.sign(SERVICE, "manifest", encode_manifest(manifest))
    return OfflineVersion(signed, bundle.signed_manifest, bundle.model, bundle.vocabulary)


def packed(ceremony, version=None):
    version = version or released()
    add(ceremony, "offline", roles.offline_target("toy"), version.signed_manifest)
    return pack(ceremony.roots(), ceremony.newest("targets"), ceremony.newest("offline"), version)


def changed(data, **changes):
    return encode_offline_bundle(msgspec.structs.replace(decode_offline_bundle(data), **changes))


def test_what_the_holders_packed_is_believed_from_the_pinned_root_on(ceremony):
    first = ceremony.roots()[0]
    for holder in (1, 2, 3):
        replace_key(ceremony, "root", holder, None, NOW)
    data = packed(ceremony)
    for pinned in (first, *ceremony.roots()):
        bundle, manifest = check_offline_bundle(data, pinned, NOW + DAY)
        assert (manifest.version, manifest.population) == (7, "toy")
    assert bundle.model == make_bundle().model


def test_an_exporters_own_version_needs_no_second_template(ceremony):
    bundle = make_bundle()
    data = packed(ceremony, OfflineVersion(bundle.signed_manifest, b"", bundle.model, bundle.vocabulary))
    assert check_offline_bundle(data, ceremony.roots()[0], NOW)[1].version == 1


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model", b"another model", "the model hashes to"),
        ("vocabulary", b"", "the vocabulary hashes to"),
        ("signed_manifest", released(9).signed_manifest, "the role offline names this version"),
        ("signed_template", make_bundle("elsewhere").signed_manifest, "the role targets names the template"),
        ("offline", b"{}", "metadata break a rule"),
    ],
)
def test_a_part_that_was_exchanged_is_refused_by_name(ceremony, name, value, told):
    data = changed(packed(ceremony), **{name: value})
    with pytest.raises(Untrusted, match=told):
        check_offline_bundle(data, ceremony.roots()[0], NOW)


def test_a_bundle_for_another_population_is_not_this_ones(ceremony):
    version = released(population="elsewhere")
    add(ceremony, "offline", roles.offline_target("toy"), version.signed_manifest)
    data = pack(ceremony.roots(), ceremony.newest("targets"), ceremony.newest("offline"), version)
    with pytest.raises(Untrusted, match=r"offline/elsewhere/current\.bin, and does not"):
        check_offline_bundle(data, ceremony.roots()[0], NOW)


def test_below_the_threshold_and_expired_and_of_another_repository_are_refused(ceremony, tmp_path):
    data, root = packed(ceremony), ceremony.roots()[0]
    weak = meta.decode(ceremony.newest("offline"), "offline")
    del weak.signatures[next(iter(weak.signatures))]
    assert check_offline_bundle(changed(data, offline=meta.encode(weak)), root, NOW)
    del weak.signatures[next(iter(weak.signatures))]
    with pytest.raises(Untrusted, match=r"offline\.json has 1 of 2"):
        check_offline_bundle(changed(data, offline=meta.encode(weak)), root, NOW)
    with pytest.raises(Untrusted, match=r"1\.root\.json expired"):
        check_offline_bundle(data, root, NOW + 365 * DAY)
    other = found_ceremony(
        tmp_path / "other", 3, 2, {r: bytes([i]) * 32 for i, r in enumerate(roles.ONLINE_ROLES)}, NOW
    )
    with pytest.raises(Untrusted, match="0 of 2"):
        check_offline_bundle(data, other.roots()[0], NOW)
    replace_key(other, "root", 1, None, NOW)
    with pytest.raises(Untrusted, match="a root is signed by the keys before"):
        check_offline_bundle(changed(data, roots=tuple(other.roots())), root, NOW)
    with pytest.raises(Untrusted, match="a root follows root 1, got root 3"):
        replace_key(other, "root", 2, None, NOW)
        check_offline_bundle(changed(data, roots=(other.roots()[2],)), root, NOW)


def test_of_random_bit_flips_none_brings_another_version(ceremony):
    data, root = packed(ceremony), ceremony.roots()[0]
    true = decode_offline_bundle(data)
    rng, refused = random.Random(6), 0
    for _ in range(500):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            found, _ = check_offline_bundle(bytes(flipped), root, NOW)
        except ContractError:
            refused += 1
            continue
        # A flip in a spare signature, or in a root that the pinned one stands for.
        for name in ("signed_manifest", "model", "vocabulary", "signed_template"):
            assert getattr(found, name) == getattr(true, name)
    assert refused > 200


def test_a_bundle_holds_only_so_many_roots(ceremony):
    with pytest.raises(Malformed, match="64 roots"):
        pack([b"x"] * (MAX_ROOTS + 1), b"t", b"o", released())


def test_a_model_that_is_no_patch_of_its_template_is_not_packed():
    version = released()
    other = bytearray(version.model)
    other[0] ^= 1
    manifest = msgspec.structs.replace(version.manifest(), sha256=hashlib.sha256(other).hexdigest())
    signed = envelope.sign(SERVICE, "manifest", encode_manifest(manifest))
    with pytest.raises(Untrusted, match="a patch of its template"):
        check_version(OfflineVersion(signed, version.signed_template, bytes(other), version.vocabulary))


def test_a_bundle_is_made_and_checked_by_command(ceremony, tmp_path, capfd):
    write_bundle(tmp_path / "bundle")
    out_file = tmp_path / "toy.offline"
    options = ("--bundle", tmp_path / "bundle", "--output", out_file)
    code, _, err = run(capfd, "offline", "make", ceremony.folder, *options, "--population", "elsewhere")
    assert code == 4 and "is of population toy" in err and not out_file.exists()
    code, out, _ = run(capfd, "offline", "make", ceremony.folder, *options, "--population", "toy", "--json")
    assert code == 0 and json.loads(out)["offline_metadata"] == 2
    # The same again is not signed again.
    assert run(capfd, "offline", "make", ceremony.folder, *options, "--population", "toy")[0] == 0
    assert meta.version_of(ceremony.newest("offline"), "offline") == 2
    root = ceremony.metadata / "1.root.json"
    code, out, _ = run(capfd, "offline", "check", out_file, "--root", root, "--json")
    assert code == 0 and json.loads(out)["population"] == "toy"
    out_file.write_bytes(out_file.read_bytes()[:-1])
    assert run(capfd, "offline", "check", out_file, "--root", root)[0] != 0


def test_without_enough_holders_no_bundle_is_made_until_they_have_signed(ceremony, tmp_path, capfd):
    write_bundle(tmp_path / "bundle")
    for holder in (1, 2):
        (ceremony.folder / f"holder-{holder}").rename(tmp_path / f"holder-{holder}")
    out_file = tmp_path / "toy.offline"
    options = ("--bundle", tmp_path / "bundle", "--population", "toy", "--output", out_file)
    make = ("offline", "make", ceremony.folder, *options)
    code, _, err = run(capfd, *make)
    assert code == 4 and "2.offline.json has 1 of 2 signatures" in err and not out_file.exists()
    key = tmp_path / "holder-1" / "offline-1.pem"
    assert run(capfd, "keys", "sign", ceremony.metadata / "2.offline.json", "--key", key)[0] == 0
    assert run(capfd, *make)[0] == 0 and out_file.exists()


def test_an_export_states_its_code_and_what_went_in():
    lineage = export_lineage([b"weights", "d" * 64, b"weights"], {"top3": 27})
    check_lineage(lineage, 1)
    assert lineage.made_by == "export" and lineage.parents == () and lineage.code_sha256 == exporter_code()
    assert len(lineage.sources) == 2 and lineage.evaluation[0].value == 27.0
