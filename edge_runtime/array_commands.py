"""`edge-runtime add-arrays`: examples of arrays into the home's store, as the model that is here reads them."""

from pathlib import Path

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result
from edge_runtime.adapters.runtime_choice import open_runtime
from edge_runtime.array_evaluation import try_examples
from edge_runtime.array_examples import MAX_FILE_BYTES, ExamplesRefused, encode_records, read_npz
from edge_runtime.config import read_settings
from edge_runtime.home_opening import opened
from edge_runtime.personal_task import newest
from edge_runtime.ports import RuntimeFailed
from edge_runtime.wiring import real_ports
from wire_contract.layout import Layout
from wire_contract.manifest import ARRAY_FAMILY
from wire_contract.patch import read_tensors


def add_arrays(home: Path, file: Path) -> Result:
    """Put a file's examples into the store, all of them or none; the model is run on them first."""
    settings = read_settings(home)
    with opened(home) as agent:
        held = newest(agent.slots)
        if held is None:
            raise CommandError(
                "there is no model yet that says what an example is made of",
                exit_code=ExitCode.REFUSED, code="NO_MODEL", hint="edge-runtime run --once",
            )  # fmt: skip
        manifest = held.manifest
        if manifest.family != ARRAY_FAMILY:
            raise CommandError(
                f"the model here learns from text, of the family {manifest.family}",
                exit_code=ExitCode.REFUSED, code="WRONG_FAMILY", hint="edge-runtime add TEXT",
            )  # fmt: skip
        try:
            arrays = read_npz(_read(file), manifest)
            runner = open_runtime(settings.runtime).template(manifest, lambda: held.data)
            packed = Layout.of(manifest).pack(read_tensors(held.data, manifest))
            found = try_examples(runner, manifest, packed, arrays)
        except ExamplesRefused as e:
            raise CommandError(f"{file}: {e}", code="BAD_EXAMPLES") from e
        except RuntimeFailed as e:
            raise CommandError(str(e), code="RUNTIME") from e
        clock = real_ports(home, settings, only_looks=True).clock
        stored = agent.examples.add_arrays(
            encode_records(arrays, manifest.examples), clock.now(), trusted=clock.trusted()
        )
        return Result(
            {
                "examples_added": stored,
                "examples_stored": agent.examples.count_arrays(),
                "version": manifest.version,
                "loss": round(found.mean_loss, 6),
            }
        )


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as e:
        raise CommandError(f"{file}: no such file", exit_code=ExitCode.NOT_FOUND, code="NO_FILE") from e
    except OSError as e:
        raise CommandError(f"{file}: cannot be read: {e}", code="CANNOT_READ") from e
