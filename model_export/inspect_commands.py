"""The commands that look at a bundle: `show` and `verify`; `verify` also takes a lone file, or an offline bundle."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from model_export import conformance, reference
from model_export.bundle import MODEL_FILE, Bundle, read_bundle
from model_export.commands import progress_bar
from model_export.conformance import Finding, Trial
from model_export.failures import command_errors
from model_export.file_structure import check_structure
from model_export.flatbuffer import UnexpectedFile, operators
from model_export.golden_vectors import SIGNATURE as CONTEXT_SIGNATURE
from model_export.golden_vectors import golden_trials
from model_export.network import size_of, train_inputs
from model_export.quiet import quiet
from model_export.version_files import check_hashes, is_offline_bundle, key_beside, read_limited, read_version
from wire_contract import envelope
from wire_contract.errors import Untrusted
from wire_contract.layout import Layout
from wire_contract.manifest import ARRAY_FAMILY, Manifest
from wire_contract.offline_bundle import MAX_BUNDLE_BYTES
from wire_contract.patch import read_tensors
from wire_contract.trust_roles import MAX_ROOT_BYTES
from wire_contract.vocabulary import Vocabulary

DEVICE_MODULE = "edge_runtime.cli"
SHOWN_WORST = 12


def _manifest_key(arguments: argparse.Namespace) -> bytes | None:
    if not arguments.manifest_key:
        return None
    try:
        key = bytes.fromhex(arguments.manifest_key)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise CommandError(
            f"--manifest-key is 64 hex digits, got {arguments.manifest_key!r}",
            exit_code=ExitCode.USAGE,
            code="USAGE",
        )
    return key


def _trusted_bundle(arguments: argparse.Namespace) -> Bundle:
    key = _manifest_key(arguments)
    with command_errors():
        return read_bundle(Path(arguments.bundle), key)


def _verified_files(arguments: argparse.Namespace) -> Bundle:
    """Return the version that a folder, a lone file or an offline bundle holds, its signatures checked."""
    path, key = Path(arguments.bundle), _manifest_key(arguments)
    with command_errors():
        if path.is_dir():
            return read_bundle(path, key)
        if is_offline_bundle(path):
            return _offline(path, arguments.root)
        bundle = read_version(path, Path(arguments.manifest) if arguments.manifest else None)
        key = key or key_beside(path)
        if key is None:
            raise CommandError(
                "a lone file's manifest is verified with its signer's key, got none",
                exit_code=ExitCode.USAGE,
                code="USAGE",
                hint="give --manifest-key",
            )
        envelope.verify(bundle.signed_manifest, "manifest", key)
        return Bundle(bundle.model, bundle.vocabulary, bundle.manifest, bundle.signed_manifest, key)


def _offline(path: Path, root: str | None) -> Bundle:
    from model_export.offline import check_offline_bundle

    if not root:
        raise CommandError(
            "an offline bundle is verified from the root that devices pinned, got none",
            exit_code=ExitCode.USAGE,
            code="USAGE",
            hint="give --root 1.root.json",
        )
    data = read_limited(path, MAX_BUNDLE_BYTES)
    held, manifest = check_offline_bundle(data, read_limited(Path(root), MAX_ROOT_BYTES), int(time.time()))
    check_hashes(held.model, manifest)
    vocabulary = Vocabulary.from_bytes(held.vocabulary) if held.vocabulary else None
    if vocabulary is not None and len(vocabulary) != manifest.vocabulary_words:
        raise Untrusted(f"the vocabulary has {manifest.vocabulary_words} words, got {len(vocabulary)}")
    return Bundle(held.model, vocabulary, manifest, held.signed_manifest, b"")


def show(arguments: argparse.Namespace) -> Result:
    """Say what a bundle holds, after checking it."""
    bundle = _trusted_bundle(arguments)
    manifest, counts = bundle.manifest, operators(bundle.model)
    tensors = [
        {"name": t.name, "shape": list(t.shape), "kind": t.kind, "offsets": list(t.offsets),
         "scale_offsets": list(t.scale_offsets)}
        for t in manifest.tensors
    ]  # fmt: skip
    signatures = {
        name: {"batch": spec.batch, "length": spec.length, "candidates": spec.candidates,
               "operators": sum(counts.get(name, {}).values()),
               "fully_connected": counts.get(name, {}).get("FULLY_CONNECTED", 0)}
        for name, spec in manifest.signatures.items()
    }  # fmt: skip
    head = {
        "population": manifest.population,
        "version": manifest.version,
        "kind": manifest.kind,
        "family": manifest.family,
        "parameters": manifest.parameters,
        "size_bytes": manifest.size_bytes,
        "vocabulary_words": manifest.vocabulary_words,
        "sha256": manifest.sha256,
        "template_sha256": manifest.template_sha256,
        "layout_fingerprint": manifest.layout_fingerprint,
        "public_key": bundle.public_key.hex(),
        "created_at": manifest.created_at,
        "expires_at": manifest.expires_at,
        "logit_tolerance": manifest.golden.logit_tolerance,
        "golden_vectors": len(manifest.golden_vectors),
        "needs": ", ".join(manifest.needs),
        "minimum_runtime": manifest.minimum_runtime,
        "code_sha256": manifest.lineage.code_sha256 if manifest.lineage else "",
    }
    lines = [f"{name.replace('_', ' '):<20}{value}" for name, value in head.items()]
    tensor_rows = [
        (t.name, "x".join(map(str, t.shape)), t.kind, t.size_bytes, len(t.offsets)) for t in manifest.tensors
    ]
    signature_rows = [(name, *values.values()) for name, values in signatures.items()]
    text = "\n".join(
        [
            *lines,
            "",
            table(tensor_rows, ("tensor", "shape", "kind", "bytes", "places")),
            "",
            table(signature_rows, ("signature", "batch", "length", "candidates", "operators", "fully connected")),
        ]
    )
    return Result({**head, "tensors": tensors, "signatures": signatures}, text=text)


def verify(arguments: argparse.Namespace) -> Result:
    """Check a version's rules, and its arithmetic on every interpreter of the named device environments."""
    bundle = _verified_files(arguments)
    try:
        check_structure(bundle.model, bundle.manifest)
    except UnexpectedFile as e:
        raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="RULES") from e
    trials = _trials(bundle, arguments.seed)
    findings: list[tuple[str, Finding]] = []
    tape = not arguments.no_tape and bundle.manifest.family != ARRAY_FAMILY
    with progress_bar(len(arguments.device_python) + tape, "verifying") as bar:
        if tape:
            findings += [("tape", finding) for finding in _tape_findings(bundle, arguments.seed)]
            bar.update(1)
        for python in arguments.device_python:
            findings += _device_findings(bundle, Path(python), trials)
            bar.update(1)
    return _verdict(bundle, findings, arguments.device_python)


