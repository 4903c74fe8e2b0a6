"""`model-export keys ...` and `model-export offline ...`: the parser, and what each command does.

Only argparse is imported here; a command imports what it needs when it runs.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.parser import Parser, add_command
from cli_contract.result import Result

if TYPE_CHECKING:
    from model_export.bundle import Bundle
    from model_export.offline import OfflineVersion
    from model_export.trust_keys import Ceremony
    from model_export.trust_metadata import Standing

OFFLINE_ROLES = ("root", "targets", "offline")
ONLINE_ROLES = ("snapshot", "timestamp", "refreshes")


def add_trust_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Register the groups `keys` and `offline`."""
    group = commands.add_parser("keys", help="the offline keys of the signed repository").add_subparsers(
        title="commands", metavar="COMMAND", parser_class=Parser, required=True
    )
    init = add_command(group, "init", "make the holders' keys and the first metadata; see docs/trust.md", _init)
    _folder(init)
    init.add_argument("--holders", type=int, default=3, metavar="N", help="how many people hold keys (default: 3)")
    init.add_argument("--threshold", type=int, default=2, metavar="N", help="how many must sign (default: 2)")
    init.add_argument("--online", required=True, metavar="FILE", help="from `cloud-aggregator trust keys`")
    _valid(init)
    rotate = add_command(group, "rotate", "replace a key; the old one is revoked", _rotate)
    _folder(rotate)
    rotate.add_argument("--role", required=True, choices=OFFLINE_ROLES + ONLINE_ROLES, help="whose key")
    rotate.add_argument("--holder", type=int, metavar="N", help="which holder's, for root, targets and offline")
    rotate.add_argument("--public-key", metavar="HEX", help="the holder's new public key, made elsewhere with "
                        "`model-export keygen` (default: make one here)")  # fmt: skip
    rotate.add_argument("--online", metavar="FILE", help="for the online roles: from `cloud-aggregator trust keys`")
    _valid(rotate)
    renew = add_command(group, "renew", "the same content with a fresh expiry", _renew)
    _folder(renew)
    renew.add_argument("--role", choices=OFFLINE_ROLES, action="append", help="may be given again (default: all three)")
    _valid(renew)
    sign = add_command(group, "sign", "add one holder's signature to a metadata file", _sign)
    sign.add_argument("metadata", metavar="METADATA", help="like metadata/2.root.json, the others beside it")
    sign.add_argument("--key", required=True, metavar="PEM", help="the holder's private key")
    _folder(add_command(group, "show", "who holds what, what is signed, when it expires", _show))
    add = add_command(group, "add-template", "let the role `targets` name a bundle's template", _add_template)
    _folder(add)
    add.add_argument("--bundle", required=True, metavar="BUNDLE", help="a bundle's folder")
    add.add_argument("--replace", action="store_true", help="where the template is named already, as another export "
                     "signed it")  # fmt: skip
    _manifest_key(add)
    _valid(add)

    group = commands.add_parser("offline", help="bundles for devices without a network").add_subparsers(
        title="commands", metavar="COMMAND", parser_class=Parser, required=True
    )
    make = add_command(group, "make", "put a version and its signatures into one file", _offline_make)
    _folder(make)
    what = make.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", metavar="BUNDLE", help="an exported bundle's folder")
    what.add_argument("--version", metavar="DIR", help="from `cloud-aggregator release export`")
    make.add_argument("--population", required=True, metavar="NAME", help="for whose devices")
    make.add_argument("--output", required=True, metavar="FILE", help="the file to write; an older one is replaced")
    _manifest_key(make)
    _valid(make)
    check = add_command(group, "check", "check an offline bundle as a device does", _offline_check)
    check.add_argument("file", metavar="FILE", help="from `model-export offline make`")
    check.add_argument("--root", required=True, metavar="FILE", help="the root that devices pinned, like 1.root.json")


