"""The signed repository's rules on values: what an operator may bring, what the service signs, and attacks on both."""

import random
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from cloud_aggregator.adapters.key_files import make_keys
from cloud_aggregator.online_keys import HeldOnlineKeys
from cloud_aggregator.population import make_announcement
from cloud_aggregator.registry import Registered
from cloud_aggregator.repository import Change, Shelf, refreshed, settle, with_refreshes
from cloud_aggregator.repository_import import accept
from cloud_aggregator.tuf_metadata import MetadataRefused
from model_export import trust_metadata as meta
from model_export.signing_key import load_key
from tests.cloud_aggregator.fleet import MANIFEST_KEY, NOW, POPULATION, entropy, make_bundle
from tests.cloud_aggregator.holders import Holders, online_keys
from wire_contract import envelope
from wire_contract import trust_roles as roles
from wire_contract.manifest import encode_manifest

DAY = 86_400


@pytest.fixture
def holders(tmp_path):
    made = Holders(tmp_path / "ceremony", online_keys(tmp_path / "data")[1])
    made.add_template()
    return made


@pytest.fixture
def keys(tmp_path, holders):
    return make_keys(tmp_path / "data", entropy(b"service"))


def take(holders, keys, held=None, held_roots=None, now=NOW, **changes):
    return accept(held, held_roots or {}, replace(holders.bring(), **changes), keys.online, now, {})


def settled(holders, keys, now=NOW):
    return settle(take(holders, keys).shelf, keys.online, now)


def refresh(keys, version=1, sha256=None, bundle=None, now=NOW, **changes):
    """Return what the service signs for its keyboards, as a change of the repository."""
    bundle = bundle or make_bundle()
    registered = Registered(version, sha256 or bundle.manifest.sha256, None)
    announced = make_announcement(bundle.manifest, keys, "refresh", registered, now, 30)
    if changes:
        body = msgspec.structs.replace(bundle.manifest, version=version, **changes)
        signed = envelope.sign(keys.signing, "manifest", encode_manifest(body))
        return Change(signed, bundle.signed_manifest)
    return Change(announced.signed_manifest, bundle.signed_manifest)


def versions(shelf):
    """The versions of refreshes, snapshot and timestamp."""
    return tuple(Metadata.from_bytes(shelf.of(r)).signed.version for r in ("refreshes", "snapshot", "timestamp"))


def resigned(data, role, keys, **changes):
    """Return metadata with other fields, signed by these keys: what a thief of keys can make."""
    metadata = Metadata.from_bytes(data)
    for name, value in changes.items():
        setattr(metadata.signed, name, value)
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(CryptoSigner(key), append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def stolen(holders, role, *numbers):
    return [load_key(path) for n in numbers for path in sorted((holders.folder / f"holder-{n}").glob(f"{role}-*.pem"))]


def test_what_three_holders_signed_is_accepted_and_the_online_roles_are_signed_for_it(holders, keys):
    accepted = take(holders, keys)
    assert len(accepted.roots) == 1 and len(accepted.files) == 1
    shelf = settle(accepted.shelf, keys.online, NOW)
    assert versions(shelf) == (1, 1, 1) and refreshed(shelf) == {}
    root = Metadata.from_bytes(shelf.root).signed
    for role, data in ((Timestamp.type, shelf.timestamp), (Snapshot.type, shelf.snapshot), ("targets", shelf.targets)):
        metadata = Metadata.from_bytes(data)
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def test_what_is_settled_stays_as_it_is_until_it_is_due(holders, keys):
    shelf = settled(holders, keys)
    assert settle(shelf, keys.online, NOW + DAY - 1) == shelf
    assert versions(settle(shelf, keys.online, NOW + DAY)) == (1, 1, 2)
    assert versions(settle(shelf, keys.online, NOW + 10 * DAY)) == (2, 2, 2)


def test_a_hundred_days_never_leave_a_role_with_less_than_its_reserve(holders, keys):
    shelf = settled(holders, keys)
    for day in range(1, 101):
        before, shelf = shelf, settle(shelf, keys.online, NOW + day * DAY)
        ends = {r: Metadata.from_bytes(shelf.of(r)).signed.expires.timestamp() for r in roles.ONLINE_ROLES}
        left = {role: end - NOW - day * DAY for role, end in ends.items()}
        assert left["timestamp"] > 12 * DAY and min(left["snapshot"], left["refreshes"]) > 19 * DAY
        assert all(a <= b for a, b in zip(versions(before), versions(shelf), strict=True))


def test_a_refresh_is_named_by_the_role_refreshes_with_version_and_hash(holders, keys):
    shelf = settled(holders, keys)
    change = refresh(keys)
    after = with_refreshes(shelf, keys.online, [change], keys.public, NOW)
    signed = Metadata.from_bytes(after.refreshes).signed
    target = signed.targets[roles.refresh_target(POPULATION)]
    target.verify_length_and_hashes(change.signed_manifest)
    assert target.unrecognized_fields["custom"] == {"version": 1, "sha256": make_bundle().manifest.sha256}
    assert versions(after) == (2, 2, 2)
    named = Metadata.from_bytes(after.snapshot).signed.meta["refreshes.json"]
    named.verify_length_and_hashes(after.refreshes)


def test_a_refresh_without_an_offline_signed_template_is_not_signed(holders, keys):
    shelf = settled(holders, keys)
    other = make_bundle("elsewhere")
    blank = msgspec.structs.replace(other.manifest, template_sha256="0" * 64)
    template = envelope.sign(MANIFEST_KEY, "manifest", encode_manifest(blank))
    signed = envelope.sign(keys.signing, "manifest", encode_manifest(blank))
    with pytest.raises(MetadataRefused, match="not_a_target"):
        with_refreshes(shelf, keys.online, [Change(signed, template)], keys.public, NOW)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "training"}, "names refreshes"),
        ({"population": "elsewhere"}, "not_a_target"),
        ({"minimum_runtime": "9.9"}, "template's minimum_runtime"),
        ({"needs": ("signature:other",)}, "template's needs"),
        ({"size_bytes": 4096}, "template's size_bytes"),
    ],
)
def test_a_refresh_that_is_more_than_a_patch_is_not_signed(holders, keys, changes, told):
    with pytest.raises(MetadataRefused, match=told):
        with_refreshes(settled(holders, keys), keys.online, [refresh(keys, 2, **changes)], keys.public, NOW)


