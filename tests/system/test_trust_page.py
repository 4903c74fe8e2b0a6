"""The commands of docs/trust.md, in their order, as processes: a page that no longer works fails here."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloud_aggregator.fleet import make_bundle

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def page_commands():
    """Every command line of the page, once, in its order."""
    text = (ROOT / "docs" / "trust.md").read_text()
    return [line.strip() for line in re.findall(r"^    ((?:cloud-aggregator|model-export) .*)$", text, re.MULTILINE)]


def run(line, folder):
    words = line.split()
    done = subprocess.run([BIN / words[0], *words[1:]], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    bundle = make_bundle("keyboard")
    (tmp_path / "bundle").mkdir()
    for name, data in (
        ("model.tflite", bundle.model), ("vocabulary.txt", bundle.vocabulary), ("manifest.bin", bundle.signed_manifest),
        ("manifest_key.pub", bundle.manifest_key.hex().encode()),
    ):  # fmt: skip
        (tmp_path / "bundle" / name).write_bytes(data)
    return tmp_path


def test_the_page_works_from_the_first_command_to_the_last(folder):
    lines = page_commands()
    assert len(lines) >= 16
    for line in lines:
        if line.startswith("model-export keys sign"):
            # A holder signs with the folder that they took away.
            shutil.copytree(folder / "ceremony" / "holder-2", folder / "holder-2", dirs_exist_ok=True)
        if line.startswith("cloud-aggregator release export"):
            # "Then, after each of these".
            run("cloud-aggregator trust import ceremony", folder)
        run(line, folder)
    shown = json.loads(run("cloud-aggregator trust show --json", folder))
    versions = {item["role"]: item["version"] for item in shown["items"]}
    # Renewed once, then the keys of root and of targets replaced.
    assert versions["root"] == 4 and shown["populations"][0]["protected"]
    history = json.loads(run("cloud-aggregator release history --json", folder))
    assert history["items"][0]["outcome"] == "released"


def test_a_copy_of_the_ceremony_below_the_threshold_is_refused_and_nothing_changes(folder):
    for line in page_commands()[:6]:
        run(line, folder)
    for holder in (1, 3):
        shutil.move(folder / "ceremony" / f"holder-{holder}", folder / f"away-{holder}")
    run("model-export keys renew ceremony --role root", folder)
    held = run("cloud-aggregator trust show --json", folder)
    words = ["cloud-aggregator", "trust", "import", "ceremony"]
    done = subprocess.run([BIN / words[0], *words[1:]], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4 and "metadata_unsigned: root 2 has 1 of 2" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run("cloud-aggregator trust show --json", folder) == held


def test_no_private_key_is_read_from_what_travels(folder):
    for line in page_commands()[:4]:
        run(line, folder)
    # The service gets metadata and targets alone.
    for holder in (1, 2, 3):
        shutil.rmtree(folder / "ceremony" / f"holder-{holder}")
    run("cloud-aggregator trust import ceremony", folder)
    secrets = {path.name for path in (folder / "aggregator-data" / "trust").iterdir()}
    assert secrets == {"snapshot-1.key", "timestamp-1.key", "refreshes-1.key"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (folder / "aggregator-data" / "trust").iterdir())