def _folder(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the ceremony's folder")


def _valid(parser: Parser) -> None:
    parser.add_argument("--valid-days", type=int, default=365, metavar="DAYS",
                        help="when what is made here expires (default: 365)")  # fmt: skip


def _manifest_key(parser: Parser) -> None:
    parser.add_argument("--manifest-key", metavar="HEX", help="the exporter's public key that you trust, 64 hex digits "
                        "(default: the one that lies in the bundle)")  # fmt: skip


def _init(arguments: argparse.Namespace) -> Result:
    from model_export import trust_metadata as meta
    from model_export.ceremony import found_ceremony
    from model_export.failures import command_errors

    with command_errors(), trust_errors():
        online = meta.read_online(Path(arguments.online).read_text("utf-8", "replace"))
        ceremony = found_ceremony(
            Path(arguments.folder), arguments.holders, arguments.threshold, online, _now(), _valid_s(arguments)
        )
        standings = [ceremony.standing(role) for role in OFFLINE_ROLES]
    return _told(
        ceremony, standings, f"model-export keys add-template {arguments.folder} --bundle BUNDLE",
        extra={"holders": arguments.holders, "threshold": arguments.threshold},
    )  # fmt: skip


def _rotate(arguments: argparse.Namespace) -> Result:
    from model_export import trust_metadata as meta
    from model_export.ceremony import replace_key
    from model_export.failures import command_errors
    from model_export.trust_keys import parse_public

    role = arguments.role
    if (role in ONLINE_ROLES) != (arguments.online is not None) or (role in ONLINE_ROLES) == (
        arguments.holder is not None
    ):
        raise _usage(f"the role {role} is rotated with {'--online' if role in ONLINE_ROLES else '--holder'} alone")
    with command_errors(), trust_errors():
        ceremony = _ceremony(arguments)
        fresh = None
        if arguments.online is not None:
            fresh = meta.read_online(Path(arguments.online).read_text("utf-8", "replace"))[role]
        elif arguments.public_key is not None:
            fresh = parse_public(arguments.public_key)
        standings = replace_key(ceremony, role, arguments.holder or 0, fresh, _now(), _valid_s(arguments))
    return _told(ceremony, standings, f"cloud-aggregator trust import {arguments.folder}")


def _renew(arguments: argparse.Namespace) -> Result:
    from model_export import trust_metadata as meta
    from model_export.failures import command_errors

    with command_errors(), trust_errors():
        ceremony = _ceremony(arguments)
        standings = []
        for role in arguments.role or OFFLINE_ROLES:
            data = meta.renewed(ceremony.check_complete(role), role, _now(), _valid_s(arguments))
            standings.append(ceremony.store(role, data))
    return _told(ceremony, standings, f"cloud-aggregator trust import {arguments.folder}")


def _sign(arguments: argparse.Namespace) -> Result:
    from model_export.failures import command_errors
    from model_export.signing_key import load_key
    from model_export.trust_keys import add_signature

    path = Path(arguments.metadata)
    with command_errors(), trust_errors():
        found = add_signature(path, load_key(Path(arguments.key)))
    return Result({"file": str(path), **_standing_view(found)}, found.told())


def _show(arguments: argparse.Namespace) -> Result:
    from cli_contract.result import table
    from model_export import trust_metadata as meta
    from model_export.failures import command_errors
    from model_export.trust_keys import at_hand

    with command_errors(), trust_errors():
        ceremony = _ceremony(arguments)
        keys = ceremony.keys_at_hand()
        items = []
        for role in meta.NAMED_BY:
            quorum = meta.quorum_of(ceremony.newest(meta.NAMED_BY[role]), role)
            for key in quorum.keys:
                items.append(
                    {"role": role, "holder": key.holder or None, "key": key.data.hex(), "key_id": key.id,
                     "threshold": quorum.threshold, "at_hand": at_hand(keys, key)}
                )  # fmt: skip
        standings = [ceremony.standing(role) for role in OFFLINE_ROLES]
        named = {role: meta.targets_of(ceremony.newest(role), role) for role in ("targets", "offline")}
    rows = [[i["role"], i["holder"] or "online", str(i["key_id"])[:12], i["threshold"], "yes" if i["at_hand"] else "no"]
            for i in items]  # fmt: skip
    files = [f"{s.told()}; expires {_date(s.expires)}" for s in standings]
    paths = [f"{path}  {sha256[:12]}" for found in named.values() for path, sha256 in sorted(found.items())]
    text = "\n".join([table(rows, ["role", "holder", "key", "threshold", "at hand"]), "", *files, "", *paths]).rstrip()
    data = {"items": items, "metadata": [_standing_view(s) for s in standings], "named": named}
    return Result(data, text)


def _add_template(arguments: argparse.Namespace) -> Result:
    from model_export import trust_metadata as meta
    from model_export.failures import command_errors
    from wire_contract.trust_roles import template_target

    with command_errors(), trust_errors():
        ceremony = _ceremony(arguments)
        bundle = _bundle(arguments)
        data, path = (
            ceremony.check_complete("targets"),
            template_target(bundle.manifest.population, bundle.manifest.template_sha256),
        )
        named = meta.names_target(data, "targets", path, bundle.signed_manifest)
        if not named and path in meta.targets_of(data, "targets") and not arguments.replace:
            raise _refused(
                f"the role targets names {path} already, as another export signed it: populations founded from that"
                " one would lose their protection", "say --replace if none is"
            )  # fmt: skip
        ceremony.put_target(path, bundle.signed_manifest)
        if not named:
            custom = {"version": bundle.manifest.version, "sha256": bundle.manifest.sha256}
            changed = meta.with_target(
                data, "targets", path, bundle.signed_manifest, custom, _now(), _valid_s(arguments)
            )
            ceremony.store("targets", changed)
        standings = [ceremony.standing("targets")]
    return _told(ceremony, standings, f"cloud-aggregator trust import {arguments.folder}", extra={"template": path})


def _offline_make(arguments: argparse.Namespace) -> Result:
    from model_export import trust_metadata as meta
    from model_export.failures import command_errors
    from model_export.offline import check_version, pack
    from model_export.trust_keys import write_whole
    from wire_contract.trust_roles import offline_target, template_target

    with command_errors(), trust_errors():
        ceremony = _ceremony(arguments)
        version = _version(arguments)
        manifest = check_version(version)
        if manifest.population != arguments.population:
            raise _refused(f"the version is of population {manifest.population}, got {arguments.population}")
        ceremony.check_complete("root")
        targets = ceremony.check_complete("targets")
        path = template_target(manifest.population, manifest.template_sha256)
        if not meta.names_target(targets, "targets", path, version.template):
            hint = f"model-export keys add-template {arguments.folder} --bundle BUNDLE"
            raise _refused(f"the role targets does not name {path}", hint)
        path, offline = offline_target(manifest.population), ceremony.newest("offline")
        if not meta.names_target(offline, "offline", path, version.signed_manifest):
            custom = {"version": manifest.version, "sha256": manifest.sha256}
            offline = ceremony.check_complete("offline")
            ceremony.store(
                "offline",
                meta.with_target(
                    offline, "offline", path, version.signed_manifest, custom, _now(), _valid_s(arguments)
                ),
            )
        # Below the threshold there is no bundle: the other holders sign, and this is run again.
        offline = ceremony.check_complete("offline")
        ceremony.put_target(path, version.signed_manifest)
        data = pack(ceremony.roots(), targets, offline, version)
        write_whole(Path(arguments.output), data)
    shown = {"file": arguments.output, "bytes": len(data), "population": manifest.population,
             "version": manifest.version, "offline_metadata": meta.version_of(offline, "offline")}  # fmt: skip
    return Result(shown, next_command=f"on the device: edge-runtime model install {arguments.output}")


def _offline_check(arguments: argparse.Namespace) -> Result:
    from model_export.failures import command_errors
    from model_export.offline import check_offline_bundle
    from wire_contract.offline_bundle import MAX_BUNDLE_BYTES
    from wire_contract.trust_roles import MAX_ROOT_BYTES

    with command_errors(), trust_errors():
        data = _limited(Path(arguments.file), MAX_BUNDLE_BYTES)
        _, manifest = check_offline_bundle(data, _limited(Path(arguments.root), MAX_ROOT_BYTES), _now())
    return Result({"file": arguments.file, "population": manifest.population, "version": manifest.version,
                   "sha256": manifest.sha256})  # fmt: skip


def _ceremony(arguments: argparse.Namespace) -> "Ceremony":
    from model_export.trust_keys import Ceremony

    return Ceremony(Path(arguments.folder))


def _told(
    ceremony: "Ceremony", standings: "list[Standing]", following: str, extra: "dict[str, object] | None" = None
) -> Result:
    items = [_standing_view(standing) for standing in standings]
    lines = [f"{s.told()}; expires {_date(s.expires)}" for s in standings]
    if not all(standing.complete for standing in standings):
        first = next(standing for standing in standings if not standing.complete)
        following = f"model-export keys sign {ceremony.metadata}/{first.version}.{first.role}.json --key HOLDERS_PEM"
    return Result({"folder": str(ceremony.folder), **(extra or {}), "items": items}, "\n".join(lines), following)


def _standing_view(standing: "Standing") -> "dict[str, object]":
    return {
        "metadata": f"{standing.version}.{standing.role}.json",
        "complete": standing.complete,
        "expires": _date(standing.expires),
        "signatures": [
            {
                "threshold": count.threshold,
                "have": len(count.by),
                "holders": [key.holder for key in count.by],
                "missing_holders": [key.holder for key in count.missing],
            }
            for count in standing.counts
        ],
    }


def _bundle(arguments: argparse.Namespace) -> "Bundle":
    from model_export.bundle import read_bundle
    from model_export.trust_keys import parse_public

    key = None if arguments.manifest_key is None else parse_public(arguments.manifest_key)
    return read_bundle(Path(arguments.bundle), key)


def _version(arguments: argparse.Namespace) -> "OfflineVersion":
    from model_export.offline import OfflineVersion, read_version

    if arguments.version is not None:
        return read_version(Path(arguments.version))
    bundle = _bundle(arguments)
    vocabulary = b"" if bundle.vocabulary is None else bundle.vocabulary.to_bytes()
    return OfflineVersion(bundle.signed_manifest, b"", bundle.model, vocabulary)


def _limited(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _refused(f"{path} has at most {limit} bytes")
    return data


@contextlib.contextmanager
def trust_errors() -> Iterator[None]:
    """Turn what breaks a rule of metadata or keys into `CommandError`."""
    from model_export.trust_metadata import BadMetadata

    try:
        yield
    except BadMetadata as e:
        raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="BAD_METADATA") from e


def _refused(message: str, hint: str = "") -> CommandError:
    return CommandError(message, exit_code=ExitCode.REFUSED, code="REFUSED", hint=hint)


def _usage(message: str) -> CommandError:
    return CommandError(message, exit_code=ExitCode.USAGE, code="USAGE")


def _valid_s(arguments: argparse.Namespace) -> int:
    days = arguments.valid_days
    if not 1 <= days <= 3650:
        raise _usage(f"--valid-days is 1 to 3650, got {days}")
    return int(days) * 86_400


def _now() -> int:
    return int(time.time())


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