def _trials(bundle: Bundle, seed: int) -> list[Trial]:
    if bundle.manifest.family == ARRAY_FAMILY:
        from model_export.array_trials import array_trials

        return array_trials(bundle)
    _check_network(bundle.manifest)
    return [*conformance.make_trials(bundle, seed), *golden_trials(bundle.manifest)]


def _check_network(manifest: Manifest) -> None:
    """Refuse a manifest of the family next-word that is not of this exporter's network: nothing here could judge it."""
    shapes = {tensor.name: tensor.shape for tensor in manifest.tensors}
    try:
        size = size_of({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    except (KeyError, IndexError, ValueError) as e:
        raise _refused(f"a model of the family next-word has the tensors of its network, got {shapes}: {e}") from e
    if shapes != size.tensor_shapes:
        raise _refused(
            f"a model of the family next-word has the tensors {list(size.tensor_shapes)}, got {list(shapes)}"
        )
    if manifest.train_inputs != train_inputs(size):
        raise _refused(f"the train inputs are the network's, got {[spec.name for spec in manifest.train_inputs]}")
    asked = manifest.signatures.get(CONTEXT_SIGNATURE)
    length = asked.length if asked else 0
    if any(not 1 <= len(vector.context) <= length for vector in manifest.golden_vectors):
        raise _refused(f"a golden vector's context has 1 to {length} tokens")


def _refused(message: str) -> CommandError:
    return CommandError(message, exit_code=ExitCode.REFUSED, code="RULES")


def _device_findings(bundle: Bundle, python: Path, trials: Sequence[Trial]) -> list[tuple[str, Finding]]:
    findings = []
    try:
        runtimes = conformance.runtimes_of(python)
        if not runtimes:
            known = ", ".join(conformance.RUNTIMES.values())
            raise CommandError(f"{python} has none of {known}", exit_code=ExitCode.REFUSED, code="NO_INTERPRETER")
        with tempfile.TemporaryDirectory(prefix="verify-") as folder:
            model = Path(folder) / MODEL_FILE
            # The bytes that were checked, not whatever the bundle's file may have become since.
            model.write_bytes(bundle.model)
            for runtime in runtimes:
                command = [str(python), "-m", DEVICE_MODULE]
                outputs = conformance.run_on_device(command, model, [trial.case for trial in trials], runtime)
                findings += [(runtime, finding) for finding in conformance.judge_all(trials, outputs)]
    except conformance.ConformanceError as e:
        raise CommandError(str(e), exit_code=ExitCode.UNREACHABLE, code="DEVICE") from e
    return findings


def _tape_findings(bundle: Bundle, seed: int) -> list[Finding]:
    """Compare the two judges with each other: TensorFlow's tape and the float64 formulas."""
    tensors = read_tensors(bundle.model, bundle.manifest)
    rng = np.random.Generator(np.random.PCG64(seed))
    trial = conformance.train_trial(tensors, Layout.of(bundle.manifest), size_of(tensors), rng)
    given = trial.case.inputs
    batch = (
        np.asarray(given["tokens"], np.int32),
        np.asarray(given["targets"], np.int32),
        np.asarray(given["weights"], np.float32),
        np.asarray(given["output_mask"], np.float32),
    )
    exact = reference.gradient(tensors, *batch)
    with quiet():
        from model_export.tape import tape_gradient

        taped = tape_gradient(tensors, *batch)
    return [
        Finding(
            f"gradient {name} against float64",
            float(np.max(np.abs(taped.tensors[name] - exact.tensors[name])) / np.max(np.abs(exact.tensors[name]))),
            conformance.GRADIENT_TOLERANCE,
        )
        for name in tensors
    ]


def _verdict(bundle: Bundle, findings: Sequence[tuple[str, Finding]], pythons: Sequence[str]) -> Result:
    failed = [(judge, finding) for judge, finding in findings if not finding.holds]
    runtimes = sorted({judge for judge, _ in findings if judge != "tape"})
    gradients = [finding.error for _, finding in findings if "gradient" in finding.name]
    data: dict[str, object] = {
        "sha256": bundle.manifest.sha256,
        "runtimes": runtimes,
        "checks": len(findings),
        "failed": len(failed),
        "worst_gradient_error": max(gradients, default=None),
        "findings": [
            {"judge": judge, "name": finding.name, "error": finding.error, "allowed": finding.allowed}
            for judge, finding in findings
        ],
    }
    worst = sorted(findings, key=lambda item: item[1].error / max(item[1].allowed, 1e-30), reverse=True)[:SHOWN_WORST]
    rows = [
        (judge, finding.name, f"{finding.error:.2e}", f"{finding.allowed:.0e}", "ok" if finding.holds else "FAILED")
        for judge, finding in failed or worst
    ]
    asked = ", ".join(runtimes) or "no interpreter (give --device-python)"
    title = f"signature, hashes, layout and ops hold; {len(findings)} checks on {asked}: {len(failed)} failed"
    text = "\n".join([title, "", table(rows, ("judge", "check", "error", "allowed", ""))]) if rows else title
    return Result(data, text=text, exit_code=ExitCode.FAILED if failed else ExitCode.OK)
