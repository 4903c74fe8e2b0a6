"""Every version's manifest states what it was made of, and the release history shows what was signed."""

import msgspec
import pytest
import sqlalchemy as sa

from cloud_aggregator import lineage_view
from cloud_aggregator.adapters import schema
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.code_hash import aggregator_code
from cloud_aggregator.lineages import refresh_lineage, step_lineage, undo_lineage
from cloud_aggregator.population import found
from cloud_aggregator.ports import Score
from cloud_aggregator.records import VersionRecord
from cloud_aggregator.registry import Registered
from cloud_aggregator.service import Gate
from tests.cloud_aggregator.fleet import (
    MANIFEST_KEY,
    NOW,
    POPULATION,
    Aggregator,
    check_bundle,
    make_bundle,
    phones,
    run_step,
    settings,
)
from wire_contract import envelope
from wire_contract.lineage import Lineage, Measure, Parent, check_lineage
from wire_contract.manifest import GoldenVector, encode_manifest

GOLDEN = (GoldenVector(context=(1,), ids=(2, 0)),)


class Scores:
    """An evaluator of the tests: each version a point better, with one golden vector of its own."""

    def score(self, version):
        golden = (GoldenVector(context=(version.version % 3,), ids=(2, 0)),)
        return Score("top3", 20.0 + version.version, "words", 812, golden)


def steps(aggregator, fleet, count):
    """Make `count` training versions, one after the other."""
    for _ in range(count):
        for phone in fleet:
            if phone.replies():
                phone.rest()
        run_step(aggregator, fleet)
        aggregator.turn(3600)


def hash_of(number):
    return f"{number:064x}"


def version(number, ordinal=None, weights_of=None, updates=4, examples=50):
    return VersionRecord(
        POPULATION, number, hash_of(number), ordinal, NOW, NOW, "goal", updates, (), 0.0, weights_of, examples
    )  # fmt: skip


def numbers(lineage):
    return [parent.version for parent in lineage.parents]


def test_a_training_version_names_the_one_before_and_what_its_own_step_summed(aggregator):
    fleet = phones(aggregator, 4)
    steps(aggregator, fleet, 2)
    manifest = aggregator.manifest("training")
    lineage = manifest.lineage
    assert (manifest.version, lineage.made_by, numbers(lineage)) == (3, "steps", [2])
    with aggregator.database.reading() as records:
        rows = records.updates_of_version(records.populations()[0].task, 3)
        stored, before = records.version(POPULATION, 3), records.version(POPULATION, 2)
        sums = records.sums(POPULATION, 3)
    assert lineage.parents == (Parent(version=2, sha256=before.sha256),)
    assert lineage.updates == stored.updates == len(rows) == 4
    assert lineage.examples == stored.examples > 0
    assert lineage.code_sha256 == aggregator_code() and lineage.sources == (sums.members_sha256,)


def test_examples_are_the_same_sum_after_a_restart(aggregator):
    fleet = phones(aggregator, 4)
    for phone in fleet[:2]:
        aggregator.take(*phone.update(phone.lease()))
    aggregator.turn()
    half = aggregator.service._populations[POPULATION].examples
    aggregator.restart()
    aggregator.turn()
    assert aggregator.service._populations[POPULATION].examples == half > 0


def test_a_refresh_counts_every_step_since_the_last_one_and_carries_the_gates_numbers(tmp_path):
    aggregator = Aggregator(tmp_path / "data", gate=Gate(Scores())).found()
    fleet = phones(aggregator, 4)
    steps(aggregator, fleet, 3)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    manifest = aggregator.manifest("refresh")
    lineage = manifest.lineage
    assert numbers(lineage) == [3, 2, 1] and lineage.updates == 12
    with aggregator.database.reading() as records:
        assert lineage.examples == sum(v.examples for v in records.versions(POPULATION))
    measured = {measure.name: measure.value for measure in lineage.evaluation}
    assert measured == {"top3": 24.0, "top3_before": 21.0, "words": 812.0}
    assert len(lineage.sources) == 3 and manifest.golden_vectors[0].context == (1,)
    steps(aggregator, fleet, 1)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    assert numbers(aggregator.manifest("refresh").lineage) == [4]
    assert aggregator.manifest("refresh").lineage.updates == 4


def test_an_undo_names_what_it_replaces_and_whose_weights_it_brings_with_their_golden_vectors(tmp_path):
    aggregator = Aggregator(tmp_path / "data", gate=Gate(Scores())).found()
    fleet = phones(aggregator, 4)
    for _ in range(2):
        steps(aggregator, fleet, 1)
        aggregator.service.release(POPULATION, aggregator.clock.now())
    golden = Scores().score(Registered(2, "", None)).golden_vectors
    aggregator.service.undo(POPULATION, aggregator.clock.now())
    undone = aggregator.manifest("refresh")
    assert (undone.version, undone.undo_of, undone.golden_vectors) == (4, 3, golden)
    assert undone.lineage.made_by == "undo" and numbers(undone.lineage) == [3, 2]
    assert (undone.lineage.updates, undone.lineage.examples) == (0, 0)
    # What the undo took back counts again in the next refresh: it is in its weights.
    steps(aggregator, fleet, 1)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    after = aggregator.manifest("refresh")
    assert after.version == 5 and numbers(after.lineage) == [4, 3] and after.lineage.updates == 8


def test_a_renewed_manifest_states_the_same_lineage_and_golden_vectors(tmp_path):
    aggregator = Aggregator(tmp_path / "data", gate=Gate(Scores())).found()
    steps(aggregator, phones(aggregator, 4), 1)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    before = aggregator.manifest("refresh")
    aggregator.turn(200 * 86_400)
    after = aggregator.manifest("refresh")
    assert after.created_at > before.created_at
    assert (after.lineage, after.golden_vectors) == (before.lineage, before.golden_vectors)


