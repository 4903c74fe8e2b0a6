"""What each command of `cloud-aggregator` does, and how its answer reads.

Commands that change something talk to the running service. Commands that only read ask it too, and read the database
themselves when no service runs, saying so on stderr.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, describe, table
from cli_contract.settings import load_settings
from cloud_aggregator import operator_view as view
from cloud_aggregator.addresses import without_credentials
from cloud_aggregator.config import DEFAULT_FILE, PopulationSettings, ServiceSettings, check_population
from cloud_aggregator.errors import AggregatorError, BrokerUnreachable, InvalidSetting, NotFound, Refused
from cloud_aggregator.operator_client import OperatorClient, find_service
from cloud_aggregator.records import Records

SETTINGS_FILE = "aggregator.toml"
GATE_TIMEOUT_S = 3600.0

_EXIT = {
    NotFound: (ExitCode.NOT_FOUND, "NOT_FOUND"),
    Refused: (ExitCode.REFUSED, "REFUSED"),
    InvalidSetting: (ExitCode.USAGE, "BAD_VALUE"),
    BrokerUnreachable: (ExitCode.UNREACHABLE, "NO_BROKER"),
}

Run = Callable[[argparse.Namespace], Result | None]


def told(run: Run, arguments: argparse.Namespace) -> Result | None:
    """Call a command's function and turn the aggregator's errors into the contract's."""
    try:
        return run(arguments)
    except AggregatorError as e:
        exit_code, code = next((v for kind, v in _EXIT.items() if isinstance(e, kind)), (ExitCode.FAILED, "FAILED"))
        hint = e.hint if isinstance(e, Refused) else ""
        raise CommandError(str(e), exit_code=exit_code, code=code, hint=hint) from e


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def data_of(arguments: argparse.Namespace) -> Path:
    """Return the data directory that the command names. Raises `CommandError` where there is none."""
    data = Path(arguments.data)
    if not (data / "aggregator.key").exists():
        raise CommandError(
            f"{data} is no data directory",
            exit_code=ExitCode.NOT_FOUND,
            code="NO_DATA",
            hint=f"make one: cloud-aggregator init --data {data}",
        )
    return data


def settings_of(data: Path) -> ServiceSettings:
    """Return the service's settings."""
    path = data / SETTINGS_FILE
    return load_settings(path, ServiceSettings) if path.exists() else ServiceSettings()


def _read(
    arguments: argparse.Namespace,
    ask: Callable[[OperatorClient], dict[str, Any]],
    look: Callable[[Records], dict[str, Any]],
) -> dict[str, Any]:
    data = data_of(arguments)
    try:
        service = find_service(data)
    except CommandError as e:
        if e.exit_code != ExitCode.UNREACHABLE:
            raise
        from cloud_aggregator.serving import open_database

        settings = settings_of(data)
        if not settings.database and not (data / "aggregator.db").exists():
            raise NotFound(f"{data} has no database yet: serve or import a population first") from e
        database = open_database(data, settings)
        try:
            with database.reading() as records:
                found = look(records)
        finally:
            database.close()
        _say("no service is running: this is read from the database")
        return found
    return ask(service)


