"""Whether there is room on the disk for a training. Pure.

A training writes two checkpoints, a residual, an update and the log of a transaction; the next version is downloaded
beside what is held. Three times the model is more than they take, so a training that began does not end in a full disk.
"""

MODELS_FREE = 3
BALLAST_BYTES = 8 << 20


def wanted(model_bytes: int) -> int:
    """Return how many bytes must be free before a training of a model of this size starts."""
    return MODELS_FREE * model_bytes


def enough(free_bytes: int, model_bytes: int) -> bool:
    """Whether a training may start. Raises `ValueError` for a size below zero."""
    if free_bytes < 0 or model_bytes < 0:
        raise ValueError(f"sizes are not negative, got {free_bytes} free and a model of {model_bytes}")
    return free_bytes >= wanted(model_bytes)


def enough_for_ballast(free_bytes: int, model_bytes: int, ballast_bytes: int) -> bool:
    """Whether the ballast may be laid out again: it must not be what keeps a training from starting."""
    return free_bytes >= ballast_bytes + wanted(model_bytes)
