"""What people do in a key ceremony: found the repository's keys, and replace one.

Everything lands in the folder of `trust_keys.Ceremony`; the metadata are made by `trust_metadata`.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from model_export import trust_metadata as meta
from model_export.trust_keys import Ceremony
from model_export.trust_metadata import BadMetadata, PublicKey, Quorum, Standing
from wire_contract import trust_roles as roles

MAX_HOLDERS = 16


def found_ceremony(
    folder: Path, holders: int, threshold: int, online: Mapping[str, bytes], now: int, valid_s: int = meta.VALID_S
) -> Ceremony:
    """Make every holder's keys and version 1 of the metadata in a folder that is new or empty.

    `online`: the service's public keys by role. Raises `FileExistsError` where something is in the folder: no key is
    ever overwritten; `BadMetadata` for numbers that make no quorum.
    """
    if not 1 <= threshold <= holders <= MAX_HOLDERS:
        raise BadMetadata(f"1 <= threshold <= holders <= {MAX_HOLDERS}, got {threshold} of {holders}")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(17, "holds something already", str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made beside and renamed: half a ceremony would leave keys that no metadata name.
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = Ceremony(fresh)
        quorums = {
            role: Quorum(tuple(made.make_key(role, holder, 1) for holder in range(1, holders + 1)), threshold)
            for role in roles.OFFLINE_ROLES
        }
        made.store(roles.ROOT, meta.first_root(quorums[roles.ROOT], quorums[roles.TARGETS], online, now, valid_s))
        made.store(roles.TARGETS, meta.first_targets(quorums[roles.OFFLINE], online, now, valid_s))
        made.store(roles.OFFLINE, meta.first_offline(now, valid_s))
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return Ceremony(folder)


def replace_key(
    ceremony: Ceremony, role: str, holder: int, public: bytes | None, now: int, valid_s: int = meta.VALID_S
) -> list[Standing]:
    """Revoke a role's key and name a new one instead; return how far each file that this needs is signed.

    `public`: the new key; None makes one in the holder's folder here. `holder` 0 means the online service. What a role
    had signed with the old key is signed again by its new quorum, under the next version number.
    Raises `BadMetadata` while an earlier change lacks signatures, or for a holder who has no key of the role.
    """
    above = meta.NAMED_BY[role]
    before = {each: ceremony.check_complete(each) for each in {above, role} & {*roles.OFFLINE_ROLES}}
    quorum = meta.quorum_of(before[above], role)
    old = meta.holder_key(quorum, role, holder)
    version = meta.version_of(before[above], above) + 1
    new = ceremony.make_key(role, holder, version) if public is None else PublicKey(public, holder)
    standings = [ceremony.store(above, meta.with_key(before[above], role, old, new, now, valid_s))]
    if role != above and role in before:
        standings.append(ceremony.store(role, meta.renewed(before[role], role, now, valid_s)))
    return standings
