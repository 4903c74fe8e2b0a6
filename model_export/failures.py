"""From the package's and the contract's errors to a command's ending: which exit code, which hint."""

import contextlib
from collections.abc import Iterator

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from model_export.checkpoint import BadCheckpoint
from model_export.corpus import BadText
from model_export.signing_key import BadKey
from model_export.starter import NoStarter
from wire_contract.errors import ContractError, Untrusted


@contextlib.contextmanager
def command_errors() -> Iterator[None]:
    """Turn what a command's parts raise into `CommandError`."""
    try:
        yield
    except FileNotFoundError as e:
        raise CommandError(
            f"{e.filename}: no such file or folder", exit_code=ExitCode.NOT_FOUND, code="NOT_FOUND"
        ) from e
    except FileExistsError as e:
        raise CommandError(
            f"{e.filename}: is there already and is not overwritten", exit_code=ExitCode.REFUSED, code="EXISTS"
        ) from e
    except OSError as e:
        raise CommandError(f"{e.filename or 'file'}: {e.strerror or e}", code="FILE") from e
    except NoStarter as e:
        hint = "make some with model-export pretrain and name them with --checkpoint"
        raise CommandError(str(e), exit_code=ExitCode.NOT_FOUND, code="NO_STARTER", hint=hint) from e
    except BadKey as e:
        hint = "make a key with model-export keygen"
        raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="BAD_KEY", hint=hint) from e
    except Untrusted as e:
        raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="UNTRUSTED") from e
    except (BadCheckpoint, BadText, ContractError) as e:
        raise CommandError(str(e), code="BAD_INPUT") from e
