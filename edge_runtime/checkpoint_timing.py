"""When a training that runs writes its next checkpoint. Pure.

Two wishes pull: a trainer that is killed should lose little, and a card should wear little. A checkpoint of the
reference model is 1 to 3.5 MB (8 MB with a velocity), a night may write 64 MB, and has two starts at most: so a job has
32 MB, its checkpoints lie fifteen minutes apart, and the last that fits is the one at its end.
"""

from dataclasses import dataclass, replace

INTERVAL_S = 900.0
JOB_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CheckpointTiming:
    """`last` is when one was written, or the job began (elapsed seconds); the bytes are of the last, and of all."""

    last: float
    last_bytes: int = 0
    job_bytes: int = 0

    def due(self, elapsed: float) -> bool:
        """Whether to write one between these two steps."""
        return elapsed - self.last >= INTERVAL_S and self.job_bytes + 2 * self.last_bytes <= JOB_BYTES

    def written(self, elapsed: float, size_bytes: int) -> "CheckpointTiming":
        """Return the timing after one was written."""
        return replace(self, last=elapsed, last_bytes=size_bytes, job_bytes=self.job_bytes + size_bytes)


def begin(elapsed: float) -> CheckpointTiming:
    """Return the timing of a job that begins now."""
    return CheckpointTiming(last=elapsed)
