"""A key ceremony: who holds what, what counts when it is signed, and what a lost or stolen key is good for."""

import itertools
import json
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root, Targets

from cli_contract.main import run_command
from model_export import trust_metadata as meta
from model_export.ceremony import found_ceremony, replace_key
from model_export.cli import build_parser
from model_export.signing_key import load_key
from model_export.trust_keys import Ceremony, add_signature, authorities, write_whole
from model_export.trust_metadata import BadMetadata, PublicKey, Quorum
from tests.cloud_aggregator.fleet import make_bundle, write_bundle
from wire_contract import trust_roles as roles

NOW = 1_800_000_000
DAY = 86_400


def online(seed=1):
    """The public keys of a service's online roles."""
    private = [Ed25519PrivateKey.from_private_bytes(bytes([seed + i]) * 32) for i in range(3)]
    return {role: PublicKey.of(key).data for role, key in zip(roles.ONLINE_ROLES, private, strict=True)}


def online_file(path, seed=1):
    path.write_text(json.dumps({"format": 1, "keys": {role: key.hex() for role, key in online(seed).items()}}))
    return path


@pytest.fixture
def ceremony(tmp_path):
    return found_ceremony(tmp_path / "ceremony", 3, 2, online(), NOW)


def take_away(ceremony, *holders):
    """Let holders carry their folders away; return where."""
    away = ceremony.folder.parent / "away"
    away.mkdir(exist_ok=True)
    for holder in holders:
        (ceremony.folder / f"holder-{holder}").rename(away / f"holder-{holder}")
    return away


def pem(folder, holder, name):
    return load_key(folder / f"holder-{holder}" / f"{name}.pem")


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


def test_each_holders_keys_are_readable_by_their_owner_only(ceremony):
    for holder in (1, 2, 3):
        folder = ceremony.folder / f"holder-{holder}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["offline-1.pem", "root-1.pem", "targets-1.pem"]
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    public = [path.data for path in map(PublicKey.of, ceremony.keys_at_hand())]
    assert len(set(public)) == 9


def test_python_tuf_finds_the_first_metadata_signed_by_their_thresholds(ceremony):
    root = Metadata[Root].from_bytes(ceremony.newest("root"))
    targets = Metadata[Targets].from_bytes(ceremony.newest("targets"))
    offline = Metadata[Targets].from_bytes(ceremony.newest("offline"))
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    root.signed.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    targets.signed.verify_delegate("offline", offline.signed_bytes, offline.signatures)
    assert root.signed.roles["root"].threshold == root.signed.roles["targets"].threshold == 2
    delegated = targets.signed.delegations.roles
    assert delegated["offline"].threshold == 2 and delegated["refreshes"].threshold == 1
    assert delegated["refreshes"].paths == [roles.REFRESH_PATHS] and delegated["offline"].paths == [roles.OFFLINE_PATHS]
    assert root.signed.expires.timestamp() == NOW + 365 * DAY


def test_a_ceremony_never_overwrites_anything(ceremony):
    before = {path: path.read_bytes() for path in ceremony.folder.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError):
        found_ceremony(ceremony.folder, 3, 2, online(9), NOW)
    assert {path: path.read_bytes() for path in ceremony.folder.rglob("*") if path.is_file()} == before
    with pytest.raises(FileExistsError):
        ceremony.store("root", ceremony.newest("root"))


def test_a_ceremony_that_fails_leaves_no_key_behind(tmp_path):
    with pytest.raises(BadMetadata, match="snapshot has 32 bytes"):
        found_ceremony(tmp_path / "ceremony", 3, 2, {"snapshot": b"", "timestamp": b"", "refreshes": b""}, NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("holders", "threshold"), [(3, 0), (3, 4), (0, 0), (17, 2)])
def test_a_quorum_that_cannot_be_is_refused(tmp_path, holders, threshold):
    with pytest.raises(BadMetadata, match="threshold"):
        found_ceremony(tmp_path / "ceremony", holders, threshold, online(), NOW)


