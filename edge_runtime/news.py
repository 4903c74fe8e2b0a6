"""When news of versions were seen last: durable, so that a start is no reason to ask for them again."""

from edge_runtime.adapters.state_store import StateStore

POLL_S = 6 * 3600.0
NAME = "news"


def due(seen_at: float, now: float) -> bool:
    """Whether they should be asked for; also where they were seen at a time that has not come yet."""
    return not 0.0 <= now - seen_at < POLL_S


def seen_at(store: StateStore) -> float:
    """Return when (Unix seconds) they were seen last, 0 for never. Raises `StorageFailed`."""
    try:
        return float(store.get(NAME) or 0.0)
    except ValueError:
        return 0.0
