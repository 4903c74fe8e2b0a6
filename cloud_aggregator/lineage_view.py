"""What an operator sees of the versions' lineages and of the signed repository: JSON objects made of records."""

from cloud_aggregator import trust
from cloud_aggregator.operator_view import View, iso
from cloud_aggregator.records import Records, ReleaseRecord
from wire_contract import envelope
from wire_contract import trust_roles as roles
from wire_contract.lineage import Lineage
from wire_contract.manifest import decode_manifest


def release_history(records: Records, population: str | None, limit: int) -> View:
    """Return every decision about refreshes, newest first, with the lineage that was signed with it; `limit` 0: all."""
    releases = records.releases(population)
    return {"items": [_history_item(release) for release in releases[: limit or None]], "total": len(releases)}


def _history_item(release: ReleaseRecord) -> View:
    lineage = _lineage(release)
    view: View = {
        "version": release.version,
        "population": release.population,
        "outcome": release.outcome,
        "at": iso(release.at),
        "sha256": release.sha256,
        "reason": release.reason,
        "made_by": None,
        "parents": [],
        "updates": None,
        "examples": None,
        "evaluation": {},
        "code_sha256": None,
        "sources": [],
    }
    if lineage is None:
        return view
    return view | {
        "made_by": lineage.made_by,
        "parents": [{"version": parent.version, "sha256": parent.sha256} for parent in lineage.parents],
        "updates": lineage.updates,
        "examples": lineage.examples,
        "evaluation": {measure.name: measure.value for measure in lineage.evaluation},
        "code_sha256": lineage.code_sha256 or None,
        "sources": list(lineage.sources),
    }


def _lineage(release: ReleaseRecord) -> Lineage | None:
    """Return what the manifest that went out states; a held one, or one older than lineages, has none."""
    if not release.signed_manifest:
        return None
    return decode_manifest(envelope.read_envelope(release.signed_manifest).body).lineage


def trust_view(records: Records, now: int) -> View:
    """Return what the repository holds, and which populations it protects."""
    shelf = trust.shelf_of(records)
    populations = []
    for population in records.populations():
        announced = records.announcement(population.population, "refresh")
        populations.append(
            {
                "population": population.population,
                "protected": trust.is_protected(records, population),
                "template": population.template_sha256,
                "refresh": None if announced is None else announced.version,
            }
        )
    if shelf is None:
        return {"repository": False, "items": [], "templates": [], "populations": populations, "troubles": []}
    from cloud_aggregator.repository import role_view
    from cloud_aggregator.tuf_metadata import targets_of

    views = [role_view(shelf, role) for role in (*roles.OFFLINE_ROLES, *roles.ONLINE_ROLES)]
    return {
        "repository": True,
        "items": [
            {
                "role": view.role,
                "version": view.version,
                "expires": iso(view.expires),
                "expired": view.expires <= now,
                "threshold": view.threshold,
                "keys": list(view.keys),
            }
            for view in views
        ],
        "templates": sorted(targets_of(shelf.targets, roles.TARGETS)),
        "populations": populations,
        "troubles": trust.expiring(records, now),
    }
