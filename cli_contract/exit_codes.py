"""The exit codes that all four commands share; `--help` lists them and docs/commands.md explains them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command's caller may conclude; the values never change meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    TIMEOUT = 6
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "it was tried and failed",
    ExitCode.USAGE: "the command line or a configuration file is wrong",
    ExitCode.NOT_FOUND: "what was named does not exist",
    ExitCode.REFUSED: "a rule or a missing precondition forbids it",
    ExitCode.UNREACHABLE: "a broker, server or other program does not answer",
    ExitCode.TIMEOUT: "it took longer than allowed",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
}
