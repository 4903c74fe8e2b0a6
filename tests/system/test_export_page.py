"""docs/export-your-model.md, typed as it stands: every file written, every command run, every output compared."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/export-your-model.md"
BIN = Path(sys.executable).parent
PORT = "8080"
SECONDS = 180
# What differs from run to run and machine to machine: ids, moments; numbers may be a quarter off.
ANYTHING = (
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "ID"),
    (re.compile(r"\b(?=\w*\d)(?=\w*[a-f])[0-9a-f]{8}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?Z?"), "MOMENT"),
)
TOLERANCE = 0.25


@dataclass(frozen=True)
class File:
    """A block that is to be written to `name`."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A line that a person types, and what they are shown; in the `background` it stays until the page ends."""

    line: str
    shown: tuple[str, ...]
    exit_code: int = 0
    background: bool = False


def blocks(text):
    """Return the page's files and commands, in order."""
    found = []
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "console":
            found += commands(body)
        else:
            name = re.fullmatch(r"# (\S+\.\w+)", body.split("\n", 1)[0])
            assert name, f"a block of {language} names its file in its first line"
            found.append(File(name[1], body))
    return found


def commands(body):
    """Return the commands of one block with what is shown after each."""
    made = []
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        line, *shown = part.rstrip("\n").split("\n")
        code = re.search(r"# exit code (\d+)$", line)
        made.append(Command(line.removesuffix(" &"), tuple(shown), int(code[1]) if code else 0, line.endswith(" &")))
    return made


def words(line):
    for pattern, name in ANYTHING:
        line = pattern.sub(name, line)
    return line.split()


def alike(expected, got):
    """Whether a printed line is the page's: word for word, numbers within the tolerance; `...` ends it anyhow."""
    if expected.endswith("..."):
        wanted = words(expected.removesuffix("..."))
        return all(word_alike(a, b) for a, b in zip(wanted, words(got), strict=False)) and len(words(got)) >= len(
            wanted
        )
    return all(word_alike(a, b) for a, b in zip_longest(words(expected), words(got)))


def word_alike(expected, got):
    if expected == got:
        return True
    try:
        return abs(float(got) - float(expected)) <= TOLERANCE * abs(float(expected))
    except (TypeError, ValueError):
        return False


def missing(shown, printed):
    """Return the first line of the page that is not printed where it should be, or None."""
    place, skips = 0, False
    for expected in shown:
        if expected == "...":
            skips = True
            continue
        while skips and place < len(printed) and not alike(expected, printed[place]):
            place += 1
        if place >= len(printed) or not alike(expected, printed[place]):
            return expected
        place, skips = place + 1, False
    return None if skips or place == len(printed) else f"(nothing after line {place}: {printed[place]!r})"


class Typist:
    """Types into one folder; `close` ends what was left running."""

    def __init__(self, folder):
        self.folder = folder
        self.running = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.environment = {
            **os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3", "NO_COLOR": "1",
        }  # fmt: skip

    def write(self, file):
        path = self.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)

    def type(self, command):
        line = command.line.replace(PORT, self.port)
        if command.background:
            printed = self._leave_running(line)
        else:
            done = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True,
                timeout=SECONDS,
            )  # fmt: skip
            assert done.returncode == command.exit_code, f"{line}\n{done.stdout}\n{done.stderr}"
            printed = [text.rstrip().replace(self.port, PORT) for text in done.stdout.rstrip("\n").split("\n")]
        printed = [] if printed == [""] else printed
        lacking = missing(command.shown, printed)
        assert lacking is None, f"{line}\nthe page says  {lacking}\nit printed\n" + "\n".join(printed)

    def _leave_running(self, line):
        log = self.folder / "background.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.environment, stdout=stream, stderr=stream
            )
        self.running.append(process)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end and "\n" not in log.read_text():
            time.sleep(0.05)
        return [log.read_text().split("\n")[0].replace(self.port, PORT)]

    def close(self):
        for process in self.running:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


@pytest.fixture
def typist(tmp_path):
    made = Typist(tmp_path)
    yield made
    made.close()


def test_the_page_can_be_typed_from_its_first_line_to_its_last(typist):
    steps = blocks(PAGE.read_text())
    assert sum(isinstance(step, Command) for step in steps) >= 20
    for step in steps:
        if isinstance(step, File):
            typist.write(step)
        else:
            typist.type(step)


def test_the_pages_table_is_the_exporters_own():
    code = (
        "import json\n"
        "from model_export.keras_graph.activations import ACTIVATIONS\n"
        "from model_export.keras_graph.table import rules\n"
        "print(json.dumps([{k: r.how for k, r in rules().items()}, list(ACTIVATIONS)]))"
    )
    quiet = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rules, activations = json.loads(done.stdout.splitlines()[-1])
    text = PAGE.read_text()
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", text, re.MULTILINE)
    shown = {kind: how for kinds, how in rows for kind in re.findall(r"`(\w+)`", kinds)}
    # What is refused whatever its configuration is among what is not supported; an input is no layer to a reader.
    layers = {k: how for k, how in rules.items() if "." not in k and how != "refused" and k != "InputLayer"}
    assert shown == layers
    operations = re.search(r"^Operations of .*?\.\n\n", text, re.MULTILINE | re.DOTALL)[0]
    assert set(re.findall(r"`(\w+)`", operations)) == {k.removeprefix("ops.") for k in rules if k.startswith("ops.")}
    named = re.search(r"^Activations: .*?\.\n\n", text, re.MULTILINE | re.DOTALL)[0]
    assert re.findall(r"`(\w+)`", named) == activations


@pytest.mark.parametrize(
    ("shown", "printed", "lacking"),
    [
        (("a 1", "b 2"), ["a 1", "b 2"], None),
        (("a 100",), ["a 110"], None),
        (("a 1",), ["a 2"], "a 1"),
        (("...", "c"), ["a", "b", "c"], None),
        (("...", "c"), ["a", "c", "d"], "(nothing after line 2: 'd')"),
        (("a", "..."), ["a", "b"], None),
        (("a",), ["b"], "a"),
        (("...", "x"), ["a", "b"], "x"),
        (("serving on http, ...",), ["serving on http, broker x"], None),
        (("at 2026-11-24 23:00",), ["at 2027-01-02 03:04"], None),
        (("id " + "0" * 32,), ["id " + "f" * 32], None),
        (("a",), [], "a"),
    ],
)
def test_a_page_that_says_something_else_would_be_found(shown, printed, lacking):
    assert missing(shown, printed) == lacking
