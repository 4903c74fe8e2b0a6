import io
import os
import pty
import threading
import time
from collections.abc import Iterator

from keyboard_demo.keyboard import Typing
from keyboard_demo.terminal import draw, run_in_terminal, run_on_lines, saved_share
from wire_contract.vocabulary import Vocabulary

WORDS = Vocabulary.from_words(["you", "are", "okay"])


class Device:
    """Implements the Hands port in memory; after a night it likes "okay" best."""

    vocabulary = WORDS

    def __init__(self) -> None:
        self.learned: list[str] = []
        self.nights = 0

    def predict(self, context: tuple[int, ...]) -> list[float]:
        return [0, 0, 0, 0, 0.5, 0.3, 0.9 if self.nights else 0.1]

    def learn(self, text: str) -> str:
        self.learned.append(text)
        return f"kept {len(self.learned)}"

    def train_now(self) -> Iterator[str]:
        self.nights += 1
        yield "training"


def test_a_pipe_gets_one_line_of_suggestions_for_each_line():
    out = io.StringIO()
    run_on_lines(Device(), io.StringIO("are\n\n"), out)
    assert out.getvalue() == "are\tare | you | okay\n\tare | you | okay\n"


def test_the_screen_fits_its_width():
    typing = Typing(text="x" * 200, strip=("one", "two" * 20, "three"), keys=9, accepted=1)
    for width in (40, 80):
        assert all(len(line) <= width for line in draw(typing, "n" * 200, 200, width))


def test_saved_keystrokes_are_what_was_written_beyond_what_was_pressed():
    assert saved_share(Typing(keys=25), 100) == 0.75
    assert saved_share(Typing(keys=25), 0) == 0
    assert saved_share(Typing(keys=25), 10) == 0


def test_a_person_at_a_terminal_accepts_ends_a_message_trains_and_leaves():
    master, slave = pty.openpty()
    device = Device()
    shown = io.StringIO()
    with os.fdopen(slave, "r") as stdin:
        typist = threading.Thread(target=run_in_terminal, args=(device, stdin, shown))
        typist.start()
        deadline = time.monotonic() + 20
        while "1 are" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        for keys in (b"2", b"o", b"\x7f", b"\r", b"\x14", b"2", b"\r", b"\x04"):
            os.write(master, keys)
            time.sleep(0.02)
        typist.join(timeout=max(0.0, deadline - time.monotonic()))
        assert not typist.is_alive()
    os.close(master)
    assert device.learned == ["you ", "okay "]
    assert device.nights == 1
    assert "training" in shown.getvalue()
