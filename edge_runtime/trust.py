"""Which manifest a device accepts. Pure: keys, what was accepted before, known templates and the time are arguments.

The rules (design 16; docs/adr/0007):
- a manifest is signed by the exporter's offline key, which may bring a new template, or by the aggregator's online
  key, which may only patch: everything but the weights must equal what the exporter signed for that template;
- the population is the device's own; only a `refresh` reaches the refresh track;
- on a track the version only rises; the exact manifest that was accepted last may come again;
- it has not expired, and was not made more than a day in the future;
- this release knows its family, can do what it needs, and is not older than it asks for (`capabilities`);
- where a repository's root is pinned, `repository_trust` has its say beside these rules, for refreshes.
A refusal is an exception with a name, so that the device can say which rule stopped it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edge_runtime import capabilities
from wire_contract import envelope
from wire_contract.errors import ContractError, Unsupported, Untrusted
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.topics import Track

CLOCK_SLACK_S = 86_400
KIND = "manifest"


class ManifestRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A rule of this module forbids the manifest; `reason` is its stable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TemplateUnknown(Exception):  # noqa: N818 - not a failure yet: fetch the template's manifest and ask again
    """The aggregator patches a template whose exporter-signed manifest is not at hand."""

    def __init__(self, template_sha256: str) -> None:
        super().__init__(f"the exporter's manifest of template {template_sha256[:16]} is not at hand")
        self.template_sha256 = template_sha256


@dataclass(frozen=True, slots=True)
class Keys:
    """The two public keys (32 raw bytes each) that the device pinned at enrolment."""

    manifest_key: bytes
    aggregator_key: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The highest version ever accepted on a track, and its file's hash; version 0 before the first."""

    version: int = 0
    sha256: str = ""


def accept(
    signed: bytes,
    *,
    keys: Keys,
    population: str,
    track: Track,
    before: Accepted,
    templates: Mapping[str, Manifest],
    now: float,
) -> Manifest:
    """Return the manifest inside `signed` if every rule holds.

    `templates` maps template hashes to manifests that `accept_template` returned. Raises `ManifestRefused`, or
    `TemplateUnknown` where the template's own manifest must be fetched first.
    """
    manifest = _open(signed, keys, templates)
    if manifest.population != population:
        raise ManifestRefused("wrong_population", f"this device is of {population!r}, got {manifest.population!r}")
    if track == "refresh" and manifest.kind != "refresh":
        raise ManifestRefused("not_a_refresh", f"the refresh track takes refreshes, got a {manifest.kind} version")
    if manifest.version < before.version:
        raise ManifestRefused("lower_version", f"version {before.version} was accepted, got {manifest.version}")
    if manifest.version == before.version and manifest.sha256 != before.sha256:
        raise ManifestRefused("other_bytes", f"version {before.version} was accepted with other bytes")
    if now >= manifest.expires_at:
        raise ManifestRefused("expired", f"version {manifest.version} expired at {manifest.expires_at}")
    if manifest.created_at > now + CLOCK_SLACK_S:
        raise ManifestRefused("from_the_future", f"version {manifest.version} is made at {manifest.created_at}")
    _check_capabilities(manifest)
    return manifest


def _check_capabilities(manifest: Manifest) -> None:
    lacking = capabilities.lacking(manifest.needs)
    if lacking:
        raise ManifestRefused("lacks_capability", f"version {manifest.version} needs {lacking[0]}, which is not here")
    if capabilities.too_old(manifest.minimum_runtime):
        raise ManifestRefused(
            "runtime_too_old",
            f"version {manifest.version} needs release {manifest.minimum_runtime}, this is {capabilities.RELEASE}",
        )


def accept_template(signed: bytes, *, keys: Keys, template_sha256: str) -> Manifest:
    """Return the exporter-signed manifest of a template. Raises `ManifestRefused`."""
    try:
        manifest = decode_manifest(envelope.verify(signed, KIND, keys.manifest_key))
    except Untrusted as e:
        raise ManifestRefused("bad_signature", f"a template's manifest is signed by the exporter: {e}") from e
    except Unsupported as e:
        raise ManifestRefused("unsupported", str(e)) from e
    except ContractError as e:
        raise ManifestRefused("malformed", str(e)) from e
    if manifest.template_sha256 != template_sha256:
        raise ManifestRefused("outside_template", f"template {template_sha256[:16]} was asked for, got another")
    return manifest


def _open(signed: bytes, keys: Keys, templates: Mapping[str, Manifest]) -> Manifest:
    try:
        named = envelope.read_envelope(signed).key_id
        if named == envelope.key_id(keys.manifest_key):
            return decode_manifest(envelope.verify(signed, KIND, keys.manifest_key))
        manifest = decode_manifest(envelope.verify(signed, KIND, keys.aggregator_key))
    except Untrusted as e:
        raise ManifestRefused("bad_signature", str(e)) from e
    except Unsupported as e:
        raise ManifestRefused("unsupported", str(e)) from e
    except ContractError as e:
        raise ManifestRefused("malformed", str(e)) from e
    template = templates.get(manifest.template_sha256)
    if template is None:
        raise TemplateUnknown(manifest.template_sha256)
    check_patch(manifest, template)
    return manifest


def check_patch(manifest: Manifest, template: Manifest) -> None:
    """Raise `ManifestRefused` unless a version differs from its template's manifest in weights and their story alone.

    Version, kind, dates, addresses, golden vectors and lineage are the version's own.
    """
    for name in (
        "population",
        "size_bytes",
        "template_sha256",
        "layout_fingerprint",
        "tensors",
        "train_inputs",
        "signatures",
        "vocabulary_sha256",
        "vocabulary_words",
        "golden",
        "family",
        "examples",
        "loss",
        "needs",
        "minimum_runtime",
    ):
        if getattr(manifest, name) != getattr(template, name):
            raise ManifestRefused(
                "outside_template", f"the aggregator's key only patches weights, but {name} differs from the template's"
            )
