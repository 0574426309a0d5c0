"""What the ledger has about each recording, and what this run does about it.

Entries of 0.2 are read as what they are today: one that is done in 0.2 as a result, one that it has started as a
version 0, which is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyClaimedError, RoughyLedgerEntryError, RoughyLedgerError
from airflow_provider_roughy.ingest.decide import Action, decide
from airflow_provider_roughy.ingest.identity import (
    VERSION_NAMES,
    Identity,
    canonical_location,
    canonical_project,
    version_of,
)
from airflow_provider_roughy.ingest.upload import UploadItem
from airflow_provider_roughy.ledger.entries import ClaimOwner, Result, Version, original_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from airflow_provider_roughy.ledger import Ledger, LegacyEntry, LegacyIndex, Snapshot

#: Errors of the ledger that concern one recording.
OF_ONE_ENTRY = (RoughyLedgerEntryError, RoughyClaimedError)


@dataclass(slots=True)
class Standing:
    """A recording that was found, or that the ledger has.

    :param key: Its key in the ledger.
    :param item: The recording, if it was found.
    :param version: Its latest version, if it is open.
    :param state: The state of its result, such as ``ready``; empty if it is not done.
    :param old: Its entry of 0.2, if it has no newer one.
    :param action: What this run does about it.
    :param error: Why what the ledger has about it cannot be read.
    """

    key: str
    item: UploadItem | None
    version: Version | None = None
    state: str = ""
    old: LegacyEntry | None = None
    action: Action = Action.IGNORE
    error: RoughyLedgerError | None = None

    @property
    def asset_id(self) -> str | None:
        """Its asset, if it is known from the names in the ledger without reading its result."""
        return (
            self.version.asset_id if self.version is not None else self.old.asset_id if self.old is not None else None
        )

    def as_item(self) -> UploadItem:
        """Return the recording as the ledger has it."""
        version = self.version
        if version is None:
            return UploadItem(None, self.key, {}, self.key)
        return UploadItem(None, self.key, version.identity, version.source)


def compare(
    ledger: Ledger,
    owner: ClaimOwner,
    items: Mapping[str, UploadItem],
    snapshot: Snapshot,
    legacy: LegacyIndex,
    versions: Mapping[str, Version | RoughyLedgerError],
    *,
    is_retry: bool,
) -> Iterator[Standing]:
    """Yield each recording that was found or that the ledger has, with what this run does about it.

    :param ledger: The ledger.
    :param owner: This try of this run.
    :param items: The recordings that were found, by key.
    :param snapshot: The names of the ledger's objects.
    :param legacy: The ledger's entries of 0.2.
    :param versions: What :func:`read_versions` returned.
    :param is_retry: Whether this run had an earlier try.
    :raises RoughyLedgerError: If the ledger cannot be read.
    """
    reported = ledger.reported(owner) if is_retry else set()
    is_alive = cache(ledger.is_alive)
    for standing in _standings(items, versions, reported, snapshot, legacy):
        version, old = standing.version, standing.old
        holder = str(version.owner) if version is not None else old.owner if old is not None else ""
        mine = holder == str(owner)
        standing.action = decide(
            done=bool(standing.state),
            open=version is not None,
            reported=standing.key in reported or (mine and version is None),
            mine=mine,
            same_task=version is not None and version.owner.task_key == owner.task_key,
            owner_alive=version is not None and not mine and is_alive(holder),
            found=standing.item is not None,
        )
        yield standing


def _standings(
    items: Mapping[str, UploadItem],
    versions: Mapping[str, Version | RoughyLedgerError],
    reported: Collection[str],
    snapshot: Snapshot,
    legacy: LegacyIndex,
) -> Iterator[Standing]:
    matched = set()
    keys = [*items, *sorted((versions.keys() | reported) - items.keys())]
    for key in keys:
        standing = Standing(key, items.get(key))
        if key in snapshot.done:
            standing.state = snapshot.problems.get(key, "ready")
        version = versions.get(key)
        if isinstance(version, RoughyLedgerError):
            standing.error = version
        else:
            standing.version = version
        is_again = standing.item is not None and original_key(standing.item.identity) is not None
        if standing.item is not None and not is_again and version is None and not standing.state and len(legacy):
            try:
                old = standing.item.find_legacy(legacy)
            except RoughyLedgerEntryError as error:
                standing.error = error
            else:
                matched.add(getattr(old, "key", None))
                _add_legacy(standing, old)
        yield standing
    for old in legacy:
        if not old.done and old.key not in matched:
            key = legacy_identity(old).key
            if key not in versions and key not in snapshot.done:
                standing = Standing(key, None)
                _add_legacy(standing, old)
                yield standing


def read_versions(ledger: Ledger, latest: Mapping[str, int]) -> dict[str, Version | RoughyLedgerError]:
    """Read the open versions, by key; of one that cannot be read, return the error.

    :param ledger: The ledger.
    :param latest: The highest version of each recording.
    :raises RoughyLedgerError: If the ledger cannot be read.
    """

    def read(key_and_n: tuple[str, int]) -> Version | RoughyLedgerError | None:
        try:
            return ledger.read_version(*key_and_n)
        except OF_ONE_ENTRY as error:
            return error

    pairs = sorted(latest.items())
    read_all = zip(pairs, ledger.each(read, pairs), strict=True)
    return {key: version for (key, _), version in read_all if version is not None}


def use_names_of(known: Collection[str], items: dict[str, UploadItem]) -> None:
    """Give a file with several names (hard links) the name under which the ledger has it.

    :param known: The keys that the ledger has.
    :param items: The recordings, by key.
    """
    for key, item in list(items.items()):
        for name in item.file.other_names if item.file is not None else ():
            identity = Identity(**{**item.identity, "uri": name})
            if key not in known and identity.key in known:
                del items[key]
                item.key, item.identity = identity.key, identity.to_dict()
                items[item.key] = item
                break


# ---- Entries of 0.2


def has_legacy(item: UploadItem, legacy: LegacyIndex) -> bool:
    """Return whether 0.2 has an entry about a recording, which may be damaged.

    :param item: The recording, which was found.
    :param legacy: The entries of 0.2.
    """
    try:
        return item.find_legacy(legacy) is not None
    except RoughyLedgerEntryError:
        return True


def legacy_identity(old: LegacyEntry) -> Identity:
    """Return the identity that a recording of 0.2 has today, as far as 0.2 kept it."""
    identity = old.wanted
    versions = {name: str(identity[name]) for name in VERSION_NAMES if identity.get(name)}
    return Identity(
        canonical_location(str(identity["uri"])),
        identity["size"],
        version_of(versions),
        canonical_project(str(identity.get("project_id"))),
        identity.get("language"),
    )


def legacy_result(old: LegacyEntry) -> Result:
    """Return the result that 0.2 has stored."""
    state = {"refused": "rejected"}.get(old.state, old.state)
    return Result(old.key, old.source, old.wanted, old.owner, state, old.asset_id, old.reason, old.wanted["size"])


def _add_legacy(standing: Standing, old: LegacyEntry | None) -> None:
    standing.old = old
    if old is None:
        return
    if old.done:
        standing.state = old.state
        return
    task, _, run = old.owner.partition(", run ")
    identity = legacy_identity(old).to_dict()
    standing.version = Version(standing.key, 0, ClaimOwner(task, run), old.source, identity, old.state, old.asset_id)
