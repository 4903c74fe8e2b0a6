"""`cloud-aggregator trust ...`, `release history` and `release export`: the parser, and what each command does.

All of them work beside a running service: it reads keys and metadata where they lie, and announces what changed within
the hour. Only argparse and the contract of commands are imported here.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli_contract.parser import Parser, add_command
from cli_contract.result import Result

if TYPE_CHECKING:
    from cloud_aggregator.adapters.database import SqlDatabase

ONLINE = ("snapshot", "timestamp", "refreshes")
Run = Callable[[argparse.Namespace], Result | None]


def add_trust_commands(group: "argparse._SubParsersAction[Parser]", default_data: str) -> None:
    """Register the commands of the group `trust`."""
    keys = _add(group, "keys", "make the service's keys for the online roles, and show their public halves", _keys,
                default_data)  # fmt: skip
    keys.add_argument("--output", required=True, metavar="FILE", help="the file for `model-export keys init --online`")
    keys.add_argument("--fresh", action="append", default=[], choices=ONLINE, metavar="ROLE",
                      help="make a new key of a role, to replace one; may be given again")  # fmt: skip
    bring = _add(group, "import", "take over what holders signed: root, targets, offline", _import, default_data)
    bring.add_argument("folder", metavar="DIR", help="the folder of `model-export keys`, without the holders' keys")
    _add(group, "show", "what the signed repository holds, and whom it protects", _show, default_data)


def add_release_commands(group: "argparse._SubParsersAction[Parser]", default_data: str) -> None:
    """Register `history` and `export` in the group `release`."""
    history = _add(group, "history", "what each refresh was made of, as it was signed", _history, default_data)
    history.add_argument("--population", metavar="NAME", help="of which population (default: all)")
    history.add_argument("--limit", type=int, default=20, metavar="N", help="at most N, 0 for all (default: 20)")
    export = _add(group, "export", "write the files of the announced refresh, for an offline bundle", _export,
                  default_data)  # fmt: skip
    export.add_argument("folder", metavar="DIR", help="a folder that is new or empty")
    export.add_argument("--population", metavar="NAME", help="of which population (default: the only one)")


def _add(group: "argparse._SubParsersAction[Parser]", name: str, summary: str, run: Run, default_data: str) -> Parser:
    def told(arguments: argparse.Namespace) -> Result | None:
        from cloud_aggregator import commands

        return commands.told(run, arguments)

    parser = add_command(group, name, summary, told)
    parser.add_argument(
        "--data", default=default_data, metavar="DIR", help=f"the data directory (default: ./{default_data})"
    )
    return parser


def _keys(arguments: argparse.Namespace) -> Result:
    from cloud_aggregator.adapters.key_files import ONLINE_FOLDER, OnlineKeyFiles
    from wire_contract.envelope import public_bytes

    # Before `init` too: these keys are apart from the service's own.
    files = OnlineKeyFiles(Path(arguments.data) / ONLINE_FOLDER)
    public = {}
    for role in ONLINE:
        held = None if role in arguments.fresh else files.newest(role)
        public[role] = public_bytes(held or files.make(role, os.urandom)).hex()
    Path(arguments.output).write_text(json.dumps({"format": 1, "keys": public}, indent=1) + "\n", encoding="utf-8")
    following = f"model-export keys rotate DIR --role {arguments.fresh[0]} --online {arguments.output}" if (
        arguments.fresh) else f"model-export keys init DIR --online {arguments.output}"  # fmt: skip
    return Result({"file": arguments.output, "keys": public}, next_command=following)


def _import(arguments: argparse.Namespace) -> Result:
    from cloud_aggregator import commands, trust
    from cloud_aggregator.adapters.ceremony_files import read_ceremony
    from cloud_aggregator.adapters.key_files import load_keys

    data = commands.data_of(arguments)
    offered = read_ceremony(Path(arguments.folder))
    with _database(data) as database, database.transaction() as records:
        done = trust.import_ceremony(records, load_keys(data), offered, int(time.time()))
    lines = [f"{role} {version}" for role, version in done.versions.items()]
    lines += [f"refresh of {population} signed" for population in done.populations]
    shown = {"versions": dict(done.versions), "populations": list(done.populations)}
    return Result(shown, "\n".join(lines), "cloud-aggregator trust show")


def _show(arguments: argparse.Namespace) -> Result:
    from cli_contract.result import table
    from cloud_aggregator import commands, lineage_view

    data = commands.data_of(arguments)
    with _database(data) as database, database.reading() as records:
        answer = lineage_view.trust_view(records, int(time.time()))
    if not answer["repository"]:
        return Result(answer, "there is no signed repository: devices trust this service's own key",
                      "cloud-aggregator trust keys --output online.json")  # fmt: skip
    rows = [[i["role"], i["version"], i["expires"], f"{i['threshold']} of {len(i['keys'])}"] for i in answer["items"]]
    lines = [table(rows, ["role", "version", "expires", "keys"]), ""]
    for each in answer["populations"]:
        how = "protected" if each["protected"] else "not protected: `targets` do not name its template"
        lines.append(f"{each['population']}: {how}")
    return Result(answer, "\n".join([*lines, *answer["troubles"]]).rstrip())


def _history(arguments: argparse.Namespace) -> Result:
    from cli_contract.result import table
    from cloud_aggregator import commands, lineage_view
    from cloud_aggregator.errors import InvalidSetting

    if arguments.limit < 0:
        raise InvalidSetting(f"--limit is 0 or more, got {arguments.limit}")
    data = commands.data_of(arguments)
    with _database(data) as database, database.reading() as records:
        answer = lineage_view.release_history(records, arguments.population, arguments.limit)
    rows = [
        [
            item["version"],
            item["outcome"],
            item["made_by"] or "-",
            " ".join(str(parent["version"]) for parent in item["parents"]) or "-",
            "-" if item["updates"] is None else item["updates"],
            "-" if item["examples"] is None else item["examples"],
            " ".join(f"{name}={value:g}" for name, value in item["evaluation"].items()) or "-",
            (item["code_sha256"] or "-")[:12],
            item["at"],
        ]
        for item in answer["items"]
    ]
    header = ["version", "outcome", "made by", "parents", "updates", "examples", "evaluation", "code", "at"]
    return Result(answer, table(rows, header), "cloud-aggregator release show RELEASE")


def _export(arguments: argparse.Namespace) -> Result:
    from cloud_aggregator import commands, operator_view
    from cloud_aggregator.adapters.blobs import FileBlobs
    from cloud_aggregator.adapters.release_files import write_release
    from cloud_aggregator.errors import NotFound

    data = commands.data_of(arguments)
    blobs = FileBlobs(data / "blobs")
    with _database(data) as database, database.reading() as records:
        name = operator_view.one_population(records, arguments.population)
        population = next(each for each in records.populations() if each.population == name)
        announced = records.announcement(name, "refresh")
    if announced is None:
        raise NotFound(f"population {name} announces no refresh")
    manifest = write_release(Path(arguments.folder), blobs, announced.signed_manifest, population.signed_template)
    shown = {"folder": arguments.folder, "population": name, "version": manifest.version, "sha256": manifest.sha256}
    following = f"model-export offline make CEREMONY --version {arguments.folder} --population {name} --output FILE"
    return Result(shown, next_command=following)


@contextmanager
def _database(data: Path) -> "Iterator[SqlDatabase]":
    from cloud_aggregator import commands
    from cloud_aggregator.serving import open_database

    database = open_database(data, commands.settings_of(data))
    try:
        yield database
    finally:
        database.close()
