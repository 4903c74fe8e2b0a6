"""The one exception that a command raises to end with a line on stderr and a documented exit code."""

from cli_contract.exit_codes import ExitCode
from cli_contract.plain_text import plain


class CommandError(Exception):
    """Say what happened, why, and how to mend it; raise it from a command's function.

    `message` is one line; `hint` says what to do next; `code` is a stable name for scripts, like `MODEL_NOT_FOUND`.
    """

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.FAILED, code: str = "FAILED", hint: str = ""):
        super().__init__(message)
        # A key or a path may hold anything: one line, and nothing that steers the terminal.
        self.message = plain(" ".join(message.split()))
        self.exit_code = exit_code
        self.code = code
        self.hint = plain(hint)
