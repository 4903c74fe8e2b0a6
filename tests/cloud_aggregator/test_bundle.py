"""What the exporter hands over is believed only after every check; a refused bundle leaves no population."""

import msgspec
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.schema import SCHEMA
from cloud_aggregator.bundle import check_bundle, read_bundle
from cloud_aggregator.config import PopulationSettings, check_population
from cloud_aggregator.errors import InvalidSetting, NotFound, Refused, StorageFailed
from tests.cloud_aggregator.fleet import MANIFEST_KEY, POPULATION, Aggregator, make_bundle, settings, write_bundle
from wire_contract import envelope
from wire_contract.errors import ContractError, Untrusted
from wire_contract.manifest import encode_manifest
from wire_contract.messages import Plan


def test_a_whole_bundle_is_read_and_its_key_named(tmp_path):
    write_bundle(tmp_path)
    bundle = read_bundle(tmp_path, None)
    assert bundle.manifest_key == envelope.public_bytes(MANIFEST_KEY)
    assert bundle.manifest == make_bundle().manifest
    assert len(bundle.weights) == bundle.manifest.parameters


def test_a_pinned_key_that_did_not_sign_refuses_the_bundle(tmp_path):
    write_bundle(tmp_path)
    other = envelope.public_bytes(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(Refused, match="no bundle of this exporter"):
        read_bundle(tmp_path, other)


@pytest.mark.parametrize("name", ["model.tflite", "vocabulary.txt", "manifest.bin", "manifest_key.pub"])
def test_a_missing_file_is_named(tmp_path, name):
    write_bundle(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(NotFound, match=name):
        read_bundle(tmp_path, None)


@pytest.mark.parametrize("name", ["model.tflite", "vocabulary.txt", "manifest.bin"])
@pytest.mark.parametrize("position", [10, -20])
def test_one_flipped_bit_in_any_file_is_refused(tmp_path, name, position):
    write_bundle(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[position % len(data)] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(Refused):
        read_bundle(tmp_path, None)


def test_a_manifest_that_was_changed_after_signing_is_untrusted():
    bundle = make_bundle()
    body = encode_manifest(msgspec.structs.replace(bundle.manifest, version=9))
    forged = envelope.sign(Ed25519PrivateKey.from_private_bytes(bytes(32)), "manifest", body)
    with pytest.raises(Untrusted):
        check_bundle(forged, bundle.manifest_key, bundle.model, bundle.vocabulary)


def test_a_template_hash_that_does_not_hold_is_refused():
    bundle = make_bundle()
    body = encode_manifest(msgspec.structs.replace(bundle.manifest, template_sha256="ab" * 32))
    signed = envelope.sign(MANIFEST_KEY, "manifest", body)
    with pytest.raises(Refused, match="hash to the template"):
        check_bundle(signed, bundle.manifest_key, bundle.model, bundle.vocabulary)


def test_a_receipt_cannot_pass_for_a_manifest():
    bundle = make_bundle()
    wrong = envelope.sign(MANIFEST_KEY, "receipt", encode_manifest(bundle.manifest))
    with pytest.raises(ContractError):
        check_bundle(wrong, bundle.manifest_key, bundle.model, bundle.vocabulary)


def test_a_population_is_founded_once(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    with pytest.raises(Refused, match="exists already"):
        aggregator.found(goal_count=9)
    with aggregator.database.reading() as records:
        assert len(records.populations()) == 1
        assert len(records.versions(POPULATION)) == 1


def test_a_plan_with_a_signature_that_the_model_lacks_founds_nothing(tmp_path):
    aggregator = Aggregator(tmp_path / "d")
    with pytest.raises(Refused, match=r"one of \['train_sampled'\], got 'train_other'"):
        aggregator.found(plan=Plan(signature="train_other"))
    with aggregator.database.reading() as records:
        assert records.populations() == []


def test_both_tracks_announce_the_first_version_signed_by_the_aggregator(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    bundle = make_bundle()
    for track in ("training", "refresh"):
        manifest = aggregator.manifest(track)
        assert (manifest.version, manifest.kind, manifest.sha256) == (1, track, bundle.manifest.sha256)
        for name in ("template_sha256", "tensors", "train_inputs", "signatures", "golden", "layout_fingerprint"):
            assert getattr(manifest, name) == getattr(bundle.manifest, name)


def test_every_rule_between_settings_is_told_at_once():
    wrong = settings(
        goal_count=2, minimum_updates=5, plan=Plan(clip_norm=65.0), lease_seconds=100, maximum_age_seconds=50
    )
    with pytest.raises(InvalidSetting) as told:
        check_population(wrong)
    for rule in ("minimum_updates", "clip_norm", "maximum_age_seconds"):
        assert rule in str(told.value)
    check_population(PopulationSettings())


def test_a_blob_is_found_by_its_hash_and_a_damaged_one_is_named(tmp_path):
    blobs = FileBlobs(tmp_path / "blobs")
    name = blobs.put(b"model")
    assert blobs.put(b"model") == name
    assert blobs.get(name) == b"model"
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [name]
    (tmp_path / "blobs" / name).write_bytes(b"mOdel")
    with pytest.raises(StorageFailed, match="was damaged"):
        blobs.get(name)
    for wrong in ("0" * 64, "../x", ""):
        with pytest.raises(NotFound):
            blobs.path(wrong)


def test_a_database_of_another_schema_is_refused_by_name_and_left_as_it_is(tmp_path):
    aggregator = Aggregator(tmp_path / "d")
    with aggregator.database.transaction() as records:
        records.set_meta("schema", b"99")
    with aggregator.database._engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE partial_sums"))
        tables = sa.inspect(connection).get_table_names()
    aggregator.database.close()
    with pytest.raises(Refused, match=f"reads database schema {SCHEMA.decode()}, got 99"):
        type(aggregator.database).in_folder(tmp_path / "d")
    with aggregator.database._engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == tables
    aggregator.database.close()
    assert (tmp_path / "d" / "aggregator.db").stat().st_mode & 0o777 == 0o600
