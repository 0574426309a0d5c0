"""A batch of recordings in one task: what is new, what it costs, uploads side by side, and what came of each.

A batch is a run over what :func:`~airflow_provider_roughy.recordings.find_recordings` has found. With a ledger it takes
up what earlier runs have left, and does nothing twice:

=================================  ====================================================================================
The ledger says                    This run
=================================  ====================================================================================
nothing                            claims it and uploads it
ended, by another run              leaves it alone: it is known
ended, by an earlier try of it     reports it again
open, its run is alive             leaves it to that run
open, this run's or a dead run's   asks Roughy: sends what is missing, waits for it, or reports what became of it
unpaid, by an earlier run          asks Roughy: reports it if it has become ready or failed
=================================  ====================================================================================

Trouble of one recording is its own. Trouble of all (the key, the credits, Roughy away) ends the uploads once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_roughy.abreast import Abreast, OnProgress, Stopped
from airflow_provider_roughy.api import MAX_UPLOAD_BYTES, MIN_UPLOAD_BYTES
from airflow_provider_roughy.durable import DurableUpload
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyClaimedError,
    RoughyConfigurationError,
    RoughyError,
    RoughyIngestError,
    RoughyInsufficientCreditsError,
    RoughyLedgerEntryError,
    RoughyLedgerError,
    RoughyNotFoundError,
    RoughySourceError,
    RoughyUnsupportedMediaError,
    RoughyUntrustedUrlError,
    RoughyUnusableSourceError,
    api_error,
)
from airflow_provider_roughy.ledger import ENDED, Entry, Lease, Ledger, Names, entry_key
from airflow_provider_roughy.lifecycle import ASSET, Arrival, Outcome, Verdict, counted
from airflow_provider_roughy.memory import Claim, LockedMemory, Owner, PartOfMemory
from airflow_provider_roughy.polling import look_at_batch, run_here
from airflow_provider_roughy.progress import Newest, bytes_in_words
from airflow_provider_roughy.source import find_source

if TYPE_CHECKING:
    from airflow_provider_roughy.durable import Memory
    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.lifecycle import OnPendingPayment
    from airflow_provider_roughy.recordings import Found, Recording

T = TypeVar("T")
U = TypeVar("U")

#: Recordings in a row, none that went well among them, whose trouble is taken for that of all.
_ALL_FAIL = 5
#: Trouble that all others would meet as well.
_OF_ALL = (
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyInsufficientCreditsError,
    RoughyLedgerEntryError,
    RoughyLedgerError,
    RoughyUntrustedUrlError,
)

_log = logging.getLogger(__name__)


@dataclass
class Report:
    """What came of a batch: ids and names, which fit into XCom.

    :param ready: Assets that are ready.
    :param pending_payment: Assets that the credits did not cover.
    :param failed: Assets that failed or are gone, and why.
    :param refused: Recordings that Roughy or this package would not take, and why.
    :param postponed: Recordings that are left to a later run, and why.
    :param unfinished: Recordings or assets of which something went wrong that a new try may mend, and what.
    :param known: How many recordings other runs have taken care of.
    :param sources: The recording of each asset.
    """

    ready: list[str] = field(default_factory=list)
    pending_payment: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    postponed: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    known: int = 0
    sources: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    def counts(self) -> str:
        """Count what came of how many, for the log."""
        return ", ".join(f"{number:,} {name}" for name, number in self.numbers().items()) or "nothing to do"

    def numbers(self) -> dict[str, int]:
        """Return how many recordings came to which outcome, save those that none came to."""
        numbers = {name: value if isinstance(value, int) else len(value) for name, value in asdict(self).items()}
        del numbers["sources"]
        return {name: number for name, number in numbers.items() if number}

    def table(self) -> Iterator[str]:
        """Yield a line for each recording that something came of."""
        for state, ids in (("ready", self.ready), ("pending_payment", self.pending_payment)):
            for id in ids:
                yield f"{state:<16}{self.sources.get(id, '')}  asset {id}"
        for id, reason in self.failed.items():
            yield f"{'failed':<16}{self.sources.get(id, '')}  {reason}"
        for name in ("refused", "postponed", "unfinished"):
            for source, reason in getattr(self, name).items():
                yield f"{name:<16}{self.sources.get(source, source)}  {reason}"


@dataclass(eq=False, slots=True)
class _Item:
    """A recording on its way.

    :param recording: The file; ``None`` if it was not found this time.
    :param wanted: What makes it this recording.
    :param claim: Its entry in the ledger, if there is one.
    :param asset_id: Its asset, once it has one.
    :param credits: What it costs, if that was looked at.
    """

    recording: Recording | None
    wanted: dict[str, Any]
    claim: Claim | None = None
    asset_id: str | None = None
    credits: int | None = None

    @property
    def key(self) -> str:
        return entry_key(self.wanted)

    @property
    def name(self) -> str:
        return str(self.wanted["uri"])

    @property
    def size(self) -> int:
        return int(self.wanted["size"])


class Batch:
    """One try of one run over a batch of recordings. :meth:`running` is around all of it.

    :param hook: Talks to Roughy.
    :param owner: Whose the claims are.
    :param project_id: The project of new assets.
    :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
    :param on_pending_payment: Whether unpaid assets are waited for (``"wait"``).
    :param ledger: What remembers across runs; ``None`` to remember nothing.
    :param store: What remembers across tries without a ledger: Airflow's task state store.
    :param parallel: How many uploads at once.
    :param log: Where to say what happens.
    """

    def __init__(
        self,
        hook: RoughyHook,
        *,
        owner: Owner,
        project_id: str,
        language: str | None = None,
        on_pending_payment: OnPendingPayment = "fail",
        ledger: Ledger | None = None,
        store: Memory | None = None,
        parallel: int = 4,
        log: Any = _log,
    ) -> None:
        self._hook = hook
        self._owner = owner
        self._project_id = project_id
        self._language = language
        self._on_pending_payment = on_pending_payment
        self._ledger = ledger
        self._store = None if store is None else LockedMemory(store)
        self._parallel = parallel
        self._log = log
        self._lease: Lease | None = None
        #: Whether an earlier try of this run has been here.
        self._begun = False
        self.report = Report()
        #: What is to be uploaded, in this order.
        self.todo: list[_Item] = []
        #: What has an asset and no end yet, by the asset.
        self._under_way: dict[str, _Item] = {}
        #: What ended the uploads of all, if something did.
        self.trouble: RoughyError | None = None
        #: Whether something was waited for in vain.
        self.timed_out = False
        self._transfers: Abreast[_Item] | None = None
        self._running: dict[_Item, DurableUpload] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold on to this run's claims while the body runs.

        :raises RoughyLedgerError: If the ledger cannot be used; nothing was created then.
        """
        if self._ledger is None:
            yield
            return
        self._ledger.check()
        self._begun = self._ledger.alive_until(str(self._owner)) is not None
        with self._ledger.lease(str(self._owner)) as self._lease:
            yield

    # ---- What there is to do

    def take_stock(self, found: Found, *, stable_for: float = 0.0, look_only: bool = False) -> None:
        """Find out what is new, what is known, and what earlier tries and runs have left.

        :param found: The recordings.
        :param stable_for: Leave out what was changed in so many seconds.
        :param look_only: Whether to leave alone what earlier tries and runs have left.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        items: dict[str, _Item] = {}
        for recording in found.recordings:
            item = _Item(recording, self._wanted(recording))
            if recording.problem is not None:
                (self.report.unfinished if recording.passing else self.report.refused)[item.name] = recording.problem
            elif stable_for and recording.changed is not None and time.time() - recording.changed < stable_for:
                self.report.postponed[item.name] = f"still being written? It was changed less than {stable_for:g} s ago"
            else:
                items[item.key] = item
        if self._ledger is not None:
            left = self._compare(self._ledger, items)
            if look_only:
                for entry in left:
                    # It has been paid for, or will be by whoever goes on with it.
                    self.report.known += entry.asset_id is not None and items.pop(entry.key, None) is not None
            else:
                self._take_up(left, items)
        self.todo = list(items.values())
        if found.left_out:
            self._log.info("Left out %s that the pattern does not match", counted(found.left_out, "file"))

    def _wanted(self, recording: Recording) -> dict[str, Any]:
        return {**recording.fingerprint, "project_id": self._project_id, "language": self._language}

    def _compare(self, ledger: Ledger, items: dict[str, _Item]) -> list[Entry]:
        """Take out of the items what the ledger knows.

        :returns: What is open in it, and this run's to see to.
        """
        names = ledger.names(items.keys())
        left: list[Entry] = []
        ended: dict[str, Entry] = {}
        alive: dict[str, bool] = {}
        for entry in self._read(ledger, names, names.open, items):
            item, mine = items.get(entry.key), entry.owner == str(self._owner)
            if entry.state in ENDED:
                # Whoever wrote its end died before the mark was removed.
                ended[entry.key] = ledger.close(entry)
            elif mine:
                left.append(entry)
            elif item is not None or entry.series == self._owner.series:
                if entry.owner not in alive:
                    alive[entry.owner] = ledger.is_alive(entry.owner)
                if not alive[entry.owner]:
                    left.append(entry)
                elif item is not None:
                    self._leave_to_its_run(items.pop(entry.key), entry)
        done = sorted(names.known - names.open)
        # Only an earlier try of this run can have left ends that are this run's to report.
        ended |= {entry.key: entry for entry in self._read(ledger, names, done if self._begun else [], items)}
        for entry in ended.values():
            if entry.owner == str(self._owner):
                self._report_end(entry)
                items.pop(entry.key, None)
        for key in [*done, *ended]:
            self.report.known += items.pop(key, None) is not None
        return left

    def _read(self, ledger: Ledger, names: Names, keys: Iterable[str], items: dict[str, _Item]) -> Iterator[Entry]:
        """Read entries. One that is broken concerns its own recording only, which is left out."""

        def read(key: str) -> Entry | RoughyLedgerEntryError | None:
            try:
                return ledger.read(key, names.generations.get(key, 1))
            except RoughyLedgerEntryError as error:
                return error

        keys = sorted(keys)
        for key, entry in zip(keys, self._each(read, keys), strict=True):
            if isinstance(entry, Entry):
                yield entry
            elif entry is not None:
                self._log.warning("%s", entry)
                if (item := items.pop(key, None)) is not None:
                    self.report.unfinished[item.name] = str(entry)

    def _leave_to_its_run(self, item: _Item, entry: Entry) -> None:
        if entry.asset_id is not None:
            self.report.known += 1
        else:
            self.report.postponed[item.name] = f"{entry.owner} is about to upload it"

    def _take_up(self, left: list[Entry], items: dict[str, _Item]) -> None:
        """Decide about entries that nobody else will see to.

        :param left: They; this run's, or those of runs that are dead.
        :param items: What was found; what is to be sent stays in there.
        """
        verdicts = self._look([entry.asset_id for entry in left if entry.asset_id is not None])
        unpaid = 0
        for entry in left:
            mine = entry.owner == str(self._owner)
            item = items.get(entry.key) or _Item(None, entry.wanted)
            item.claim = self._claim(entry.wanted, **{"entry" if mine else "takes_over": entry})
            item.asset_id = entry.asset_id
            verdict = verdicts.get(entry.asset_id or "")
            if entry.asset_id is None or self._is_unsent(entry, verdict):
                # What was found is sent. Of what was not, a dead run's is left to whoever finds it.
                if item.recording is None and mine:
                    self._discard(item)
                continue
            items.pop(entry.key, None)
            if verdict is None:
                self.report.unfinished[item.name] = f"asset {entry.asset_id} could not be looked at"
                continue
            if not mine and entry.state == verdict.state == "pending_payment":
                unpaid += 1
                continue
            if item.claim is not None and item.claim.take():
                self._under_way[verdict.id] = item
                self.report.sources[verdict.id] = item.name
                self.settle([verdict])
            else:
                self.report.known += 1
        if unpaid:
            self._log.warning("%s of earlier runs are still not paid for", counted(unpaid, "asset"))
            self.report.known += unpaid

    def _is_unsent(self, entry: Entry, verdict: Verdict | None) -> bool:
        """Tell whether Roughy waits for the bytes, or has forgotten an upload that was never completed."""
        if verdict is None:
            return False
        return verdict.state == "pending_upload" or (verdict.outcome is Outcome.REFUSED and entry.state == "uploading")

    def _discard(self, item: _Item) -> None:
        """Cancel the upload of a recording that was changed, or is there no longer."""
        assert item.claim is not None
        if item.asset_id is not None:
            try:
                asset = self._hook.get_asset(item.asset_id)
                if Arrival.of(asset) is Arrival.ARRIVED:
                    return
                self._hook.cancel_upload(asset)
            except RoughyNotFoundError:
                pass
            except RoughyError as err:
                self._log.warning("The upload of %s could not be cancelled: %s", item.name, err)
                return
            self._log.info("Cancelled the upload of %s, which was changed or is there no longer", item.name)
        item.claim.drop()

    def plan(self, *, max_credits: int | None, credits_if_unknown: int) -> None:
        """Find out what the uploads cost, and postpone what does not fit, the oldest going first.

        :param max_credits: The most that this run may cost, and never more than the balance; ``None`` for no limit.
        :param credits_if_unknown: What a recording is taken to cost whose headers do not tell how long it is.
        :raises RoughyError: If the balance cannot be read.
        """
        from airflow_provider_roughy import probe

        def seconds(item: _Item) -> float | None:
            assert item.recording is not None
            try:
                return probe.seconds_of(find_source(item.recording.location, conn_id=item.recording.conn_id))
            except RoughySourceError as err:  # The upload will tell, too.
                self._log.warning("%s", err)
                return None

        lengths = list(self._each(seconds, self.todo, at_once=self._parallel))
        prices = [credits_if_unknown if length is None else probe.credits_for(length) for length in lengths]
        for item, price in zip(self.todo, prices, strict=True):
            item.credits = price
        balance = self._hook.get_credit_balance()
        self._log.info(
            "%s to upload, for %s in all; the balance is %s",
            counted(len(self.todo), "recording"),
            counted(sum(prices), "credit"),
            f"{balance:,}",
        )
        if None in lengths:
            self._log.warning(
                "The headers of %s do not tell how long it is; it counts for %s each",
                counted(lengths.count(None), "recording"),
                counted(credits_if_unknown, "credit"),
            )
        if max_credits is None:
            return
        left, fits = min(max_credits, balance), []
        for item, price in zip(self.todo, prices, strict=True):
            if price > left:
                self.report.postponed[item.name] = f"it costs {counted(price, 'credit')}, and {max(left, 0):,} are left"
            else:
                left -= price
                fits.append(item)
        self.todo = fits

    def postpone(self, reason: str) -> None:
        """Leave all that is to be uploaded to a later run."""
        for item in self.todo:
            price = "" if item.credits is None else f", {counted(item.credits, 'credit')}"
            self.report.postponed[item.name] = f"{reason}{price}"
        self.todo = []

    # ---- Uploads

    def upload(self) -> None:
        """Upload what there is to do, and look at it once. What has come to no end yet is in :attr:`waiting`.

        :raises RoughyIngestError: If :meth:`stop` left some of it undone.
        :raises RoughyError: Trouble of all, save that the credits are used up. The ledger has what there is to know.
        """
        self._send_all(self.todo, self._send)
        verdicts = self._look(list(self._under_way))
        self.settle(list(verdicts.values()))
        lost = [self._under_way[id] for id, verdict in verdicts.items() if verdict.state == "pending_upload"]
        if lost:
            self._log.warning("Roughy does not show all bytes of %s; asking again", counted(len(lost), "upload"))
            self._send_all(lost, self._send_again)
        if self.trouble is not None and not isinstance(self.trouble, RoughyInsufficientCreditsError):
            raise self.trouble

    @property
    def waiting(self) -> list[str]:
        """The assets that have come to no end yet."""
        return list(self._under_way)

    def stop(self) -> None:
        """Let go of the uploads under way, for a signal handler: a later try goes on with them, if it can."""
        if self._transfers is not None:
            self._transfers.stop()
        for upload in list(self._running.values()):
            upload.abandon()

    def _send_all(self, items: list[_Item], send: Callable[[_Item, OnProgress], None]) -> None:
        if not items:
            return
        # Here, and not by several threads at once: it asks Airflow for the connection.
        self._hook.get_conn()
        transfers = self._transfers = Abreast(items, send, self._take_trouble)
        total = sum(item.size for item in items)
        shown: Newest[dict[str, Any]] = Newest(self._show_progress)

        def tell(seconds: float, sent: int) -> None:
            rate = sent / seconds if seconds else 0.0
            left = f"{(total - sent) / rate:.0f} s left" if rate else "nothing sent yet"
            self._log.info(
                "%s of %s files done, %s of %s (%.0f %%), %s/s, %s%s",
                f"{transfers.done:,}",
                f"{len(items):,}",
                bytes_in_words(sent),
                bytes_in_words(total),
                100 * sent / total if total else 100,
                bytes_in_words(rate),
                left,
                f"; {len(self.report.refused):,} refused, {len(self.report.unfinished):,} interrupted"
                if self.report.refused or self.report.unfinished
                else "",
            )
            shown.put({"files": transfers.done, "of": len(items), "bytes": sent, "of_bytes": total})

        try:
            transfers.run(self._parallel, tell)
        except Stopped:
            # Airflow 3 only calls on_kill(), and takes what comes of the task then for its result.
            raise RoughyIngestError(
                f"The task was killed when {transfers.done:,} of {counted(len(items), 'file')} were done",
                outcomes=self.report.to_dict(),
            ) from None
        finally:
            self._transfers = None
        for item in transfers.left:
            self.report.postponed[item.name] = f"not begun: {self.trouble}"

    def _show_progress(self, progress: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.set("roughy_progress", progress)

    def _send(self, item: _Item, on_progress: OnProgress) -> None:
        """Upload a recording."""
        assert item.recording is not None
        if self._ledger is not None:
            item.claim = item.claim or self._claim(item.wanted)
            if not item.claim.take():
                self.report.postponed[item.name] = "another run was faster"
                return
        try:
            source = find_source(item.recording.location, conn_id=item.recording.conn_id)
            if source.fingerprint != item.recording.fingerprint:
                raise RoughySourceError(f"Source {source.uri} was changed since it was found")
            upload = self._running[item] = DurableUpload(
                self._hook.client,
                source,
                memory=self._memory_of(item),
                confirm=False,
                on_progress=on_progress,
                log=_Quiet(self._log),
            )
            asset_id = item.asset_id = upload.run(self._project_id, self._language)
        except RoughyError as error:
            self._leave_entry(item, error)
            raise
        finally:
            self._running.pop(item, None)
        self._under_way[asset_id] = item
        self.report.sources[asset_id] = item.name

    def _send_again(self, item: _Item, on_progress: OnProgress) -> None:
        """Have an upload confirmed that Roughy has acknowledged and does not show."""
        assert item.recording is not None
        assert item.asset_id is not None
        try:
            source = find_source(item.recording.location, conn_id=item.recording.conn_id)
            upload = DurableUpload(self._hook.client, source, on_progress=on_progress, log=_Quiet(self._log))
            upload.resume(item.asset_id)
        except RoughyError:
            del self._under_way[item.asset_id]
            raise

    def _memory_of(self, item: _Item) -> Memory | None:
        if item.claim is not None:
            return item.claim
        return None if self._store is None else PartOfMemory(self._store, item.key)

    def _claim(self, wanted: dict[str, Any], **entry: Entry) -> Claim:
        assert self._ledger is not None
        return Claim(self._ledger, self._owner, wanted, lease=self._lease, **entry)

    def _leave_entry(self, item: _Item, error: RoughyError) -> None:
        """Leave the entry of a recording that did not arrive as the next run should find it."""
        if item.claim is None or item.claim.entry is None:
            return
        too_odd = not MIN_UPLOAD_BYTES <= item.size <= MAX_UPLOAD_BYTES
        if isinstance(error, RoughyUnsupportedMediaError) or too_odd:
            item.claim.end("refused", str(error))
        elif error.final and item.claim.entry.asset_id is None and not isinstance(error, RoughyLedgerError):
            # Nothing was made, and a file that cannot be read today may be tomorrow.
            item.claim.drop()

    def _take_trouble(self, item: _Item, error: RoughyError, failed_in_a_row: int) -> bool:
        """Take note of a recording that did not arrive, and say whether it is trouble of all.

        :param failed_in_a_row: Recordings whose trouble may pass, this one among them, with none that went well since.
        """
        if isinstance(error, RoughyClaimedError):
            self.report.postponed[item.name] = str(error)
            return False
        if isinstance(error, (RoughyUnusableSourceError, RoughyUnsupportedMediaError)):
            self.report.refused[item.name] = str(error)
            return False
        if isinstance(error, RoughyInsufficientCreditsError):
            self.report.postponed[item.name] = str(error)
        else:
            self.report.unfinished[item.name] = str(error)
        # Whatever refuses one new asset (no such project, say) refuses all.
        refuses_all = isinstance(error, RoughyApiError) and error.final and error.request == "POST /v1/assets"
        if not (refuses_all or isinstance(error, _OF_ALL) or failed_in_a_row >= _ALL_FAIL):
            return False
        if self.trouble is None:
            self._log.error("No more uploads are begun: %s", error)
            self.trouble = error
        return True

    # ---- Outcomes

    def _look(self, ids: list[str]) -> dict[str, Verdict]:
        """Look at assets once; those that could not be looked at are left out.

        :raises RoughyError: If Roughy refuses to tell, for good.
        """
        if not ids:
            return {}
        verdicts = run_here(lambda: look_at_batch(self._hook, ASSET, ids))
        for verdict in verdicts.values():
            if verdict.outcome is Outcome.REFUSED:
                with suppress(RoughyNotFoundError):
                    verdict.raise_for_failure()
        return verdicts

    def to_dict(self) -> dict[str, Any]:
        """Return what is to be known after a wait elsewhere, as plain JSON."""
        trouble = self.trouble.to_dict() if isinstance(self.trouble, RoughyApiError) else None
        return {
            "report": self.report.to_dict(),
            "trouble": trouble,
            "waiting": self.waiting,
            "timed_out": self.timed_out,
        }

    def resume(self, before: Mapping[str, Any], waiting: Iterable[str]) -> None:
        """Take up the batch after a wait elsewhere.

        :param before: What :meth:`to_dict` returned before it.
        :param waiting: What was waited for, perhaps a part.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        report = self.report = Report(**before.get("report", {}))
        self.trouble = api_error(**before["trouble"]) if before.get("trouble") else None
        self.timed_out = before.get("timed_out", False)
        # Without it, all was waited for at once.
        ids = dict.fromkeys(before.get("waiting", waiting))
        self._under_way = {id: _Item(None, {"uri": report.sources.get(id, "")}, asset_id=id) for id in ids}
        if self._ledger is None:
            return
        ledger = self._ledger
        names = ledger.names(())
        for entry in self._read(ledger, names, names.open, {}):
            if entry.asset_id in ids and entry.owner == str(self._owner):
                claim = self._claim(entry.wanted, entry=entry)
                self._under_way[entry.asset_id or ""] = _Item(None, entry.wanted, claim, asset_id=entry.asset_id)

    def settle(self, verdicts: Sequence[Verdict]) -> None:
        """Take note of what came of assets; what is still waited for stays under way.

        :param verdicts: On each.
        :raises RoughyLedgerError: If the ledger cannot be written; what is reported by then is not lost.
        """
        ends: list[tuple[Claim, str, str | None]] = []
        for verdict in verdicts:
            if not verdict.is_final(self._on_pending_payment):
                continue
            item = self._under_way.pop(verdict.id)
            state, reason = verdict.state or "", None
            if verdict.outcome is Outcome.SUCCEEDED:
                self.report.ready.append(verdict.id)
            elif verdict.outcome is Outcome.PAYMENT_REQUIRED:
                self.report.pending_payment.append(verdict.id)
            else:
                state, reason = self._report_failure(verdict)
            if item.claim is not None and state:
                ends.append((item.claim, state, reason))

        def write(end: tuple[Claim, str, str | None]) -> None:
            claim, state, reason = end
            if state in ENDED:
                claim.end(state, reason)
            else:
                claim.leave(state)

        list(self._each(write, ends))

    def _report_failure(self, verdict: Verdict) -> tuple[str, str | None]:
        try:
            verdict.raise_for_failure()
        except RoughyNotFoundError as error:
            reason = self.report.failed[verdict.id] = f"It is no longer at Roughy: {error}"
            return "gone", reason
        except Exception as error:
            if verdict.outcome is Outcome.FAILED:
                reason = self.report.failed[verdict.id] = str(error)
                return "failed", reason
            self.report.unfinished[verdict.id] = str(error)
            self.timed_out = self.timed_out or verdict.outcome is Outcome.TIMED_OUT
        return "", None

    def _report_end(self, entry: Entry) -> None:
        """Report what an earlier try of this run has found."""
        if entry.asset_id is not None:
            self.report.sources[entry.asset_id] = entry.source
        if entry.state == "ready" and entry.asset_id:
            self.report.ready.append(entry.asset_id)
        elif entry.state == "refused":
            self.report.refused[entry.source] = entry.reason or ""
        elif entry.asset_id:
            self.report.failed[entry.asset_id] = entry.reason or entry.state

    def wait_elsewhere(self, until: float) -> None:
        """Stay alive for others until the wait has ended, wherever it takes place.

        :param until: In seconds since the epoch.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if self._lease is not None:
            self._lease.extend(until)

    def _each(self, do: Callable[[T], U], values: Sequence[T], *, at_once: int | None = None) -> Iterator[U]:
        """Do something for each of many values, and yield what it returned, in their order.

        :param at_once: For how many at once; by default as many as suits the ledger.
        """
        if at_once is None:
            at_once = 1 if self._ledger is None else self._ledger.at_once
        if at_once == 1:
            yield from map(do, values)
            return
        with ThreadPoolExecutor(at_once, thread_name_prefix="roughy-each") as pool:
            yield from pool.map(do, values)


class _Quiet:
    """A log for one of many uploads: what goes well is told of all together.

    :param log: That of all.
    """

    def __init__(self, log: Any) -> None:
        self._log = log

    def info(self, message: str, *args: Any) -> None:
        self._log.debug(message, *args)

    def debug(self, message: str, *args: Any) -> None:
        self._log.debug(message, *args)

    def warning(self, message: str, *args: Any) -> None:
        self._log.warning(message, *args)
