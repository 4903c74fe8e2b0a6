"""Ten thousand broken models, in each environment: refused, or run without taking the process with them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "edge_runtime" / "fixtures"
DEVICE = ROOT / ".venv-device" / "bin" / "python"
FLIPS = 10_000


@pytest.mark.parametrize("python", [sys.executable, str(DEVICE)], ids=["litert", "tflite-runtime"])
def test_no_flipped_bit_that_is_found_sound_kills_an_interpreter(python):
    if not Path(python).exists():
        pytest.fail(f"{python} is not there: make environments")
    words = [python, "-m", "tests.edge_runtime.flipped_models", str(FIXTURES / "mixed.tflite"), "77", str(FLIPS), "all"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    assert done.returncode == 0, f"died at {done.stdout[-100:]}: {done.stderr[-500:]}"
    told = {name: int(count) for name, count in (each.split("=") for each in done.stdout.splitlines()[-1].split())}
    assert sum(told.values()) == FLIPS and told["bad_flatbuffer"] > FLIPS // 3 and told["runs"] > FLIPS // 10


def test_flips_in_the_keyboards_graphs_kill_no_interpreter():
    words = [sys.executable, "-m", "tests.edge_runtime.flipped_models", str(FIXTURES / "tiny" / "model.tflite"), "9"]
    done = subprocess.run(
        [*words, "150", "structure"], capture_output=True, text=True, timeout=600, cwd=ROOT, check=False
    )
    assert done.returncode == 0, f"died at {done.stdout[-100:]}: {done.stderr[-500:]}"