def test_a_refresh_that_another_key_signed_is_not_named(holders, keys):
    bundle = make_bundle()
    with pytest.raises(MetadataRefused, match="wrong_target"):
        change = Change(bundle.signed_manifest, bundle.signed_manifest)
        with_refreshes(settled(holders, keys), keys.online, [change], keys.public, NOW)


def test_a_refresh_never_goes_back_and_never_changes_its_model(holders, keys):
    shelf = with_refreshes(settled(holders, keys), keys.online, [refresh(keys, 7)], keys.public, NOW)
    # Check for a rollback attack by whoever can call the signer.
    with pytest.raises(MetadataRefused, match="metadata_rolled_back: refresh 7"):
        with_refreshes(shelf, keys.online, [refresh(keys, 6)], keys.public, NOW)
    with pytest.raises(MetadataRefused, match="metadata_mixed"):
        with_refreshes(shelf, keys.online, [refresh(keys, 7, "e" * 64)], keys.public, NOW)
    again = with_refreshes(shelf, keys.online, [refresh(keys, 7, now=NOW + 5)], keys.public, NOW)
    assert versions(again) == (3, 3, 3)


def test_nothing_is_signed_under_an_expired_root_or_targets(holders, keys):
    shelf = settled(holders, keys)
    with pytest.raises(MetadataRefused, match="metadata_expired: root 1"):
        settle(shelf, keys.online, NOW + 365 * DAY)
    holders.now = NOW + 100 * DAY
    holders.renew("root")
    later = take(holders, keys, now=NOW + 100 * DAY).shelf
    with pytest.raises(MetadataRefused, match="metadata_expired: targets 2"):
        settle(later, keys.online, NOW + 366 * DAY)


def test_without_the_online_keys_nothing_is_accepted_and_nothing_is_signed(holders, keys):
    shelf = settled(holders, keys)
    with pytest.raises(MetadataRefused, match="wrong_keys"):
        accept(None, {}, holders.bring(), HeldOnlineKeys(), NOW, {})
    with pytest.raises(MetadataRefused, match="wrong_keys"):
        settle(shelf, HeldOnlineKeys(), NOW + DAY)


# What an operator, or whoever holds the operator's disk, may bring.


def test_metadata_below_the_threshold_are_refused_by_name(holders, keys):
    for role in roles.OFFLINE_ROLES:
        offered = holders.bring()
        data = offered.roots[1] if role == "root" else getattr(offered, role)
        weak = resigned(data, role, stolen(holders, role, 1))
        changes = {"roots": {1: weak}} if role == "root" else {role: weak}
        with pytest.raises(MetadataRefused, match=f"metadata_unsigned: {role} . has 1 of 2"):
            take(holders, keys, **changes)