def test_below_the_threshold_metadata_wait_and_count_for_nothing(ceremony):
    away = take_away(ceremony, 1, 3)
    waiting = ceremony.store("root", meta.renewed(ceremony.newest("root"), "root", NOW + DAY))
    assert not waiting.complete
    assert waiting.told() == "2.root.json has 1 of 2 signatures of the keys before, 1 of 2 signatures of its own"
    with pytest.raises(BadMetadata, match=r"2\.root\.json has 1 of 2"):
        ceremony.check_complete("root")
    with pytest.raises(BadMetadata, match="finish it first"):
        replace_key(ceremony, "root", 2, None, NOW)
    path = ceremony.metadata / "2.root.json"
    for wrong in ("targets-1", "offline-1"):
        with pytest.raises(BadMetadata, match="is no key of the role root"):
            add_signature(path, pem(away, 1, wrong))
    assert add_signature(path, pem(away, 1, "root-1")).complete
    assert ceremony.check_complete("root") == path.read_bytes()


def test_one_holder_cannot_sign_twice(ceremony):
    away = take_away(ceremony, 1, 2, 3)
    path = ceremony.metadata / "2.targets.json"
    assert not ceremony.store("targets", meta.renewed(ceremony.newest("targets"), "targets", NOW)).complete
    for _ in range(3):
        assert not add_signature(path, pem(away, 1, "targets-1")).complete
    assert add_signature(path, pem(away, 3, "targets-1")).complete


def test_a_replaced_root_key_is_revoked_by_the_old_quorum_and_the_new_one(ceremony):
    old = pem(ceremony.folder, 2, "root-1")
    (standing,) = replace_key(ceremony, "root", 2, None, NOW + DAY)
    assert standing.complete and [len(count.by) for count in standing.counts] == [3, 3]
    root = Metadata[Root].from_bytes(ceremony.newest("root"))
    assert root.signed.version == 2 and PublicKey.of(old).id not in root.signed.keys
    assert [key.holder for key in meta.quorum_of(ceremony.newest("root"), "root").keys] == [1, 2, 3]
    first, second = ceremony.roots()
    result = root.signed.get_root_verification_result(
        Metadata[Root].from_bytes(first).signed, root.signed_bytes, root.signatures
    )
    assert result.verified
    # What the revoked key signs from now on is nobody's word.
    third = meta.renewed(second, "root", NOW)
    assert meta.sign(third, "root", [old], [second, third]) == third


@pytest.mark.parametrize(("role", "above"), [("targets", "root"), ("offline", "targets")])
def test_a_replaced_key_of_a_role_is_named_above_it_and_the_role_is_signed_anew(ceremony, role, above):
    old = pem(ceremony.folder, 1, f"{role}-1")
    standings = replace_key(ceremony, role, 1, None, NOW)
    assert [(s.role, s.version, s.complete) for s in standings] == [(above, 2, True), (role, 2, True)]
    named = {key.id for key in meta.quorum_of(ceremony.newest(above), role).keys}
    assert PublicKey.of(old).id not in named
    assert (ceremony.folder / "holder-1" / f"{role}-2.pem").exists()


@pytest.mark.parametrize(("role", "above"), [("snapshot", "root"), ("timestamp", "root"), ("refreshes", "targets")])
def test_an_online_key_is_replaced_by_the_holders_alone(ceremony, role, above):
    fresh = online(20)[role]
    (standing,) = replace_key(ceremony, role, 0, fresh, NOW)
    assert (standing.role, standing.complete) == (above, True)
    assert [key.data for key in meta.quorum_of(ceremony.newest(above), role).keys] == [fresh]


def test_three_rotations_in_a_row_make_a_chain_that_holds_link_by_link(ceremony):
    for holder in (1, 2, 3):
        replace_key(ceremony, "root", holder, None, NOW + holder)
    chain = [Metadata[Root].from_bytes(root) for root in ceremony.roots()]
    for before, after in itertools.pairwise(chain):
        result = after.signed.get_root_verification_result(before.signed, after.signed_bytes, after.signatures)
        assert result.verified
    assert not set(chain[0].signed.roles["root"].keyids) & set(chain[3].signed.roles["root"].keyids)


def test_a_key_that_is_lost_is_replaced_by_the_other_two(ceremony):
    away = take_away(ceremony, 2)
    (away / "holder-2" / "root-1.pem").unlink()
    (standing,) = replace_key(ceremony, "root", 2, None, NOW)
    assert standing.complete and [len(count.by) for count in standing.counts] == [2, 3]


def test_a_key_made_elsewhere_is_named_by_its_public_half(ceremony, tmp_path):
    private = Ed25519PrivateKey.generate()
    (standing,) = replace_key(ceremony, "root", 3, PublicKey.of(private).data, NOW)
    assert standing.complete and PublicKey.of(private, 3) in standing.counts[1].missing
    assert not (ceremony.folder / "holder-3" / "root-2.pem").exists()


