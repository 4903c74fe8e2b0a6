"""Running one command: parse, call, print, and turn every ending into an exit code and at most one line on stderr."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.parser import Parser, UsageError, wants_json
from cli_contract.result import Result, error_envelope, print_result

BROKEN_PIPE = 141


def run_command(build: Callable[[], Parser], arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own) and return the exit code.

    Console scripts call it as `sys.exit(run_command(build_parser))`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = wants_json(words)
    parser = build()
    command, verbose = parser.prog, "-v" in words or "--verbose" in words
    try:
        parsed = parser.parse_args(words)
        run = getattr(parsed, "run", None)
        if run is None:
            parser.print_help(sys.stdout)
            return ExitCode.USAGE
        command = parsed.command_path
        # What was parsed decides; the early guess serves usage errors only.
        as_json = getattr(parsed, "output_format", "json" if as_json else "table") == "json"
        result = run(parsed)
        if isinstance(result, Result):
            print_result(command, result, as_json=as_json)
            return result.exit_code
        return ExitCode.OK
    except SystemExit as e:  # argparse's --help
        return e.code if isinstance(e.code, int) else ExitCode.OK
    except UsageError as e:
        error = CommandError(e.message, exit_code=ExitCode.USAGE, code="USAGE", hint=f"see {e.prog} --help")
        return _tell(command, error, as_json)
    except CommandError as e:
        return _tell(command, e, as_json)
    except KeyboardInterrupt:
        stopped = CommandError("stopped by Ctrl-C", exit_code=ExitCode.INTERRUPTED, code="INTERRUPTED")
        return _tell(command, stopped, as_json)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; closing stdout here keeps the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as e:  # noqa: BLE001 - the last line of defence: a person gets one line, never a traceback
        if verbose:
            traceback.print_exc()
        hint = "run it again with --verbose to see where"
        return _tell(
            command, CommandError(f"unexpected {type(e).__name__}: {e}", code="UNEXPECTED", hint=hint), as_json
        )


def _tell(command: str, error: CommandError, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(error_envelope(command, error) + "\n")
        sys.stdout.flush()
    hint = f" ({error.hint})" if error.hint else ""
    sys.stderr.write(f"{command}: {error.message}{hint}\n")
    return error.exit_code
