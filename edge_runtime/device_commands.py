"""`edge-runtime enrol | status | forget | add`: what a person does with the device's home."""

import sys
from pathlib import Path

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result
from edge_runtime import identity
from edge_runtime.adapters.files import write_atomically
from edge_runtime.config import SETTINGS_FILE, read_settings
from edge_runtime.explain_commands import look
from edge_runtime.home_opening import open_agent, opened
from edge_runtime.model_slots import VersionRefused
from edge_runtime.ports import PortError, Unreachable
from edge_runtime.trust import ManifestRefused
from edge_runtime.turn_report import TurnReport
from edge_runtime.wiring import real_ports
from wire_contract.errors import ContractError
from wire_contract.manifest import ARRAY_FAMILY

MAX_TOKEN_CHARACTERS = 200


def enrol(home: Path, server: str, token_file: str, population: str | None, label: str) -> Result:
    """Make the device's key, trade the token for an identity, fetch the first model."""
    from edge_runtime.adapters import enrolment

    settings = read_settings(home)
    token = _read_token(token_file)
    wanted = population or settings.population
    pinned = bytes.fromhex(settings.aggregator_key) if settings.aggregator_key else None
    try:
        who = identity.load_or_make(home, identity.system_entropy)
        enrolled, signed = enrolment.enrol(
            server,
            who,
            token=token,
            population=wanted,
            label=label or settings.label,
            pinned=pinned,
            ca_file=settings.server_ca,
        )
        identity.save_enrolled(home, signed)
        if not (home / SETTINGS_FILE).exists():
            text = f'population = "{wanted}"\nserver = "{server}"\n\n[policy]\n# profile = "mains"  # no battery\n'
            write_atomically(home / SETTINGS_FILE, text.encode())
    except enrolment.EnrolmentRefused as e:
        raise CommandError(
            f"the aggregator refuses: {e}", exit_code=ExitCode.REFUSED, code="ENROLMENT_REFUSED",
            hint="cloud-aggregator token mint makes another token",
        ) from e  # fmt: skip
    except Unreachable as e:
        raise CommandError(str(e), exit_code=ExitCode.UNREACHABLE, code="SERVER_UNREACHABLE") from e
    except (ContractError, PortError) as e:
        raise CommandError(f"the answer cannot be used: {e}", code="ENROLMENT_FAILED") from e
    agent = open_agent(home)
    try:
        version = agent.fetch_refresh().version
    except (PortError, VersionRefused, ManifestRefused) as e:
        version = 0
        sys.stderr.write(f"no model yet: {e}\n")
    finally:
        agent.abandon()
    data = {"device": enrolled.device, "population": enrolled.population, "version": version}
    return Result(data, next_command="edge-runtime run")


def _read_token(token_file: str) -> str:
    try:
        with sys.stdin if token_file == "-" else Path(token_file).open(encoding="utf-8") as file:
            return file.read(MAX_TOKEN_CHARACTERS).strip()
    except FileNotFoundError as e:
        raise CommandError(f"{token_file}: no such file", exit_code=ExitCode.NOT_FOUND, code="NO_TOKEN") from e
    except (OSError, UnicodeDecodeError) as e:
        raise CommandError(f"{token_file}: cannot be read: {e}", code="NO_TOKEN") from e


def as_data(report: TurnReport) -> dict[str, object]:
    data = {name: getattr(report, name) for name in TurnReport.__slots__}
    data["versions"] = dict(report.versions)
    return data


def status(home: Path) -> Result:
    """Say what the device holds and why it does not train now; asks nobody."""
    from edge_runtime import personal_task
    from edge_runtime.energy import watt_hours

    with opened(home) as agent:
        settings = read_settings(home)
        ports = real_ports(home, settings, only_looks=True)
        usage, told = agent.usage(ports.clock.now()), look(agent, settings, ports)
        held, instead = personal_task.for_keyboard(home, agent.slots)
        versions = {track: agent.slots.slot(track).version for track in ("training", "refresh")}
        return Result(
            {
                "device": agent.identity.device,
                "population": agent.enrolled.population,
                "phase": agent.state.phase.value,
                "may_train": told.decision.may_train,
                "may_send": told.decision.may_send,
                "reason": told.decision.reason,
                "versions": versions,
                "keyboard_version": 0 if held is None else held.manifest.version,
                "keyboard_reason": instead,
                "examples_words": agent.count_words(),
                "own_words": len(agent.examples.new_words()),
                "updates_waiting": len(agent.updates_waiting()),
                "training_s_tonight": round(usage.training_s, 1),
                "cpu_s_tonight": round(usage.cpu_s, 1),
                "energy_wh_tonight": round(watt_hours(usage.cpu_s, settings.policy.watts), 3),
                "sent_bytes_tonight": usage.sent_bytes,
                "written_bytes_tonight": usage.written_bytes,
                "starts_tonight": usage.starts,
                "runtime": ports.trainer.runtime,
            }
        )


def forget(home: Path, word: str | None, *, yes: bool) -> Result:
    """Delete a word's sentences, or everything that came from this person's typing; either way what was made of it.

    An agent that runs in the home notices it between two steps of a training, and before it sends.
    """
    if word is None and not yes:
        _confirm()
    with opened(home) as agent:
        if word is not None:
            return Result({"word": word, "sentences_deleted": agent.forget_word(word)})
        return Result({"words_deleted": agent.forget_everything()})


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise CommandError(
            "forgetting everything needs --yes where nobody can be asked",
            exit_code=ExitCode.REFUSED, code="NOT_CONFIRMED", hint="edge-runtime forget --everything --yes",
        )  # fmt: skip
    sys.stderr.write("delete every example, the personal copy and every update that waits? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was deleted", exit_code=ExitCode.REFUSED, code="NOT_CONFIRMED")


def add(home: Path, text: str, *, learn: bool) -> Result:
    """Put text into the example store."""
    with opened(home) as agent:
        held = agent.current()
        if held is not None and held.manifest.family == ARRAY_FAMILY:
            raise CommandError(
                "the model here learns from arrays, not from text",
                exit_code=ExitCode.REFUSED, code="WRONG_FAMILY", hint="edge-runtime add-arrays FILE.npz",
            )  # fmt: skip
        if agent.examples.vocabulary is None:
            raise CommandError(
                "there is no model yet, so no vocabulary to filter by",
                exit_code=ExitCode.REFUSED, code="NO_MODEL", hint="edge-runtime run --once",
            )  # fmt: skip
        messages = sys.stdin.read().splitlines() if text == "-" else [text]
        clock = real_ports(home, read_settings(home), only_looks=True).clock
        stored = agent.examples.add_many(messages, clock.now(), learn=learn, trusted=clock.trusted())
        reason = "" if stored or not learn else "no word of it is in the model's vocabulary"
        return Result({"sentences_stored": stored, "examples_words": agent.examples.count_words(), "reason": reason})