def test_a_rotation_that_was_cut_off_goes_on_with_the_key_that_it_made(ceremony):
    made = ceremony.make_key("root", 1, 2)
    replace_key(ceremony, "root", 1, None, NOW)
    assert made in meta.quorum_of(ceremony.newest("root"), "root").keys


@pytest.mark.parametrize(
    ("role", "holder", "public", "told"),
    [
        ("root", 7, None, r"has the holders \[1, 2, 3\], got 7"),
        ("snapshot", 0, online()["timestamp"], "a key has one purpose"),
        ("refreshes", 0, online()["refreshes"], "a key has one purpose"),
    ],
)
def test_a_rotation_that_means_nothing_is_refused_and_writes_nothing(ceremony, role, holder, public, told):
    before = sorted(path.name for path in ceremony.metadata.iterdir())
    with pytest.raises(BadMetadata, match=told):
        replace_key(ceremony, role, holder, public, NOW)
    assert sorted(path.name for path in ceremony.metadata.iterdir()) == before


@pytest.mark.parametrize(
    ("role", "path"),
    [
        ("targets", "refreshes/toy/current.bin"),
        ("offline", "templates/x.bin"),
        ("refreshes", "refreshes/toy/current.bin"),
    ],
)
def test_no_role_is_made_to_name_what_is_not_its_own(ceremony, role, path):
    data = ceremony.newest("targets" if role == "refreshes" else role)
    with pytest.raises(BadMetadata, match=r"no path of the role|named by the roles"):
        meta.with_target(data, role, path, b"x", {}, NOW)


def test_a_file_under_another_name_than_its_version_is_not_signed(ceremony):
    (ceremony.metadata / "5.root.json").write_bytes(ceremony.newest("root"))
    (ceremony.metadata / "4.root.json").write_bytes(ceremony.newest("root"))
    with pytest.raises(BadMetadata, match="holds the version of its name"):
        add_signature(ceremony.metadata / "5.root.json", pem(ceremony.folder, 1, "root-1"))
    with pytest.raises(BadMetadata, match="named like"):
        add_signature(ceremony.metadata / "root.json", pem(ceremony.folder, 1, "root-1"))
    with pytest.raises(BadMetadata, match="every root from"):
        ceremony.roots()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_metadata_are_refused_by_name(data):
    for role in roles.OFFLINE_ROLES:
        with pytest.raises(BadMetadata):
            meta.decode(data, role)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    )
)
def test_json_of_another_shape_is_refused_by_name(value):
    for wrapped in (value, {"signed": value, "signatures": []}, {"signed": {"_type": "root"}, "signatures": value}):
        with pytest.raises(BadMetadata):
            meta.decode(json.dumps(wrapped).encode(), "root")


def test_two_holders_of_one_key_are_one():
    key = PublicKey(bytes(range(32)), 1)
    with pytest.raises(BadMetadata, match="two holders of one key"):
        Quorum((key, PublicKey(key.data, 2)), 2)