def test_one_key_under_two_ids_is_one_signature(holders, keys):
    root = Metadata.from_bytes(holders.bring().roots[1])
    thief = Ed25519PrivateKey.generate()
    for name in ("a", "b"):
        key = CryptoSigner(thief).public_key
        key.keyid = name * 64
        root.signed.keys[key.keyid] = key
    root.signed.roles["targets"].keyids = ["a" * 64, "b" * 64]
    data = root.to_bytes(JSONSerializer(compact=True))
    weak = resigned(data, "root", stolen(holders, "root", 1, 2))
    with pytest.raises(MetadataRefused, match="wrong_role: the keys of the role targets"):
        take(holders, keys, roots={1: weak})


def test_what_a_replaced_key_signs_counts_for_nothing(holders, keys):
    before = take(holders, keys).shelf
    old = stolen(holders, "targets", 1, 2)
    holders.rotate("targets", 1)
    holders.rotate("targets", 2)
    after = take(holders, keys, before, {1: before.root}).shelf
    forged = resigned(after.targets, "targets", old, version=9)
    with pytest.raises(MetadataRefused, match="metadata_unsigned: targets 9 has 0 of 2"):
        take(holders, keys, before, {1: before.root}, targets=forged)


def test_a_chain_of_three_roots_is_followed_and_a_gap_in_it_is_refused(holders, keys):
    first = take(holders, keys).shelf
    for holder in (1, 2, 3):
        holders.rotate("root", holder)
    accepted = take(holders, keys, first, {1: first.root})
    assert [Metadata[Root].from_bytes(root).signed.version for root in accepted.roots] == [2, 3, 4]
    roots = holders.bring().roots
    with pytest.raises(MetadataRefused, match="root 2 comes next, got root 3"):
        take(holders, keys, first, {1: first.root}, roots={n: roots[n] for n in (1, 3, 4)})
    with pytest.raises(MetadataRefused, match="root 1 comes next, got root 2"):
        take(holders, keys, roots={n: roots[n] for n in (2, 3, 4)})
    # Two of the first root's three keys are revoked: together with the third they no longer are a quorum.
    fork = resigned(roots[1], "root", stolen(holders, "root", 1, 2, 3)[:2], version=5)
    with pytest.raises(MetadataRefused, match="metadata_unsigned: root 5"):
        take(holders, keys, accepted.shelf, dict(roots), roots={5: fork})


def test_imported_versions_never_fall_and_one_version_has_one_content(holders, keys):
    first = holders.bring()
    holders.renew()
    held = take(holders, keys).shelf
    roots = dict(holders.bring().roots)
    for name in ("targets", "offline"):
        with pytest.raises(MetadataRefused, match=f"metadata_rolled_back: {name}"):
            take(holders, keys, held, roots, **{name: getattr(first, name)})
    with pytest.raises(MetadataRefused, match="metadata_rolled_back: root 2"):
        take(holders, keys, held, roots, roots={1: first.roots[1]})
    other = resigned(held.targets, "targets", stolen(holders, "targets", 1, 2), targets={})
    with pytest.raises(MetadataRefused, match="metadata_mixed: targets 3"):
        take(holders, keys, held, roots, targets=other)
    later = Metadata.from_bytes(roots[2]).signed.expires + timedelta(days=1)
    fork = resigned(roots[2], "root", stolen(holders, "root", 1, 2), expires=later)
    with pytest.raises(MetadataRefused, match="metadata_mixed: root 2 is held already"):
        take(holders, keys, held, roots, roots={**roots, 2: fork})


def test_metadata_of_another_repository_do_not_mix_in(holders, keys, tmp_path):
    other = Holders(tmp_path / "other", holders.online)
    other.add_template()
    foreign = other.bring()
    for changes in ({"targets": foreign.targets}, {"offline": foreign.offline}, {"roots": foreign.roots}):
        with pytest.raises(MetadataRefused, match="metadata_unsigned"):
            take(holders, keys, **changes)
    held = take(holders, keys).shelf
    with pytest.raises(MetadataRefused, match="metadata_mixed: root 1"):
        accept(held, {1: held.root}, foreign, keys.online, NOW, {})


