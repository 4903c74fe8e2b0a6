"""The answer of a slow command, a while old: it runs beside the agent, and asking for its answer never waits.

The rules:
- a question starts the command if none runs and the last start is `every_s` ago, and returns the newest answer with its
  age, counted from the start of the command that gave it;
- a command that takes more than `DEADLINE_S`, fails, or says what is no answer gives none, and the older one grows old;
- there is no thread: whatever happens, happens in a question. So what is in the pipe is read and no more waited for: a
  child that the command left behind may hold the other end for hours.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

DEADLINE_S = 10.0
# Below the 64 KiB that a pipe holds: a command that fits never waits for its reader.
MAX_OUTPUT_BYTES = 32 * 1024

Answer = Mapping[str, object]


class BackgroundCommand:
    """One command. `to_answer` turns its output into an answer, or None; `elapsed` gives seconds that never jump."""

    def __init__(
        self,
        words: Sequence[str],
        to_answer: Callable[[str], Answer | None],
        *,
        every_s: float = 5.0,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._words = tuple(words)
        self._to_answer = to_answer
        self._every_s = every_s
        self._elapsed = elapsed
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = -every_s
        self._answer: Answer | None = None
        self._answered_at = 0.0

    def ask(self) -> tuple[Answer, float] | None:
        """Return the newest answer and its age in seconds; None before the first."""
        self._collect()
        now = self._elapsed()
        if self._process is None and now - self._started_at >= self._every_s:
            self._start(now)
        return None if self._answer is None else (self._answer, now - self._answered_at)

    @property
    def waits(self) -> bool:
        """Whether it runs and has given no answer yet."""
        return self._process is not None and self._answer is None

    def _start(self, now: float) -> None:
        self._started_at = now
        try:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            # Not there any more, or no memory to start it: the answer that is there grows old and then unknown.
            self._process = None
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _collect(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            if self._elapsed() - self._started_at > DEADLINE_S:
                self.close()
            return
        self._process = None
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read(MAX_OUTPUT_BYTES) or b""
        answer = self._to_answer(output.decode("utf-8", errors="replace")) if process.returncode == 0 else None
        if answer is not None:
            self._answer, self._answered_at = answer, self._started_at

    def close(self) -> None:
        """End the command if one runs; its answer is not waited for."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