def test_writing_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "1.root.json"
    path.mkdir()
    (path / "kept").write_bytes(b"before")
    with pytest.raises(OSError, match="directory"):
        write_whole(path, b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["1.root.json"]
    assert (path / "kept").read_bytes() == b"before"


def test_the_authorities_of_a_root_are_the_one_before_and_itself(ceremony):
    replace_key(ceremony, "root", 1, None, NOW)
    assert authorities(ceremony.metadata, "root", 1) == ceremony.roots()[:1]
    assert authorities(ceremony.metadata, "root", 2) == ceremony.roots()
    with pytest.raises(BadMetadata, match="holds no root metadata"):
        authorities(ceremony.folder, "targets", 1)


# The commands, as holders meet them.


def test_the_ceremony_by_command(tmp_path, capfd):
    folder, keys = tmp_path / "ceremony", online_file(tmp_path / "online.json")
    assert run(capfd, "keys", "init", folder, "--online", keys)[0] == 0
    code, _, err = run(capfd, "keys", "init", folder, "--online", keys)
    assert code == 4 and len(err.splitlines()) == 1
    bundle = write_bundle(tmp_path / "bundle")
    code, out, _ = run(capfd, "keys", "add-template", folder, "--bundle", tmp_path / "bundle", "--json")
    assert code == 0 and json.loads(out)["template"] == roles.template_target(
        bundle.manifest.population, bundle.manifest.template_sha256
    )
    # Once more changes nothing: it is named already.
    assert run(capfd, "keys", "add-template", folder, "--bundle", tmp_path / "bundle")[0] == 0
    assert meta.version_of(Ceremony(folder).newest("targets"), "targets") == 2
    code, out, _ = run(capfd, "keys", "show", folder, "--json")
    shown = json.loads(out)
    assert code == 0 and len(shown["items"]) == 12 and all(item["complete"] for item in shown["metadata"])
    assert list(shown["named"]["targets"]) == [
        roles.template_target(bundle.manifest.population, bundle.manifest.template_sha256)
    ]


def test_a_template_that_is_named_is_not_replaced_unasked(tmp_path, capfd):
    ceremony = found_ceremony(tmp_path / "ceremony", 3, 2, online(), NOW)
    write_bundle(tmp_path / "bundle")
    add = ("keys", "add-template", ceremony.folder, "--bundle", tmp_path / "bundle")
    assert run(capfd, *add)[0] == 0
    # The same graph, exported once more.
    other = make_bundle(created_at=NOW - 50)
    (tmp_path / "bundle" / "manifest.bin").write_bytes(other.signed_manifest)
    before = ceremony.newest("targets")
    code, _, err = run(capfd, *add)
    assert code == 4 and "as another export signed it" in err and ceremony.newest("targets") == before
    assert run(capfd, *add, "--replace")[0] == 0
    path = roles.template_target(other.manifest.population, other.manifest.template_sha256)
    assert meta.names_target(ceremony.newest("targets"), "targets", path, other.signed_manifest)


def test_a_holder_signs_on_another_machine_by_command(tmp_path, capfd):
    ceremony = found_ceremony(tmp_path / "ceremony", 3, 2, online(), NOW)
    away = take_away(ceremony, 1, 2)
    code, out, err = run(capfd, "keys", "renew", ceremony.folder, "--role", "offline")
    assert code == 0 and "2.offline.json has 1 of 2 signatures" in out and "keys sign" in err
    path = ceremony.metadata / "2.offline.json"
    code, _, err = run(capfd, "keys", "sign", path, "--key", away / "holder-1" / "root-1.pem")
    assert code == 4 and "is no key of the role offline" in err
    code, out, _ = run(capfd, "keys", "sign", path, "--key", away / "holder-1" / "offline-1.pem", "--json")
    assert code == 0 and json.loads(out)["complete"] is True
    code, _, err = run(capfd, "keys", "sign", path, "--key", tmp_path / "none.pem")
    assert code == 3


@pytest.mark.parametrize(
    "options",
    [("--role", "root"), ("--role", "snapshot", "--holder", "1"), ("--role", "root", "--holder", "1", "--online", "x"),
     ("--role", "mirrors", "--holder", "1"), ("--role", "root", "--holder", "1", "--valid-days", "0")],
)  # fmt: skip
def test_a_rotation_asked_for_wrongly_is_a_usage_error(tmp_path, capfd, options):
    ceremony = found_ceremony(tmp_path / "ceremony", 3, 2, online(), NOW)
    assert run(capfd, "keys", "rotate", ceremony.folder, *options)[0] == 2
    assert len(list(ceremony.metadata.iterdir())) == 3


def test_a_file_that_holds_no_online_keys_is_refused(tmp_path, capfd):
    for text in ("", "{}", '{"keys": {"snapshot": "00"}}', '{"keys": 3}', "[" * 100_000):
        (tmp_path / "online.json").write_text(text)
        code, _, err = run(capfd, "keys", "init", tmp_path / "ceremony", "--online", tmp_path / "online.json")
        assert code == 4 and "online" in err and not (tmp_path / "ceremony").exists()


def test_a_key_that_others_may_read_is_not_used(tmp_path, capfd):
    ceremony = found_ceremony(tmp_path / "ceremony", 3, 2, online(), NOW)
    (ceremony.folder / "holder-1" / "root-1.pem").chmod(0o644)
    code, _, err = run(capfd, "keys", "renew", ceremony.folder)
    assert code == 4 and "readable by its owner only" in err
    assert make_bundle().manifest.version == 1 and len(list(ceremony.metadata.iterdir())) == 3
