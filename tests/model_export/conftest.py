"""One tiny template and one small bundle, converted once a session; weights large enough that nothing is near zero."""

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TINY = "tiny"
WORDS = 600


def lively_tensors(size, seed):
    """Weights as after some training: logits spread over several nats, every gate in use, biases not zero."""
    from model_export.network import initial_tensors

    rng = np.random.Generator(np.random.PCG64(seed))
    tensors = initial_tensors(size, rng)
    tensors["embedding"] *= 8
    tensors["kernel"] *= 1.5
    tensors["kernel_bias"] += rng.normal(0, 0.4, tensors["kernel_bias"].shape).astype(np.float32)
    tensors["output_bias"] += rng.normal(0, 1, tensors["output_bias"].shape).astype(np.float32)
    return tensors


@pytest.fixture(scope="session")
def size():
    from model_export.network import PRESETS

    return PRESETS[TINY]


@pytest.fixture(scope="session")
def tensors(size):
    return lively_tensors(size, seed=3)


@pytest.fixture(scope="session")
def layout(size):
    from model_export.network import layout_without_file

    return layout_without_file(size)


@pytest.fixture(scope="session")
def converted(size):
    """What the converter writes, before slimming: the bytes that the template is made of."""
    from model_export.convert import converted
    from model_export.quiet import quiet

    with quiet():
        return converted(size, candidates=WORDS)


@pytest.fixture(scope="session")
def template(size, converted):
    """The candidate set is the whole vocabulary here, so that `train_sampled` can be held against `train`."""
    from model_export.convert import as_template

    return as_template(converted, size)


VARIANT = (3, 8)
VARIANT_CANDIDATES = 64


@pytest.fixture(scope="session")
def half_template(size):
    """Train signatures of 3 rows of 8 words beside the usual ones, and float16 weights in the suggestions."""
    from model_export.convert import convert

    families = ("train", "train_sampled", "train_private", "suggest", "suggest_context")
    return convert(size, VARIANT_CANDIDATES, [VARIANT], "float16", families)


@pytest.fixture(scope="session")
def interpreter(template):
    from model_export.interpreter import Interpreter

    return Interpreter(template.data)


@pytest.fixture(scope="session")
def vocabulary():
    from wire_contract.vocabulary import Vocabulary

    letters = "abcdefghijklmnopqrstuvwxyz"
    return Vocabulary.from_words([f"{a}{b}" for a in letters for b in letters][: WORDS - 4])


@pytest.fixture(scope="session")
def signing_key():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="session")
def bundle_parts(template, tensors, vocabulary):
    """(model bytes, manifest) of version 1 with the lively weights."""
    from model_export.bundle import make_manifest

    return make_manifest(
        template,
        tensors,
        vocabulary,
        population="test",
        candidates=WORDS,
        logit_tolerance=0.3,
        now=1_800_000_000,
        valid_s=86_400,
    )


@pytest.fixture
def bundle_folder(tmp_path, bundle_parts, vocabulary, signing_key):
    from model_export.bundle import write_bundle

    model, manifest = bundle_parts
    write_bundle(tmp_path / "bundle", model, vocabulary, manifest, signing_key)
    return tmp_path / "bundle"


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory, signing_key):
    """The shipped starter as a bundle, made by the command that a person runs."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from cli_contract.main import run_command
    from model_export.cli import build_parser

    folder = tmp_path_factory.mktemp("small")
    key = folder / "key.pem"
    key.write_bytes(signing_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    command = ["export", "--population", "test", "--signing-key", str(key), "--output", str(folder / "bundle")]
    assert run_command(build_parser, [*command, "--created-at", "1800000000"]) == 0
    return folder / "bundle"


@pytest.fixture(scope="session")
def device_pythons():
    """(Python, runtime) pairs that stand for devices: this environment's LiteRT, and .venv-device where it is made."""
    import sys

    from model_export.conformance import runtimes_of

    pythons = [Path(sys.executable)]
    device = Path(__file__).parents[2] / ".venv-device" / "bin" / "python"
    if device.exists():
        pythons.append(device)
    return [(python, runtime) for python in pythons for runtime in runtimes_of(python)]