def _confirm(arguments: argparse.Namespace, what: str) -> None:
    """Ask a person; refuse where nobody can answer."""
    if arguments.yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError(
            f"{what}: this needs a confirmation and nobody can answer here",
            exit_code=ExitCode.REFUSED,
            code="NOT_CONFIRMED",
            hint="say --yes, or --dry-run to see what would happen",
        )
    sys.stderr.write(f"{what}? Type yes: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise CommandError("not confirmed, nothing was done", exit_code=ExitCode.REFUSED, code="NOT_CONFIRMED")


def _listed(answer: Mapping[str, Any], columns: Mapping[str, str], next_command: str = "") -> Result:
    items: Sequence[Mapping[str, Any]] = answer["items"]
    rows = [[_cell(item.get(key)) for key in columns.values()] for item in items]
    text = table(rows, list(columns))
    if answer["total"] > len(items):
        text += f"\n{len(items)} of {answer['total']}; more: --limit 0"
    return Result(answer, text, next_command)


def _cell(value: object) -> object:
    if value is None or value == "":
        return "-"
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{count}" for key, count in value.items()) or "-"
    return value


def init(arguments: argparse.Namespace) -> Result:
    """Make a data directory."""
    from cloud_aggregator.adapters.key_files import make_keys
    from cloud_aggregator.serving import operator_token
    from wire_contract.envelope import key_id

    data = Path(arguments.data)
    keys = make_keys(data, os.urandom)
    operator_token(data)
    if not (data / SETTINGS_FILE).exists():
        (data / SETTINGS_FILE).write_text(DEFAULT_FILE, encoding="utf-8")
    shown = {"data": str(data), "aggregator_key": keys.public.hex(), "key_id": key_id(keys.public)}
    return Result(shown, next_command=f"cloud-aggregator population import BUNDLE_DIR --data {data}")


def serve(arguments: argparse.Namespace) -> None:
    """Run the service."""
    import msgspec

    from cloud_aggregator import serving
    from cloud_aggregator.adapters.broker import BrokerHandle

    data = data_of(arguments)
    settings = settings_of(data)
    http = {key: value for key in ("host", "port") if (value := getattr(arguments, key)) is not None}
    settings = msgspec.structs.replace(settings, http=msgspec.structs.replace(settings.http, **http))
    if arguments.broker is not None:
        settings = msgspec.structs.replace(
            settings, broker=msgspec.structs.replace(settings.broker, url=arguments.broker)
        )

    def ready(started: BrokerHandle, url: str) -> None:
        _say(f"serving on {url}, broker {started.name} on {without_credentials(started.url)}; stop with Ctrl-C")
        _say(f"Next: cloud-aggregator status --data {data}")

    serving.serve(data, settings, _say, ready)
    _say("stopped")


def status(arguments: argparse.Namespace) -> Result:
    """Show the whole at a glance."""
    answer = _read(arguments, lambda s: s.get("/status"), lambda r: view.status_view(r, int(time.time())))
    lines = [answer["health"]]
    for population in answer["populations"]:
        lines += ["", describe(population)]
    if answer["kernel"]:
        why = answer["kernel"]["unavailable"]
        lines += ["", f"updates are decoded by: {answer['kernel']['name']}" + (f" ({why})" if why else "")]
    if answer["events"]:
        lines += ["", "refused at the door: " + ", ".join(f"{kind} {n}" for kind, n in answer["events"].items())]
    if not answer["populations"]:
        following = "cloud-aggregator population import BUNDLE_DIR"
    elif any(population["devices"] for population in answer["populations"]):
        following = "cloud-aggregator round list"
    else:
        following = "cloud-aggregator token mint"
    return Result(answer, "\n".join(lines), following)


def population_import(arguments: argparse.Namespace) -> Result:
    """Found a population; works beside a running service, which announces it at its next turn."""
    from cloud_aggregator.adapters.blobs import FileBlobs
    from cloud_aggregator.adapters.key_files import load_keys
    from cloud_aggregator.bundle import parse_key, read_bundle
    from cloud_aggregator.population import found
    from cloud_aggregator.serving import open_database

    data = data_of(arguments)
    settings = PopulationSettings()
    if arguments.settings is not None:
        settings = load_settings(Path(arguments.settings), PopulationSettings)
        try:
            check_population(settings)
        except InvalidSetting as e:
            raise InvalidSetting(f"{arguments.settings}: {e}") from e
    key = None
    if arguments.manifest_key is not None:
        named = Path(arguments.manifest_key)
        key = parse_key(named.read_text("ascii", "replace") if named.is_file() else arguments.manifest_key)
    bundle = read_bundle(Path(arguments.bundle), key)
    database = open_database(data, settings_of(data))
    try:
        with database.transaction() as records:
            record = found(records, FileBlobs(data / "blobs"), load_keys(data), bundle, settings, int(time.time()))
    finally:
        database.close()
    shown = {
        "population": record.population,
        "version": bundle.manifest.version,
        "sha256": bundle.manifest.sha256,
        "bytes": bundle.manifest.size_bytes,
        "parameters": bundle.manifest.parameters,
        "manifest_key": bundle.manifest_key.hex(),
    }
    return Result(shown, next_command=f"cloud-aggregator serve --data {data}")


def token_mint(arguments: argparse.Namespace) -> Result:
    """Make an enrolment token."""
    service = find_service(data_of(arguments))
    body = {
        "population": arguments.population,
        "label": arguments.label,
        "uses": arguments.uses,
        "valid_seconds": arguments.valid_hours * 3600,
    }
    answer = service.send("POST", "/tokens", body)
    return Result(answer, next_command=f"on the device: edge-runtime enrol (server {answer['server']}, this token)")


def device_list(arguments: argparse.Namespace) -> Result:
    """List devices."""
    answer = _read(
        arguments,
        lambda s: s.get("/devices", limit=arguments.limit),
        lambda r: view.device_list(r, arguments.limit),
    )
    columns = {"device": "device", "label": "label", "state": "state", "last seen": "last_seen",
               "training": "training_version", "refresh": "refresh_version", "reason": "reason"}  # fmt: skip
    return _listed(answer, columns, "cloud-aggregator device show DEVICE")


def device_show(arguments: argparse.Namespace) -> Result:
    """Show one device."""
    answer = _read(
        arguments,
        lambda s: s.get(f"/devices/{_quoted(arguments.name)}"),
        lambda r: view.device_view(view.find_device(r, arguments.name)),
    )
    return Result(answer, next_command=f"cloud-aggregator device revoke {answer['device'][:8]}")


def device_revoke(arguments: argparse.Namespace) -> Result:
    """Refuse a device from now on."""
    service = find_service(data_of(arguments))
    found = service.get(f"/devices/{_quoted(arguments.name)}")
    if arguments.dry_run:
        return Result({**found, "planned": "revoke"}, f"would revoke {found['device']} ({found['label']})")
    _confirm(arguments, f"revoke device {found['device']} ({found['label']})")
    answer = service.send("POST", f"/devices/{found['device']}/revoke", {})
    return Result(answer, next_command="cloud-aggregator device list")


def device_label(arguments: argparse.Namespace) -> Result:
    """Give a device another label."""
    service = find_service(data_of(arguments))
    found = service.get(f"/devices/{_quoted(arguments.name)}")
    answer = service.send("POST", f"/devices/{found['device']}/label", {"label": arguments.label})
    return Result(answer, next_command="cloud-aggregator device list")


def round_list(arguments: argparse.Namespace) -> Result:
    """List rounds."""
    answer = _read(
        arguments, lambda s: s.get("/rounds", limit=arguments.limit), lambda r: view.round_list(r, arguments.limit)
    )
    columns = {"round": "round", "population": "population", "state": "state", "updates": "updates",
               "goal": "goal_count", "version": "version", "staleness": "staleness", "closed": "closed_at"}  # fmt: skip
    return _listed(answer, columns, "cloud-aggregator round show ROUND")


def round_show(arguments: argparse.Namespace) -> Result:
    """Show one round."""
    answer = _read(
        arguments,
        lambda s: s.get(f"/rounds/{_quoted(arguments.name)}"),
        lambda r: view.round_show(r, arguments.name),
    )
    return Result(answer, next_command="cloud-aggregator release now --dry-run")


def round_replay(arguments: argparse.Namespace) -> Result:
    """Make a version again from what is recorded, and say whether it came out the same."""
    from cloud_aggregator.adapters.blobs import FileBlobs
    from cloud_aggregator.adapters.key_files import load_keys
    from cloud_aggregator.round_replay import find_version, replay
    from cloud_aggregator.serving import open_database

    data = data_of(arguments)
    database = open_database(data, settings_of(data))
    try:
        # One snapshot: a running service may go on beside it.
        with database.reading() as records:
            name = view.one_population(records, arguments.population)
            population = next(p for p in records.populations() if p.population == name)
            version = find_version(records, population, arguments.name)
            again = replay(
                records, FileBlobs(data / "blobs"), load_keys(data), population, version,
                sums_may_do=arguments.from_sums,
            )  # fmt: skip
    finally:
        database.close()
    answer = view.replay_view(again)
    if again.identical:
        return Result(answer, next_command=f"cloud-aggregator round show {arguments.name}")
    return Result(answer, f"differs: {again.differs}", exit_code=ExitCode.FAILED)


def release_list(arguments: argparse.Namespace) -> Result:
    """List releases."""
    answer = _read(
        arguments,
        lambda s: s.get("/releases", limit=arguments.limit),
        lambda r: view.release_list(r, arguments.limit),
    )
    columns = {"release": "release", "population": "population", "outcome": "outcome", "previous": "previous",
               "cause": "cause", "at": "at", "reason": "reason"}  # fmt: skip
    return _listed(answer, columns, "cloud-aggregator release show RELEASE")


def release_show(arguments: argparse.Namespace) -> Result:
    """Show one release."""
    answer = _read(
        arguments,
        lambda s: s.get(f"/releases/{_quoted(arguments.name)}"),
        lambda r: view.release_show(r, arguments.name),
    )
    return Result(answer, next_command="cloud-aggregator release undo --dry-run")


def release_now(arguments: argparse.Namespace) -> Result:
    """Judge the training version and release it."""
    service = find_service(data_of(arguments))
    body = {"population": arguments.population, "dry_run": True}
    plan = service.send("POST", "/releases", body)
    if arguments.dry_run:
        text = f"would judge version {plan['version']} against {plan['previous']}, for {plan['devices']} devices"
        return Result(plan, text, "cloud-aggregator release now")
    _confirm(arguments, f"release version {plan['version']} of {plan['population']} to {plan['devices']} devices")
    answer = service.send("POST", "/releases", {**body, "dry_run": False}, timeout_s=GATE_TIMEOUT_S)
    if answer["outcome"] != "released":
        return Result(answer, next_command="cloud-aggregator release list", exit_code=ExitCode.REFUSED)
    return Result(answer, next_command="cloud-aggregator release list")


def release_undo(arguments: argparse.Namespace) -> Result:
    """Give earlier weights a new number."""
    service = find_service(data_of(arguments))
    body = {"population": arguments.population, "version": arguments.to, "dry_run": True}
    plan = service.send("POST", "/releases/undo", body)
    if arguments.dry_run:
        return Result(plan, plan["reason"], "cloud-aggregator release undo")
    _confirm(arguments, f"undo refresh {plan['previous']} of {plan['population']}")
    answer = service.send("POST", "/releases/undo", {**body, "dry_run": False})
    return Result(answer, next_command="cloud-aggregator release list")


def evaluation_ask(arguments: argparse.Namespace) -> Result:
    """Ask devices to evaluate a version."""
    service = find_service(data_of(arguments))
    body = {
        "population": arguments.population,
        "version": arguments.version,
        "devices": arguments.devices,
        "minimum_words": arguments.minimum_words,
        "most_words": arguments.most_words,
        "valid_seconds": arguments.valid_hours * 3600,
    }
    answer = service.send("POST", "/evaluations", body)
    return Result(answer, next_command=f"cloud-aggregator evaluation show {answer['evaluation']}")


def evaluation_list(arguments: argparse.Namespace) -> Result:
    """List evaluations."""
    answer = _read(
        arguments,
        lambda s: s.get("/evaluations", limit=arguments.limit),
        lambda r: view.evaluation_list(r, arguments.limit, int(time.time())),
    )
    columns = {"evaluation": "evaluation", "version": "version", "state": "state", "reports": "reports",
               "of": "devices_wanted", "words": "words", "top 3 %": "top3_percent", "+-": "top3_standard_error",
               "top 1 %": "top1_percent"}  # fmt: skip
    return _listed(answer, columns, "cloud-aggregator evaluation show EVALUATION")


def evaluation_show(arguments: argparse.Namespace) -> Result:
    """Show one evaluation's sums."""
    answer = _read(
        arguments,
        lambda s: s.get(f"/evaluations/{_quoted(arguments.name)}"),
        lambda r: view.evaluation_show(r, arguments.name, int(time.time())),
    )
    return Result(answer, next_command="cloud-aggregator evaluation list")


def schedule_show(arguments: argparse.Namespace) -> Result:
    """Show the schedule."""
    answer = _read(
        arguments,
        lambda s: s.get("/schedule", population=arguments.population),
        lambda r: view.schedule_show(r, arguments.population),
    )
    return Result(answer, next_command="cloud-aggregator schedule set CRON --time-zone NAME")


def schedule_set(arguments: argparse.Namespace) -> Result:
    """Set the schedule."""
    service = find_service(data_of(arguments))
    body = {"population": arguments.population, "cron": arguments.cron, "time_zone": arguments.time_zone}
    return Result(service.send("PUT", "/schedule", body), next_command="cloud-aggregator schedule show")


def broker_start(arguments: argparse.Namespace) -> None:
    """Start a broker and keep it."""
    import signal
    import threading

    from cloud_aggregator.adapters.broker import start_broker

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    handle = start_broker("", Path(arguments.data) / "broker", say=_say, port=arguments.port, prefer=arguments.prefer)
    try:
        sys.stdout.write(f"{handle.url}\n")
        sys.stdout.flush()
        _say(f"{handle.name} is running; stop with Ctrl-C")
        stop.wait()
    finally:
        handle.stop()


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
