"""The device's settings: HOME/settings.toml, read by `cli_contract.settings`. Each key: docs/settings.md.

population = "keyboard"
server = "http://127.0.0.1:8080"      # where to enrol
runtime = "auto"                      # litert, tflite, numpy, or whichever is installed
[policy]
profile = "mains"                     # no battery to report
time_zone = "Europe/Berlin"
night_start = "23:00"
night_end = "06:00"
[ledger]
most_a_week = 3                       # takes part three times in seven days at most
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.settings import Reading, read_settings_file, settings_or_error
from edge_runtime.ledger import MOST_KEPT_ROWS, OwnTerms
from edge_runtime.policy_settings import PolicySettings
from wire_contract.messages import MAX_CHUNK_BYTES, Name

SETTINGS_FILE = "settings.toml"

Population = Annotated[Name, msgspec.Meta(description="a name of 1 to 40 small letters, digits and hyphens")]
KeyHex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z", description="64 hexadecimal digits, or empty")]
Address = Annotated[
    str, msgspec.Meta(pattern=r"^https?://[^\s/]+(/\S*)?\Z", description="an address like http://HOST:PORT")
]
Folder = Annotated[str, msgspec.Meta(min_length=1, max_length=4096, description="the path of a folder")]
FileOrNone = Annotated[str, msgspec.Meta(max_length=4096, description="the path of a file, or empty")]
Label = Annotated[str, msgspec.Meta(max_length=80)]
Days = Annotated[float, msgspec.Meta(ge=0.0, le=3650.0)]


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How often the owner lets the device take part, and how long it keeps what it did (`ledger`).

    `minimum_days` lie between two participations in a task, `most_a_week` (0: no such limit) counts those in all tasks
    over seven days. Both add to what a task's plan asks for; neither shortens it.
    """

    minimum_days: Days = 0.0
    most_a_week: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    kept_days: Annotated[float, msgspec.Meta(ge=30.0, le=3650.0)] = 400.0
    kept_rows: Annotated[int, msgspec.Meta(ge=100, le=MOST_KEPT_ROWS)] = 1000

    def as_terms(self) -> OwnTerms:
        """Return the terms that `ledger` reads."""
        return OwnTerms(self.minimum_days, self.most_a_week, self.kept_days, self.kept_rows)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a person may set on a device. `aggregator_key` (64 hex) pins the key before the first use.

    `chunk_bytes`: smaller for a weak link; a chunk should pass within a quarter of the keepalive, 15 s.
    `held_out_share` of the sentences is never trained on: what a fine-tune and an evaluation are judged by.
    `ballast_bytes` are kept free for the state's last writes on a full disk. `broker_ca` and `server_ca`: the
    certificates that a broker or a server with TLS is checked against (empty: the system's). `trainer`: "in-process"
    keeps a training in the agent's own process, for who embeds the agent. `spread_s`: over so many seconds the
    devices of a fleet connect after a night window opens, each at its own moment. `personal`: whether it makes a copy
    of the model that is fitted to this person, on the device alone.
    """

    population: Population = "keyboard"
    server: Address = "http://127.0.0.1:8080"
    token_file: FileOrNone = ""
    label: Label = ""
    aggregator_key: KeyHex = ""
    server_ca: FileOrNone = ""
    broker_ca: FileOrNone = ""
    runtime: Literal["auto", "litert", "tflite", "numpy"] = "auto"
    trainer: Literal["child", "in-process"] = "child"
    sensors_root: Folder = "/"
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1024, le=MAX_CHUNK_BYTES)] = 32 * 1024
    held_out_share: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.1
    ballast_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 8 * 1024 * 1024
    personal: bool = True
    spread_s: Annotated[float, msgspec.Meta(ge=0.0, le=7200.0)] = 900.0
    policy: PolicySettings = PolicySettings()
    ledger: LedgerSettings = LedgerSettings()


def settings_path(home: Path) -> Path:
    """Return where a home's settings stand."""
    return home / SETTINGS_FILE


def read_settings(home: Path) -> Settings:
    """Return a home's settings; the defaults where there is no file. Raises `CommandError` (exit 2)."""
    return settings_or_error(reading_of(home), str(settings_path(home)))


def reading_of(home: Path) -> Reading[Settings]:
    """Return what a home's settings file says, its mistakes included; the defaults where there is none.

    Raises `CommandError` (exit 2) where there is one that cannot be read.
    """
    path = settings_path(home)
    try:
        return read_settings_file(path, Settings)
    except CommandError as e:
        # A link to nowhere is a settings file that somebody meant.
        if e.exit_code == ExitCode.NOT_FOUND and not path.is_symlink():
            return Reading(Settings(), (), {})
        raise
