"""The roles of the signed repository (The Update Framework 1.0): who may say what about which file.

    root       2 of 3 offline keys   names every other role's keys; each new root is signed by the old and the new keys
    targets    2 of 3 offline keys   the templates; delegates to the two roles below
    refreshes  an online key         what each population's keyboards get: patches of an offline-signed template only
    offline    2 of 3 offline keys   bundles for devices that come online rarely or never
    snapshot, timestamp   online     which metadata are current, so that nothing is mixed, matched or frozen

A target is a small file: the signed manifest (`envelope.sign`) that names the model by its hash. Nothing here imports
a TUF library: the device loads that only when a release is there.
"""

from typing import Final

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
REFRESHES: Final = "refreshes"
OFFLINE: Final = "offline"
OFFLINE_ROLES: Final = (ROOT, TARGETS, OFFLINE)
ONLINE_ROLES: Final = (SNAPSHOT, TIMESTAMP, REFRESHES)

# A pattern matches within one segment of the path: no role can name a file of another.
REFRESH_PATHS: Final = "refreshes/*/current.bin"
OFFLINE_PATHS: Final = "offline/*/current.bin"

MAX_ROOT_BYTES: Final = 65_536
MAX_METADATA_BYTES: Final = 262_144
METADATA_PATH: Final = "/v1/trust/metadata"
TARGETS_PATH: Final = "/v1/trust/targets"


def template_target(population: str, template_sha256: str) -> str:
    """Return the path of a template's exporter-signed manifest; signed by the role `targets` itself.

    Two populations may have one graph, and so one template, with vocabularies and manifests of their own.
    """
    return f"templates/{population}/{template_sha256}.bin"


def template_path(population: str, template_sha256: str) -> str:
    """Return where the aggregator's HTTP side gives the exporter-signed manifest of a population's template."""
    return f"/v1/populations/{population}/templates/{template_sha256}"


def refresh_target(population: str) -> str:
    """Return the path of what a population's keyboards get now."""
    return f"refreshes/{population}/current.bin"


def offline_target(population: str) -> str:
    """Return the path of what an offline bundle for a population brings."""
    return f"offline/{population}/current.bin"
