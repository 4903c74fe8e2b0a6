"""One trainer's process and the two pipes to it; what `child_trainer` starts, and loads only then."""

import os
import select
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from edge_runtime.adapters import process_limits
from edge_runtime.job_frames import Applied, FrameBroken, FrameReader, encode
from edge_runtime.jobs import Answer, Order, UsedUp

_READ_BYTES = 1 << 16
_BLOCK_BYTES = 512


class TrainerProcess:
    """One trainer's process and its pipes."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        self._reader = FrameReader()
        self._lock = threading.Lock()
        self.gone = threading.Event()
        self.code: int | None = None
        self.applied: Applied | None = None
        self.answers: list[Answer] = []
        self.broken = ""
        self.told_to_stop = False
        self.said_written = 0
        self.left_at = 0.0
        self._cpu_s, self._blocks = 0.0, 0
        # Someone must wait for a child that ends by itself, or it stays as a zombie until the next job.
        threading.Thread(target=self._bury, name=f"trainer {self.pid}", daemon=True).start()

    def _bury(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _, status, usage = os.wait4(self.pid, 0)
            self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
            self._cpu_s, self._blocks = usage.ru_utime + usage.ru_stime, usage.ru_oublock
        self.gone.set()

    def signal(self, number: int) -> None:
        """Send a signal unless the child is gone: its number may be another process's then."""
        with self._lock:
            if self.code is None:
                os.kill(self.pid, number)

    def hurry(self) -> None:
        """Let it run like any other process."""
        with self._lock:
            if self.code is None:
                process_limits.hurry(self.pid)

    def used(self) -> UsedUp:
        """Return the child's CPU seconds so far, and what it has written: by its own word, or by the kernel's where
        that is more (a killed child says nothing)."""
        with self._lock:
            cpu_s = self._cpu_s if self.code is not None else _cpu_of(self.pid)
            return UsedUp(cpu_s=cpu_s, written_bytes=max(self.said_written, self._blocks * _BLOCK_BYTES))

    def send(self, order: Order, until: float) -> bool:
        """Write an order; whether all of it went."""
        view = memoryview(encode(order))
        poll = select.poll()
        poll.register(self._input, select.POLLOUT)
        while view:
            left = until - time.monotonic()
            if left <= 0 or not poll.poll(1e3 * left):
                return False
            try:
                view = view[os.write(self._input, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
        return True

    def receive(self, wait_s: float) -> bool:
        """Read what has come, waiting at most so long for a first byte; False at the pipe's end or when it broke."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        if not poll.poll(1e3 * max(0.0, wait_s)):
            return True
        try:
            data = os.read(self._output, _READ_BYTES)
            if not data:
                return False
            for frame in self._reader.feed(data):
                if isinstance(frame, Applied):
                    self.applied = frame
                elif isinstance(frame, Answer):
                    self.said_written += frame.used.written_bytes
                    self.answers.append(frame)
                else:
                    raise FrameBroken("a trainer sends answers, got an order")
        except BlockingIOError:
            return True
        except FrameBroken as e:
            self.broken = f"what it sent cannot be read: {e}"
            return False
        return True

    def let_go(self) -> None:
        """Close the pipes: a child that waits for orders ends then."""
        self.left_at = time.monotonic()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def end(self, wait_s: float) -> None:
        """See to it that a child that was let go is gone, and nothing of it stays."""
        if not self.gone.wait(wait_s):
            self.signal(signal.SIGKILL)
            self.gone.wait()
        process_limits.remove_cgroups(self.pid)


def _cpu_of(process: int) -> float:
    """Return the CPU seconds of a process's threads, the ended ones too, in ticks of the kernel's clock."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
