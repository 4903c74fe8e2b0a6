"""What the aggregator's own parts raise, sorted by what the caller does next."""

from collections.abc import Sequence


class AggregatorError(Exception):
    """Base of the aggregator's own errors."""


class InvalidSetting(AggregatorError):  # noqa: N818 - named for what it says
    """A value that the operator gave breaks a rule: correct it."""


class NotFound(AggregatorError):  # noqa: N818
    """What was named does not exist."""


class Refused(AggregatorError):  # noqa: N818
    """A rule forbids it now; `hint` says what would change that."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidToken(AggregatorError):  # noqa: N818
    """The enrolment token is unknown, used up or expired: mint another."""


class StorageFailed(AggregatorError):  # noqa: N818
    """The database or the blob store did not take or give something: nothing was acknowledged, try again later.

    `answered` are messages of a failed group that need not be given again: they were answered without being stored.
    """

    def __init__(self, message: str, answered: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.answered = answered


class StorageFull(StorageFailed):
    """There is no room: nothing was acknowledged, and it goes on by itself once there is some."""


class Unstorable(AggregatorError):  # noqa: N818
    """The database cannot hold a value: to give it again would not help."""


class BrokerUnreachable(AggregatorError):  # noqa: N818
    """The broker did not start or does not answer."""


class EvaluationFailed(AggregatorError):  # noqa: N818
    """The evaluator gave no numbers: the gate holds the release."""
