"""The basis that a population's plan names: a file among the blobs, its hash in one row of `meta`.

The rules:
- it is made at the import, if the settings say `principal_axes`, of the bundle's weights (`bases`), and never again:
  the sums of updates in two bases cannot be added, and a device's residual is in its axes;
- it is never deleted: the next step needs it, and so does a replay;
- no update says which basis it is in: the lease's plan does, and there is one for ever.
"""

from cloud_aggregator import bases
from cloud_aggregator.bundle import Bundle
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.errors import NotFound, StorageFailed
from cloud_aggregator.ports import Blobs
from cloud_aggregator.records import Records
from wire_contract.basis import Basis, decode_basis
from wire_contract.errors import Malformed
from wire_contract.layout import Layout


def name_basis(records: Records, blobs: Blobs, bundle: Bundle, settings: PopulationSettings) -> None:
    """Make and name the basis of a new population, if its settings want one.

    Raises `Refused` for a model without an embedding, or one that is wider than a basis may be.
    """
    if not settings.principal_axes:
        return
    layout = Layout.of(bundle.manifest)
    words = bundle.manifest.vocabulary_words
    data = bases.principal_axes(layout.unflatten(bundle.weights), layout, words=words)
    records.set_meta(_key(bundle.manifest.population), blobs.put(data).encode())


def name_of(records: Records, population: str) -> str:
    """Return the SHA-256 of a population's basis; empty for none."""
    return (records.meta(_key(population)) or b"").decode()


def read_basis(records: Records, blobs: Blobs, population: str) -> Basis | None:
    """Return a population's basis, decoded, or None. Raises `StorageFailed` if its file is gone or damaged.

    Rather now than at the next step, which would be another one without it.
    """
    name = name_of(records, population)
    if not name:
        return None
    try:
        return decode_basis(blobs.get(name))
    except (NotFound, Malformed) as e:
        raise StorageFailed(f"the basis {name} of population {population} cannot be read: {e}") from e


def _key(population: str) -> str:
    return f"basis of {population}"
