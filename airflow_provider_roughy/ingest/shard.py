"""One shard of a manifest: a task that uploads its own part of a plan, and then helps the other shards.

The order of work:

1. The recordings of its own part, in the order of the manifest: the oldest first.
2. Those of the other shards that nobody has claimed, from the end of each part, so that the owner of a part and a
   helper meet once.
3. Those of a shard whose worker has died. A shard that has nothing left to do waits until each other one has renewed
   its lease, or ended; if a lease expires instead, it resumes and reports what that shard has left.

Claims make this safe, as for any other two runs (``ledger/claims.py``); the order only decides how often two shards
meet. A shard whose upload has failed keeps the claim, so that only its retry tries the recording again.

The results of a shard are those of all recordings of its own part, as the ledger has them at its end, of those of other
parts that it has claimed, and of the parts of dead shards. So none is missing, whatever happens, and several shards may
have a result of one recording: ``read_report`` takes the final one (``observability/report.py``).
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from sys import intern
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyError,
    RoughyInsufficientCreditsError,
    RoughyLedgerEntryError,
    RoughyUnusableSourceError,
)
from airflow_provider_roughy.ingest.batch import Batch
from airflow_provider_roughy.ingest.compare import Standing, compare, read_versions
from airflow_provider_roughy.ingest.files import SourceFile
from airflow_provider_roughy.ingest.journal import Journal
from airflow_provider_roughy.ingest.manifest import Manifest, Planned, unquoted_path
from airflow_provider_roughy.ingest.planning import part_of
from airflow_provider_roughy.ingest.recorder import row_of
from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.ingest.shares import help_order, portion_of, portions, shard_of
from airflow_provider_roughy.ingest.trees import find_again
from airflow_provider_roughy.ingest.upload import UploadItem
from airflow_provider_roughy.ledger import ClaimOwner, Progress, Result, Snapshot, Version
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.transfer.progress import bytes_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_provider_roughy.ledger import Ledger, LegacyIndex
    from airflow_provider_roughy.ledger.lease import StoredLease
    from airflow_provider_roughy.transfer.pool import FedPool

#: Seconds for which the recordings of one tick are compared with the ledger.
_TICK_SECONDS = 1.0
#: Recordings that are compared with the ledger at once.
_CHUNK = 200
#: Seconds between two lists of the ledger's names, which show how far all shards are.
_LIST_SECONDS = 60.0
#: The same while other shards are helped. The pause between two lists is at least this many times as long as a list.
_HELP_LIST_SECONDS, _MIN_PAUSE_FACTOR = 1.0, 10
#: Seconds between two polls of the assets that are processed, while others are uploaded.
_POLL_SECONDS = 10.0
#: Seconds between two checks of the leases of the other shards, and between two renewals of a shard that checks.
_WATCH_SECONDS = 2.0
#: The number of a version from which on Roughy has all bytes, if nothing went wrong: claimed, uploading, sent.
_SENT_VERSION = 3


class Shard(Batch):
    """One try of one shard. Everything happens within :meth:`running`.

    :param manifest: The manifest; ``None`` after a wait in the triggerer, where it is not needed.
    :param shard: The number of this shard, from 0.
    :param shards: How many shards there are.
    :param siblings: The runs of all shards.
    :param source_conn_id: The Airflow connection of the storage of the recordings.
    :param options: See :class:`Batch`.
    """

    ledger: Ledger

    def __init__(
        self,
        *args: Any,
        manifest: Manifest | None,
        shard: int,
        shards: int,
        siblings: Sequence[ClaimOwner] = (),
        source_conn_id: str | None = None,
        **options: Any,
    ) -> None:
        owner, ledger = options["owner"], options["ledger"]
        self.journal = Journal(owner, ledger)
        super().__init__(*args, recorder=self.journal, planned=True, **options)
        self._shard = shard
        self._shards = shards
        #: The other shards: the n-th task is taken for the n-th one, as in ``expand(shard=list(range(8)))``.
        self._siblings = {n: sibling for n, sibling in enumerate(siblings) if not sibling.is_same_run(owner)}
        self._of_siblings = set(map(str, self._siblings.values()))
        self._source_conn_id = source_conn_id
        self._parts = [array("I") for _ in range(shards)]
        if manifest is not None:
            self._manifest = manifest
            for number in filter(manifest.is_planned, range(len(manifest))):
                self._parts[shard_of(manifest.key(number), shards)].append(number)
        self._snapshot = Snapshot(set(), {}, {}, set())
        self._legacy: LegacyIndex
        self._listed_at = self._polled_at = self._list_took = 0.0
        self._logged_at = time.monotonic()
        #: When the ledger was listed first, and the bytes of all shards by then, from which the rate is computed.
        self._first: tuple[float, int] | None = None
        self._work: Iterator[list[UploadItem] | None] = iter(())
        self._unconfirmed: list[str] = []
        #: The recordings that this try has uploaded, resumed or reported, or tried to.
        self._started: set[str] = set()
        #: The latest version of recordings that was read, and which run holds it.
        self._holders: dict[str, tuple[int, str]] = {}
        self._describe_claim = cache(ledger.describe_claim)
        #: The shards whose lease has expired.
        self._dead: set[str] = set()
        self._is_idle = False
        self._logged_help = False

    # ---- Uploads

    def ingest(self) -> None:
        """Upload what is missing. Assets that Roughy is still preparing are in :attr:`waiting`.

        :raises RoughyConfigurationError: If the ledger has begun to identify recordings by content since the plan, and
            some are not uploaded.
        :raises RoughyIngestError: If :meth:`stop` ended it.
        :raises RoughyError: The error that stopped it, unless the credits are used up.
        """
        self.journal.load()
        self._list()
        self._log_progress()
        self._legacy = self.ledger.legacy(self._snapshot)
        own = self._parts[self._shard]
        self._log.info(
            "Ingesting shard %s of %s: %s of its own, of %s in the manifest%s",
            self._shard,
            self._shards,
            counted(len(own), "recording"),
            f"{len(self._manifest):,}",
            f"; earlier tries have reported {len(self.journal.reported):,}" if self.journal.reported else "",
        )
        self._work = self._chunks()
        not_started = self._transfers.upload_fed(self._tick)
        self._started.difference_update(item.key for item in not_started)
        self._poll_all()
        unconfirmed = [self._waiting[id] for id in self._unconfirmed if id in self._waiting]
        self._transfers.confirm([item for item in unconfirmed if item.file is not None])
        for item in self._waiting.values():
            # Thousands may wait.
            item.file = None
        self._list()
        self._log_progress()
        self.journal.store(now=True)
        if self.fatal is not None and not isinstance(self.fatal, RoughyInsufficientCreditsError):
            raise self.fatal

    def _tick(self, pool: FedPool[UploadItem]) -> None:
        """Add recordings to the pool, and now and then poll assets, store results and list the ledger."""
        self._is_idle = pool.is_idle
        now = time.monotonic()
        while len(pool.left) < _CHUNK and not pool.is_closed and time.monotonic() - now < _TICK_SECONDS:
            try:
                items = next(self._work)
            except StopIteration:
                pool.finish()
                break
            if items is None:
                break
            pool.add(items)
        if now - self._polled_at >= _POLL_SECONDS:
            self._poll_all()
        self.journal.store()
        if now - self._logged_at >= _LIST_SECONDS:
            self._logged_at = now
            self._list(_LIST_SECONDS / 2)
            self._log_progress()

    def _chunks(self) -> Iterator[list[UploadItem] | None]:
        """Yield recordings to upload, in the order of work; ``None`` if there are none right now."""
        own = self._parts[self._shard]
        for start in range(0, len(own), _CHUNK):
            yield self._take(own[start : start + _CHUNK], sent=True)
        for other in help_order(self._shard, self._shards):
            # An earlier try may have claimed some of them.
            yield from self._help(self._parts[other], sent=self._is_retry, mine=True)
        yield from self._watch()

    def _help(
        self, part: Sequence[int], *, only: Sequence[int] | None = None, sent: bool = False, mine: bool = False
    ) -> Iterator[list[UploadItem] | None]:
        """Yield the recordings of a part, one portion after another, each from its end.

        :param part: The recordings.
        :param only: The portions; by default all, this shard's own first.
        :param sent: Whether to include recordings whose bytes Roughy may have already.
        :param mine: Whether to leave out those that another run has sent, and to end after a failure.
        """
        by_portion: list[list[int]] = [[] for _ in range(self._shards)]
        for number in reversed(part):
            by_portion[portion_of(self._manifest.key(number), self._shards)].append(number)
        for portion in portions(self._shard, self._shards) if only is None else only:
            numbers = by_portion[portion]
            for start in range(0, len(numbers), _CHUNK):
                chunk = numbers[start : start + _CHUNK]
                if mine and self._has_failed():
                    return
                if any(self._is_wanted(number, sent=sent) for number in chunk):
                    # Others work on them, too.
                    self._list(_HELP_LIST_SECONDS)
                    yield self._take(chunk, sent=sent, mine=mine, helping=True)

    def _has_failed(self) -> bool:
        """Return whether an upload has failed here: the worker may be at fault, and helps no shard that is alive."""
        return any(result.status == Status.INTERRUPTED for result in list(self.journal.not_final.values()))

    def _replace_dead(self) -> Iterator[list[UploadItem] | None]:
        """Yield what dead shards have left. Each shard that is at work takes its own portion first."""
        own, *others = portions(self._shard, self._shards)
        self._list()
        for part in self._parts:
            yield from self._help(part, only=[own], sent=True)
        until = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < until:
            yield None
        self._list()
        for part in self._parts:
            yield from self._help(part, only=others, sent=True)

    def _take(
        self, numbers: Sequence[int], *, sent: bool, mine: bool = False, helping: bool = False
    ) -> list[UploadItem]:
        """Return which recordings of a chunk are to be uploaded; resume or report those that a dead shard has left.

        :param numbers: The recordings.
        :param sent: See :meth:`_help`.
        :param mine: See :meth:`_help`.
        :param helping: Whether this shard's own part is done.
        """
        snapshot, journal = self._snapshot, self.journal
        items: dict[str, UploadItem] = {}
        for planned in self._manifest.read([n for n in numbers if self._is_wanted(n, sent=sent)]):
            items[planned.key] = self._item(planned)
            journal.reported.discard(planned.key)
            journal.held.discard(planned.key)
            self._started.add(planned.key)
        if not items:
            return []
        part = part_of(snapshot, items)
        versions = read_versions(self.ledger, part.open)
        standings = compare(self.ledger, self._owner, items, part, self._legacy, versions, is_retry=False)
        self._act(self.ledger, self._without_held(standings, items, mine=mine), items)
        if any(item.version is None for item in items.values()):
            self._check_identity()
        if helping and items and not self._logged_help:
            self._logged_help = True
            self._log.info("Helping the other shards, as the recordings of this one are uploaded or under way")
        return list(items.values())

    def _check_identity(self) -> None:
        """Refuse to upload what the ledger has begun to identify by content since the plan."""
        if self._manifest.header.by_content is False and self.ledger.identifies_by_content():
            raise RoughyConfigurationError(
                f"Manifest {self._manifest.uri} identifies recordings by location, and since it was planned the ledger "
                "has begun to identify them by content: plan again, as the same bytes could be paid for twice. This "
                "shard starts no more uploads"
            )

    def _without_held(
        self, standings: Iterable[Standing], items: dict[str, UploadItem], *, mine: bool
    ) -> Iterator[Standing]:
        """Yield what this shard acts on, without the recordings that other shards hold, and remember each holder.

        So a version, which never changes, is read once.
        """
        for standing in standings:
            version = standing.version
            if version is not None:
                holder = intern(str(version.owner))
                self._holders[standing.key] = (version.n, holder)
                others = mine and version.n >= _SENT_VERSION and not version.owner.is_same_run(self._owner)
                if others or self._is_of_sibling(holder):
                    items.pop(standing.key, None)
                    self.journal.held.add(standing.key)
                    continue
            yield standing

    def _is_wanted(self, number: int, *, sent: bool) -> bool:
        """Return whether something may be left to do about a recording, by the names in the ledger."""
        key, snapshot = self._manifest.key(number), self._snapshot
        if key in self._started and key not in self.journal.held:
            return False
        n = snapshot.open.get(key, 0)
        known, holder = self._holders.get(key, (0, ""))
        if n and n == known and self._is_of_sibling(holder):
            return False
        if key in snapshot.done:
            return bool(n) and sent and key not in self.journal.reported
        return sent or n < _SENT_VERSION

    def _is_of_sibling(self, holder: str) -> bool:
        """Return whether another shard that is not dead holds a claim, and so reports the recording."""
        return holder in self._of_siblings and holder not in self._dead

    def _item(self, planned: Planned) -> UploadItem:
        identity = planned.identity(self._manifest.header)
        if identity.key != planned.key:
            raise RoughyUnusableSourceError(
                f"Manifest {self._manifest.uri} cannot be used: the key {planned.key} of {planned.uri} does not match "
                "its other fields: it was edited. Write it again: clear the task that planned it"
            )
        conn_id = self._source_conn_id or self._manifest.header.source_conn_id
        quoted = None if planned.path is None else unquoted_path(planned.path)
        fs, path = find_again(planned.uri, conn_id, quoted)
        canonical = planned.uri if planned.name is None else planned.name
        file = SourceFile(
            planned.uri,
            canonical,
            path,
            size=planned.size_bytes,
            versions=planned.versions,
            storage=planned.storage,
            fs=fs,
        )
        return UploadItem(file, planned.key, identity.to_dict(), planned.uri, credits=planned.credits, log=self._log)

    # ---- Other shards

    def _watch(self) -> Iterator[list[UploadItem] | None]:
        """Wait until each other shard has renewed its lease, ended or died; yield what dead ones have not finished."""
        undecided = set(self._siblings.values())
        written: dict[ClaimOwner, float] = {}
        checked_at = float("-inf")
        # Not while uploads are under way here: a shard that dies during them must still be noticed.
        while undecided or not self._is_idle:
            if not self._is_idle or not undecided or time.monotonic() - checked_at < _WATCH_SECONDS:
                yield None
                continue
            checked_at = time.monotonic()
            # The others may wait for this shard as it waits for them.
            self.renew_lease()
            dead = []
            owners = list(undecided)
            for owner, lease in zip(owners, self.ledger.each(self.ledger.read_lease, owners), strict=True):
                if lease is None or not lease.until:
                    # The shard has not started, or has ended and released its lease.
                    undecided.remove(owner)
                elif _is_dead(lease):
                    undecided.remove(owner)
                    self._dead.add(str(owner))
                    dead.append(owner)
                elif lease.written > written.setdefault(owner, lease.written):
                    undecided.remove(owner)
            if not dead:
                yield None
                continue
            self._log.warning(
                "Resuming the uploads of %s: the lease expired, because the worker died or was stopped",
                ", ".join(map(str, dead)),
            )
            yield from self._replace_dead()

    # ---- Results

    def _poll_all(self) -> None:
        verdicts = self._poll(list(self._waiting))
        self._unconfirmed = [id for id, verdict in verdicts.items() if verdict.state == "pending_upload"]
        self.settle(list(verdicts.values()))
        self._polled_at = time.monotonic()

    def rows(self, manifest: Manifest | None, error: BaseException | None) -> Iterator[RecordingResult]:
        """Yield the results of the recordings of this shard's part, and of those of others that it has claimed.

        A shard whose worker has died may write no results, so that all others have those of its part, too.

        :param manifest: The manifest; ``None`` if it was replaced or cannot be read again: then only the recordings
            that this run has claimed.
        :param error: The error that has ended this try.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        journal, snapshot = self.journal, self.ledger.snapshot()
        self.results.already_ingested.clear()
        planned = None if manifest is None else {manifest.key(n): n for n in range(len(manifest))}
        stored = set()
        for key, result in journal.rows():
            is_newer = key in journal.not_final and key not in snapshot.done
            if (planned is None or key in planned) and not is_newer:
                stored.add(key)
                yield result
        if manifest is None or planned is None:
            yield from (result for key, result in journal.not_final.items() if key not in stored)
            return
        dead = {n for n, owner in self._siblings.items() if _is_dead(self.ledger.read_lease(owner))}
        self._dead = {str(self._siblings[n]) for n in dead}
        parts = {self._shard, *dead}
        numbers = [
            n
            for key, n in planned.items()
            if key not in stored and (key in journal.not_final or shard_of(key, self._shards) in parts)
        ]
        for start in range(0, len(numbers), _CHUNK):
            chunk = list(manifest.read(numbers[start : start + _CHUNK]))
            done = [each.key for each in chunk if each.key in snapshot.done]
            results = dict(zip(done, self.ledger.each(self._find_result, done), strict=True))
            latest = {each.key: n for each in chunk if not results.get(each.key) and (n := snapshot.open.get(each.key))}
            versions = read_versions(self.ledger, latest)
            for each in chunk:
                is_own = shard_of(each.key, self._shards) == self._shard
                row = self._row(each, results.get(each.key) or versions.get(each.key), error, is_own=is_own)
                if is_own or not row.elsewhere or shard_of(each.key, self._shards) in dead:
                    yield row

    def _row(
        self,
        planned: Planned,
        entry: Result | Version | RoughyError | None,
        error: BaseException | None,
        *,
        is_own: bool,
    ) -> RecordingResult:
        """Return the result of a recording.

        :param planned: The recording.
        :param entry: What the ledger has of it: its result, or its latest version if it is not done; or why that cannot
            be read.
        :param error: The error that has ended this try.
        :param is_own: Whether it belongs to this shard.
        """
        noted, me = self.journal.not_final.get(planned.key), str(self._owner)
        if isinstance(entry, Result):
            is_earlier = entry.owner != me and entry.owner not in self._of_siblings
            if is_earlier and is_own:
                self.results.count_ingested(entry.state)
            return replace(row_of(entry), earlier=is_earlier, elsewhere=entry.owner != me)
        holder = str(entry.owner) if isinstance(entry, Version) else None
        if noted is not None and (holder == me or (is_own and not self._is_of_sibling(holder or ""))):
            return noted
        status, reason, elsewhere = Status.DEFERRED, "not started", not is_own
        if isinstance(entry, RoughyError):
            status, reason = Status.INTERRUPTED, str(entry)
        elif holder == me:
            status, reason = Status.INTERRUPTED, "its upload was not finished: a retry resumes it"
        elif holder is not None and holder in self._dead:
            status, reason = Status.INTERRUPTED, "the worker that was uploading it has died: a retry uploads it"
        elif holder is not None:
            reason, elsewhere = self._describe_claim(holder), not is_own or holder in self._of_siblings
        elif stopped := error or self.fatal:
            reason += f": the batch was stopped: {stopped}"
        return RecordingResult(
            planned.uri,
            status,
            reason=reason,
            size_bytes=planned.size_bytes,
            credits=planned.credits,
            retryable=status is Status.INTERRUPTED,
            elsewhere=elsewhere,
        )

    def _find_result(self, key: str) -> Result | RoughyError | None:
        try:
            return self.ledger.find_result(key)
        except RoughyLedgerEntryError as error:
            return error

    def kept(self, ids: Iterable[str]) -> dict[str, Any]:
        """Return what :meth:`restore` needs after a wait in the triggerer, as plain JSON.

        :param ids: The assets that are waited for.
        """
        return {"waiting": {id: _to_keep(self._waiting[id]) for id in ids}}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Wait for the assets that :meth:`kept` returned.

        :param kept: What it returned.
        """
        for id, row in kept.get("waiting", {}).items():
            item = UploadItem.from_dict({**row, "asset_id": id})
            item.identity = row["identity"]
            item.version = Version(
                item.key, row["n"], self._owner, item.name, item.identity, row["state"], id, since=row["since"]
            )
            self._waiting[id] = item

    # ---- Progress

    def _list(self, seconds: float = 0.0) -> None:
        """List the names in the ledger, unless that was done in the last seconds."""
        started = time.monotonic()
        if seconds and started - self._listed_at < max(seconds, _MIN_PAUSE_FACTOR * self._list_took):
            return
        self._snapshot = self.ledger.snapshot()
        self._listed_at = time.monotonic()
        self._list_took = self._listed_at - started

    def _log_progress(self) -> None:
        """Log how far all shards are, by the names in the ledger."""
        manifest, snapshot = self._manifest, self._snapshot
        files = sent = total = 0
        for number in range(len(manifest)):
            key, size = manifest.key(number), manifest.size(number)
            total += size
            if key in snapshot.done or snapshot.open.get(key, 0) >= _SENT_VERSION:
                files += 1
                sent += size
        now = time.monotonic()
        if self._first is None:
            self._first = (now, sent)
            return
        since, sent_before = self._first
        seconds = max(now - since, 0.001)
        rate = (sent - sent_before) / seconds
        time_left = f"{_in_words((total - sent) / rate)} left" if rate else "no bytes yet"
        self._log.info(
            "All shards have uploaded %s of %s, %s of %s (%.0f %%), %s/s, %s",
            f"{files:,}",
            counted(len(manifest), "file"),
            bytes_in_words(sent),
            bytes_in_words(total),
            100 * sent / total if total else 100,
            bytes_in_words(rate),
            "all sent" if sent == total else time_left,
        )


def _is_dead(lease: StoredLease | None) -> bool:
    """Return whether a shard has started, and neither ended nor renewed its lease in time."""
    return lease is not None and bool(lease.until) and not lease.is_alive(time.time())


def _in_words(seconds: float) -> str:
    """Return a time that is left in words, such as ``3.2 h``."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _to_keep(item: UploadItem) -> dict[str, Any]:
    version = item.version
    state, since = (Progress.SENT, None) if version is None else (version.state, version.since)
    n = 0 if version is None else version.n
    return {**item.to_dict(), "identity": item.identity, "n": n, "state": state, "since": since}