def exported():
    """The toy bundle as an exporter makes it that states lineage and golden vectors."""
    bundle = make_bundle()
    lineage = Lineage(made_by="export", code_sha256="c" * 64, sources=("d" * 64,))
    manifest = msgspec.structs.replace(bundle.manifest, lineage=lineage, golden_vectors=GOLDEN)
    signed = envelope.sign(MANIFEST_KEY, "manifest", encode_manifest(manifest))
    return check_bundle(signed, bundle.manifest_key, bundle.model, bundle.vocabulary)


def test_what_the_exporter_measured_goes_out_with_its_own_version_alone(tmp_path):
    aggregator = Aggregator(tmp_path / "data")
    with aggregator.database.transaction() as records:
        found(records, aggregator.blobs, aggregator.keys, exported(), settings(), NOW)
    for track in ("training", "refresh"):
        assert aggregator.manifest(track).lineage.made_by == "export"
        assert aggregator.manifest(track).golden_vectors == GOLDEN
    steps(aggregator, phones(aggregator, 4), 1)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    assert aggregator.manifest("training").golden_vectors == aggregator.manifest("refresh").golden_vectors == ()
    aggregator.service.undo(POPULATION, aggregator.clock.now())
    assert aggregator.manifest("refresh").golden_vectors == GOLDEN


def test_the_history_shows_what_was_signed_and_a_held_release_without_it(tmp_path):
    aggregator = Aggregator(tmp_path / "data", gate=Gate(Scores())).found()
    fleet = phones(aggregator, 4)
    steps(aggregator, fleet, 2)
    aggregator.service.release(POPULATION, aggregator.clock.now())
    aggregator.service._gate = Gate(Scores(), tolerance_points=-5.0)
    steps(aggregator, fleet, 1)
    assert aggregator.service.release(POPULATION, aggregator.clock.now()).outcome == "held"
    with aggregator.database.reading() as records:
        shown = lineage_view.release_history(records, POPULATION, 0)
        assert lineage_view.release_history(records, "nobody", 0) == {"items": [], "total": 0}
        assert len(lineage_view.release_history(records, None, 1)["items"]) == 1
    held, released, imported = shown["items"]
    assert (held["outcome"], held["made_by"], held["parents"]) == ("held", None, [])
    assert released["version"] == 3 and [p["version"] for p in released["parents"]] == [2, 1]
    assert released["updates"] == 8 and released["evaluation"]["words"] == 812.0
    assert released["code_sha256"] == aggregator_code()
    assert imported["outcome"] == "released" and imported["made_by"] is None


def test_of_a_long_chain_the_nearest_parents_and_the_previous_refresh_are_named():
    versions = [version(n, n - 1) for n in range(40, 0, -1)]
    lineage = refresh_lineage(versions, Registered(3, hash_of(3), 2), 40, (), hash_of)
    assert numbers(lineage) == [39, 38, 37, 36, 35, 34, 33, 3]
    assert (lineage.updates, lineage.examples) == (37 * 4, 37 * 50)
    assert lineage.sources == tuple(hash_of(n) for n in range(40, 24, -1))
    check_lineage(lineage, 40)


def test_the_weights_of_an_undo_of_an_undo_are_those_of_its_training_version():
    versions = [
        version(6, 3), version(5, None, weights_of=4), version(4, None, weights_of=2), version(3, 2), version(2, 1),
        version(1, 0),
    ]  # fmt: skip
    lineage = refresh_lineage(versions, Registered(5, hash_of(5), None), 6, (), lambda _: "")
    assert numbers(lineage) == [5, 3] and lineage.updates == 8 and lineage.sources == ()
    check_lineage(lineage, 6)


def test_every_lineage_that_is_made_keeps_the_contracts_rules():
    check_lineage(step_lineage(Registered(1, hash_of(1), 0), 4, 10, hash_of(9)), 2)
    check_lineage(undo_lineage(Registered(8, hash_of(8), None), Registered(1, hash_of(1), 0)), 9)
    measure = (Measure(name="top3", value=27.0),)
    check_lineage(refresh_lineage([version(2, 1), version(1, 0)], Registered(1, hash_of(1), 0), 2, measure, hash_of), 2)


@pytest.mark.parametrize("before", [b"3", b"4"])
def test_a_database_of_an_earlier_schema_gets_the_columns_and_its_rows_say_nothing(tmp_path, before, database_url):
    aggregator = Aggregator(tmp_path / "data", database_url=database_url).found()
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    with aggregator.database.transaction() as records:
        for table, name in schema.ADDED_COLUMNS:
            records._connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {name}"))
        for table in (schema.trust_metadata, schema.trust_targets):
            table.drop(records._connection)
        records.set_meta("schema", before)
    aggregator.database.close()
    opened = SqlDatabase(database_url) if database_url else SqlDatabase.in_folder(aggregator.folder)
    with opened.reading() as records:
        assert records.meta("schema") == schema.SCHEMA == b"5"
        assert [(v.version, v.updates, v.examples) for v in records.versions(POPULATION)] == [(2, 4, 0), (1, 0, 0)]
        assert [r.signed_manifest for r in records.releases(POPULATION)] == [b""]
        assert lineage_view.release_history(records, None, 0)["items"][0]["parents"] == []
    opened.close()
    aggregator.restart()
    assert aggregator.service.release(POPULATION, NOW + 9).outcome == "released"
    assert aggregator.manifest("refresh").lineage.updates == 4
