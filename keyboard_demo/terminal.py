"""The keyboard in a terminal: type, see three suggestions, accept with 1, 2 or 3, train tonight now.

The shell around `keyboard.py`: it reads keys (raw mode, restored whatever happens) and draws four lines. On something
that is not a terminal it reads lines and prints the suggestions for each, so that it works in a pipe. What it shows of
the device comes through the `Hands` port, which `device.py` implements over the edge runtime.
"""

import contextlib
import termios
import tty
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TextIO

from keyboard_demo.keyboard import Message, Typing, press, suggest
from wire_contract.vocabulary import Vocabulary

CTRL_D, CTRL_T, ESCAPE = "\x04", "\x14", "\x1b"
BACKSPACES = ("\x7f", "\x08")
HELP = (
    "Type. 1 2 3 accept a suggestion, Backspace takes it back, Enter ends the message",
    "(this device learns from it), Ctrl-T train tonight now, Ctrl-D leave.",
)


class Hands(Protocol):
    """What the keyboard asks of the device it runs on."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that can be suggested."""

    def predict(self, context: tuple[int, ...]) -> Sequence[float]:
        """Return a probability for each word after these 20 ids."""

    def learn(self, text: str) -> str:
        """Store a finished message for training; return one line that says what was kept."""

    def train_now(self) -> Iterator[str]:
        """Play tonight: train, send, personalize; yield lines that say what happens."""


def saved_share(typing: Typing, written: int) -> float:
    """Return the share of keystrokes saved: 1 - keys pressed / characters written, 0 before anything was written."""
    return max(0.0, 1 - typing.keys / written) if written else 0.0


def draw(typing: Typing, note: str, written: int, width: int) -> list[str]:
    """Return the four lines of the screen for `width` columns: field, strip, counters, note. Pure."""
    field = f"> {typing.text}_"
    field = field if len(field) <= width else "> …" + field[len(field) - width + 3 :]
    third = max(10, min(24, (width - 2) // 3))
    cells = [f"{place} {word}" if word else "" for place, word in enumerate(typing.strip, start=1)]
    strip = "  " + "".join(cell[: third - 1].ljust(third) for cell in cells).rstrip()
    counters = f"  keys {typing.keys} · accepted {typing.accepted} · saved {100 * saved_share(typing, written):.0f} %"
    return [line[:width] for line in (field, strip, counters, "  " + note)]


def run_in_terminal(hands: Hands, stdin: TextIO, stdout: TextIO, width: int = 80) -> None:
    """Let a person type until Ctrl-D; restores the terminal on every way out."""
    if not stdin.isatty():
        run_on_lines(hands, stdin, stdout)
        return
    stdout.write("\n".join(HELP) + "\n\n")
    typing, note, written = suggest(Typing(), hands.vocabulary, hands.predict), "nothing typed here leaves as text", 0
    with _raw(stdin):
        shown = 0
        while True:
            lines = draw(typing, note, written + len(typing.text), width)
            up = f"\x1b[{shown}A" if shown else ""
            stdout.write(up + "".join(f"\r\x1b[2K{line}\r\n" for line in lines))
            stdout.flush()
            shown = len(lines)
            key = stdin.read(1)
            if key in ("", CTRL_D):
                return
            if key == "\x03":
                raise KeyboardInterrupt
            if key == CTRL_T:
                stdout.write("\r\n")
                for line in hands.train_now():
                    stdout.write(f"  {line}\r\n")
                    stdout.flush()
                shown, note = 0, "suggestions come from the new night"
                fresh = replace(typing, strip=Typing().strip)
                typing = suggest(fresh, hands.vocabulary, hands.predict)
                continue
            if key == ESCAPE or not (key.isprintable() or key in ("\r", "\n", *BACKSPACES)):
                continue
            after = press(typing, "\n" if key == "\r" else "\b" if key in BACKSPACES else key)
            if isinstance(after, Message):
                written += len(after.text)
                note = hands.learn(after.text)
                after = Typing(keys=typing.keys + 1, accepted=typing.accepted)
            typing = suggest(after, hands.vocabulary, hands.predict)


def run_on_lines(hands: Hands, stdin: TextIO, stdout: TextIO) -> None:
    """The form for pipes: each line is a text, the three suggestions after it come back, best first in the middle."""
    for line in stdin:
        text = line.rstrip("\n")
        typing = suggest(Typing(text=text + " " if text else ""), hands.vocabulary, hands.predict)
        stdout.write(f"{text}\t{' | '.join(word or '-' for word in typing.strip)}\n")
        stdout.flush()


@contextlib.contextmanager
def _raw(stdin: TextIO) -> Iterator[None]:
    saved = termios.tcgetattr(stdin.fileno())
    try:
        tty.setcbreak(stdin.fileno(), termios.TCSADRAIN)
        mode = termios.tcgetattr(stdin.fileno())
        mode[3] &= ~termios.ISIG
        termios.tcsetattr(stdin.fileno(), termios.TCSADRAIN, mode)
        yield
    finally:
        termios.tcsetattr(stdin.fileno(), termios.TCSADRAIN, saved)