def test_expired_metadata_are_not_taken(holders, keys):
    with pytest.raises(MetadataRefused, match="metadata_expired: root 1"):
        take(holders, keys, now=NOW + 365 * DAY)


def test_no_role_names_a_path_of_another(holders, keys):
    offered = holders.bring()
    quorum = stolen(holders, "targets", 1, 2)
    content = make_bundle().signed_manifest
    for path in ("refreshes/toy/current.bin", "offline/toy/current.bin", "templates/" + "f" * 64 + ".bin"):
        target = TargetFile.from_data(path, content, ["sha256"])
        targets = {**Metadata.from_bytes(offered.targets).signed.targets, path: target}
        greedy = resigned(offered.targets, "targets", quorum, targets=targets, version=9)
        with pytest.raises(MetadataRefused, match="wrong_role: targets names templates"):
            take(holders, keys, targets=greedy)
    for path in ("refreshes/toy/current.bin", "templates/x.bin", "offline/a/b/current.bin"):
        targets = {path: TargetFile.from_data(path, content, ["sha256"])}
        greedy = resigned(offered.offline, "offline", stolen(holders, "offline", 1, 2), targets=targets, version=9)
        with pytest.raises(MetadataRefused, match="wrong_role: the role offline"):
            take(holders, keys, offline=greedy)


def test_a_delegation_that_reaches_further_is_refused(holders, keys):
    targets = Metadata.from_bytes(holders.bring().targets)
    targets.signed.delegations.roles["refreshes"].paths = ["*/*/*"]
    quorum = stolen(holders, "targets", 1, 2)
    wide = resigned(targets.to_bytes(), "targets", quorum, version=9)
    with pytest.raises(MetadataRefused, match="wrong_role: the role refreshes names"):
        take(holders, keys, targets=wide)
    del targets.signed.delegations.roles["offline"]
    lacking = resigned(targets.to_bytes(), "targets", quorum, version=9)
    with pytest.raises(MetadataRefused, match="wrong_role: targets delegates"):
        take(holders, keys, targets=lacking)


def test_a_template_whose_file_is_missing_or_changed_is_refused(holders, keys):
    with pytest.raises(MetadataRefused, match=r"wrong_target.*is not there"):
        take(holders, keys, files={})
    files = {name: data + b"x" for name, data in holders.bring().files.items()}
    with pytest.raises(MetadataRefused, match=r"wrong_target.*not the file"):
        take(holders, keys, files=files)


@pytest.mark.parametrize("role", ["root", "targets", "offline", "refreshes", "snapshot", "timestamp"])
def test_of_random_bit_flips_none_changes_what_is_believed(holders, keys, role):
    assert flip(holders, keys, role, 200) > 50


def flip(holders, keys, role, times):
    """Flip single bits of a role's file: each one is refused by name, or says exactly what the true one says (a flip in
    a spare signature, or in what is signed anew from other files). Return how many were refused."""
    holders.add_offline()
    shelf = with_refreshes(settled(holders, keys), keys.online, [refresh(keys)], keys.public, NOW)
    true, offered = shelf.of(role), holders.bring()
    rng, refused = random.Random(6), 0
    for _ in range(times):
        flipped = bytearray(true)
        flipped[rng.randrange(len(true))] ^= 1 << rng.randrange(8)
        try:
            if role in roles.OFFLINE_ROLES:
                changes = {"roots": {1: bytes(flipped)}} if role == "root" else {role: bytes(flipped)}
                found = accept(None, {}, replace(offered, **changes), keys.online, NOW, {}).shelf.of(role)
            else:
                found = settle(replace(shelf, **{role: bytes(flipped)}), keys.online, NOW).of(role)
        except MetadataRefused:
            refused += 1
            continue
        assert Metadata.from_bytes(found).signed.to_dict() == Metadata.from_bytes(true).signed.to_dict()
    return refused


def test_a_shelf_of_wrong_roles_is_refused_by_name(holders, keys):
    shelf = settled(holders, keys)
    for role, wrong in (("root", shelf.targets), ("targets", shelf.root), ("snapshot", shelf.timestamp)):
        with pytest.raises(MetadataRefused, match=r"metadata_mixed|wrong_role"):
            settle(replace(shelf, **{role: wrong}), keys.online, NOW)
    with pytest.raises(MetadataRefused, match="not_metadata"):
        settle(Shelf(b"{}", b"[]", b""), keys.online, NOW)
    assert isinstance(Metadata.from_bytes(shelf.offline).signed, Targets)
    assert meta.version_of(shelf.offline, "offline") == 1
