"""A batch of recordings in one task: find the new ones, price them, upload them in parallel, and report each result.

``discover.py`` finds the files, ``identity.py`` identifies them, ``compare.py`` compares them with the ledger,
``decide.py`` decides what this run does about each, ``transfers.py`` uploads, under claims of ``ledger/claims.py``, and
``recorder.py`` records the results. This module calls all of them.

An error in one recording does not affect the rest. An error that affects all of them (rejected key, no credits, Roughy
down) stops the batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import MAX_UPLOAD_BYTES, MIN_UPLOAD_BYTES
from airflow_provider_roughy.event_loop import run_here
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyError,
    RoughyInsufficientCreditsError,
    RoughyLedgerEntryError,
    RoughyLedgerError,
    RoughyNotFoundError,
    api_error,
)
from airflow_provider_roughy.ingest.again import ingest_again, resume_started
from airflow_provider_roughy.ingest.compare import (
    Standing,
    compare,
    has_legacy,
    legacy_identity,
    legacy_result,
    read_versions,
    use_names_of,
)
from airflow_provider_roughy.ingest.content import identify_all
from airflow_provider_roughy.ingest.decide import Action
from airflow_provider_roughy.ingest.files import Problem
from airflow_provider_roughy.ingest.plan import beyond_budget, log_plan, price
from airflow_provider_roughy.ingest.recorder import Recorder
from airflow_provider_roughy.ingest.result import BatchResults, RecordingResult, Status
from airflow_provider_roughy.ingest.transfers import Transfers
from airflow_provider_roughy.ingest.upload import FORGET_IMPORT, RELEASED, UploadItem
from airflow_provider_roughy.ingest.verdicts import is_gone, is_unsent, result_of_verdict
from airflow_provider_roughy.ledger import LEASE_SECONDS, claims
from airflow_provider_roughy.ledger.claims import Done, Held
from airflow_provider_roughy.ledger.entries import ENDED, ClaimOwner, Progress, Result, Version
from airflow_provider_roughy.lifecycle import ASSET, Arrival, Outcome, Verdict
from airflow_provider_roughy.logs import Log, counted
from airflow_provider_roughy.polling import poll_batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.ingest.discover import Discovered
    from airflow_provider_roughy.ingest.files import SourceFile
    from airflow_provider_roughy.ledger import Lease, Ledger
    from airflow_provider_roughy.lifecycle import OnPendingPayment
    from airflow_provider_roughy.transfer.resumable import StateStore

#: How many names a log line lists.
_MAX_NAMES = 5

_log = logging.getLogger(__name__)


class Batch:
    """One try of one run over a batch of recordings. Everything happens within :meth:`running`.

    :param hook: Talks to Roughy.
    :param owner: This try of this run.
    :param project_id: The project of new assets.
    :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
    :param on_pending_payment: Whether unpaid assets are waited for (``"wait"``).
    :param ledger: Remembers recordings across runs; ``None`` to remember nothing.
    :param store: Remembers uploads across tries without a ledger: Airflow's task state store.
    :param parallel: How many uploads at once.
    :param by_content: Whether to identify recordings by their content, in this run and all later ones.
    :param retry: Names of recordings that are done and to be ingested again; they need a ledger.
    :param bandwidth_limit: The bytes a second that all uploads together may send; ``None`` for no limit.
    :param recorder: Records the results; by default in memory until the end.
    :param planned: Whether the recordings are those of a plan.
    :param log: Logs events.
    """

    def __init__(
        self,
        hook: RoughyHook,
        *,
        owner: ClaimOwner,
        project_id: str,
        language: str | None = None,
        on_pending_payment: OnPendingPayment = "fail",
        ledger: Ledger | None = None,
        store: StateStore | None = None,
        parallel: int = 4,
        by_content: bool = False,
        retry: Sequence[str] = (),
        bandwidth_limit: int | None = None,
        recorder: Recorder | None = None,
        planned: bool = False,
        log: Log = _log,
    ) -> None:
        self._hook = hook
        self._owner = owner
        self._project_id = project_id
        self._language = language
        self._on_pending_payment = on_pending_payment
        self._ledger = self.ledger = ledger
        self._parallel = parallel
        self._by_content = by_content
        self._retry = retry
        self._log = log
        self._lease: Lease | None = None
        #: Whether this run had an earlier try.
        self._is_retry = False
        #: Whether :meth:`finish` was called.
        self.is_reported = False
        #: The recordings to upload, in this order.
        self.todo: list[UploadItem] = []
        #: Recordings that an earlier try of this run has uploaded, at least in part: they count for `max_credits`.
        self._own_uploads: list[UploadItem] = []
        #: The errors of the last poll of each asset, where it failed.
        self._failed_polls: dict[str, RoughyError] = {}
        self._recorder = Recorder(owner, ledger) if recorder is None else recorder
        self._transfers = Transfers(
            hook,
            self._recorder,
            project_id=project_id,
            store=store,
            parallel=parallel,
            bandwidth_limit=bandwidth_limit,
            planned=planned,
            log=log,
        )
        #: The recordings whose assets are waited for, by asset id.
        self._waiting = self._transfers.sent

    @property
    def results(self) -> BatchResults:
        """The results so far."""
        return self._recorder.results

    @property
    def fatal(self) -> RoughyError | None:
        """The error that stopped the batch, if one did."""
        return self._recorder.fatal

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold this run's lease while the body runs.

        :raises RoughyLedgerError: If the ledger cannot be used; nothing was created then.
        """
        if self._ledger is None:
            yield
            return
        self._ledger.check()
        self._is_retry = self._ledger.has_started(self._owner)
        with self._ledger.lease(self._owner) as self._lease:
            yield

    # ---- What to do

    def take_stock(self, found: Discovered, *, stable_for: float = 0.0, dry_run: bool = False) -> None:
        """Compare the files with the ledger: which are new, done, or left unfinished by earlier tries and runs.

        :param found: The files.
        :param stable_for: Defer files that were changed less than so many seconds ago.
        :param dry_run: Whether to resume and supersede nothing of earlier tries and runs, and to write no result.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        items: dict[str, UploadItem] = {}
        for file in found.files:
            if file.problem in (Problem.PASSING, Problem.UNREADABLE):
                passing = file.problem is Problem.PASSING
                status = Status.INTERRUPTED if passing else Status.REJECTED
                self.results.add(RecordingResult(file.uri, status, reason=file.reason, retryable=passing))
            else:
                identity = file.identity(project_id=self._project_id, language=self._language)
                item = UploadItem(file, identity.key, identity.to_dict(), file.uri, log=self._log)
                items[item.key] = item
        if self._ledger is not None:
            self._compare(self._ledger, items, found.files, stable_for=stable_for, dry_run=dry_run)
        for item in items.values():
            self._admit(item, stable_for=stable_for, dry_run=dry_run)
        # Recordings that failed before go last, so that they cannot keep the others from being uploaded.
        self.todo.sort(key=lambda item: item.version is not None)
        if found.left_out:
            files = counted(found.left_out, "file")
            self._log.info("Skipped %s that `pattern` does not match: %s", files, found.listed_left_out)

    def _compare(
        self,
        ledger: Ledger,
        items: dict[str, UploadItem],
        found: Sequence[SourceFile],
        *,
        stable_for: float,
        dry_run: bool,
    ) -> None:
        """Do what :func:`decide` returns for each recording that was found or that the ledger has.

        :param items: The recordings that were found, by key. Those that are not to be uploaded are removed.
        :param found: All files that were found.
        """
        snapshot = ledger.snapshot()
        legacy = ledger.legacy(snapshot)
        by_content = self._by_content or ledger.identifies_by_content()
        contents = ledger.contents() if by_content else {}
        use_names_of(snapshot.done | snapshot.open.keys() | contents.keys(), items)
        if by_content:
            if not dry_run:
                ledger.identify_by_content()

            def may_read(item: UploadItem) -> bool:
                return why_not(item, stable_for) is None and not has_legacy(item, legacy)

            by_place = snapshot.done | snapshot.open.keys()
            copies = identify_all(ledger, items, by_place, contents, may_read, self._transfers)
            for _ in copies:
                self.results.count_ingested("duplicate")
            if copies:
                files = counted(len(copies), "file")
                self._log.info("Skipped %s with the same content as another one: %s", files, _listed(copies))
            if self.fatal is not None:
                raise self.fatal
        versions = read_versions(ledger, snapshot.open)
        resume_started(items, versions.values(), self._owner)
        ingest_again(ledger, self._owner, self._retry, items, found, legacy, dry_run=dry_run, log=self._log)
        standings = compare(ledger, self._owner, items, snapshot, legacy, versions, is_retry=self._is_retry)
        self._act(ledger, standings, items, dry_run=dry_run)

    def _act(
        self, ledger: Ledger, standings: Iterable[Standing], items: dict[str, UploadItem], *, dry_run: bool = False
    ) -> None:
        """Do what :func:`decide` has returned for each recording.

        :param items: The recordings that were found, by key. Those that are not to be uploaded are removed.
        """
        rejected: list[tuple[str, str]] = []
        to_report: list[Standing] = []
        to_resume: list[UploadItem] = []
        for standing in standings:
            key, version, old, action = standing.key, standing.version, standing.old, standing.action
            if standing.error is not None:
                self._log.warning("%s", standing.error)
                if standing.item is not None:
                    self._recorder.interrupt(items.pop(key), str(standing.error))
            elif action is Action.UPLOAD or action is Action.IGNORE:
                continue
            elif action is Action.LEAVE_OUT or (dry_run and (standing.state or standing.asset_id)):
                if (item := items.pop(key, None)) is not None and standing.state:
                    self.results.count_ingested(standing.state)
                    if item.file is not None and item.file.problem is not None:
                        known_as = key if old is None else old.key
                        rejected.append((f"{item.name} ({item.file.reason}, key {known_as})", known_as))
                elif item is not None:
                    self._recorder.leave(item, Held(version))
            elif action is Action.REPORT:
                items.pop(key, None)
                to_report.append(standing)
            elif not dry_run:
                assert version is not None
                item = items.get(key) or standing.as_item()
                item.version = None if old is not None else version
                item.asset_id, item.mine = standing.asset_id, version.owner.is_same_run(self._owner)
                item.legacy_key = old.key if old is not None else None
                to_resume.append(item)
        self._report_all(ledger, to_report, items)
        if rejected:
            files = counted(len(rejected), "file")
            self._log.warning(
                "Skipped %s that an earlier run has rejected, as nothing has changed: %s. To try one again, replace "
                "it, or forget it by its key: %s; %s",
                files,
                _listed([text for text, _ in rejected]),
                FORGET_IMPORT,
                ledger.forget_call(rejected[0][1]),
            )
        self._resume_all(to_resume, items)

    def _report_all(self, ledger: Ledger, to_report: list[Standing], items: dict[str, UploadItem]) -> None:
        """Report results that the ledger has. One that cannot be read concerns its own recording only.

        :param items: The recordings to upload, by key. Those that were reported and forgotten since are added.
        """

        def read(standing: Standing) -> tuple[Result | RoughyLedgerEntryError | None, Version | None]:
            """Return a result that this run reports, and its last version; none if another run was faster to do so."""
            version, old = standing.version, standing.old
            if old is not None:
                return legacy_result(old), None
            try:
                result = ledger.find_result(standing.key)
            except RoughyLedgerEntryError as error:
                return error, version
            if result is not None and version is not None and not version.owner.is_same_run(self._owner):
                version = version.next(self._owner)
                if not ledger.create_version(version):
                    return None, None
            return result, version

        for standing, (result, version) in zip(to_report, ledger.each(read, to_report), strict=True):
            if isinstance(result, Result):
                self._recorder.report(result, version)
            elif result is not None:
                self._recorder.interrupt(standing.item or standing.as_item(), str(result))
            elif standing.version is None and standing.item is not None:
                items[standing.key] = standing.item

    def _resume_all(self, resumed: list[UploadItem], items: dict[str, UploadItem]) -> None:
        """Resume recordings of an earlier try or of an ended run: upload, wait for, report or cancel them.

        :param resumed: Those recordings.
        :param items: The recordings that were found, by key. Those that are not to be uploaded are removed.
        """
        verdicts = self._poll([item.asset_id for item in resumed if item.asset_id is not None])
        for item in resumed:
            verdict = verdicts.get(item.asset_id or "")
            if item.asset_id is None or is_unsent(item, verdict):
                # A recording of an ended run that was not found is left to a run that finds it.
                if item.file is None and item.mine:
                    self._discard(item)
                continue
            items.pop(item.key, None)
            if verdict is None:
                error = self._failed_polls.get(item.asset_id, "Roughy did not answer")
                reason = f"its bytes are sent, but reading the state of asset {item.asset_id} failed: {error}"
                self._recorder.interrupt(item, reason)
            elif verdict.outcome is Outcome.UNAVAILABLE and not is_gone(verdict):
                interrupted = replace(result_of_verdict(item, verdict), status=Status.INTERRUPTED, retryable=False)
                self._recorder.note(item, interrupted)
            elif item.version is not None and item.version.state == verdict.state == Progress.PENDING_PAYMENT:
                self._recorder.note(item, replace(result_of_verdict(item, verdict), earlier=not item.mine))
            else:
                self._supersede(item, verdict)

    def _supersede(self, item: UploadItem, verdict: Verdict) -> None:
        """Supersede the claim on a recording whose bytes are sent, and wait for its asset or report it."""
        assert self._ledger is not None
        latest = item.version or self._unstored(item)
        state = Progress.PENDING_PAYMENT if latest.state == Progress.PENDING_PAYMENT else Progress.SENT
        ended = claims.drive(claims.supersede(latest, self._owner, state=state), self._ledger.perform)
        if not isinstance(ended, Version):
            self._recorder.leave(item, ended)
            return
        item.version = ended
        if item.mine:
            self._own_uploads.append(item)
        else:
            self._recorder.assets_of_other_runs.add(verdict.id)
        self._waiting[verdict.id] = item
        self.settle([verdict])

    def _discard(self, item: UploadItem) -> None:
        """Cancel the upload of a recording of this run whose file was changed or is gone."""
        assert self._ledger is not None
        if item.asset_id is not None:
            try:
                asset = self._hook.get_asset(item.asset_id)
                if Arrival.of(asset) is not Arrival.ARRIVED and not self._hook.cancel_upload(asset):
                    # Its last bytes may have arrived meanwhile.
                    asset = self._hook.get_asset(item.asset_id)
                if Arrival.of(asset) is Arrival.ARRIVED:
                    return
            except RoughyNotFoundError:
                pass
            except RoughyError as err:
                self._log.warning(
                    "Cancelling the upload of %s to asset %s failed; a retry does it again. The asset is incomplete "
                    "and costs nothing: %s",
                    item.name,
                    item.asset_id,
                    err,
                )
                return
            self._log.info(
                "Cancelled the upload of %s to asset %s: the file was changed or is gone", item.name, item.asset_id
            )
        latest = item.version or self._unstored(item)
        released = claims.supersede(latest, self._owner, **RELEASED)
        claims.drive(released, self._ledger.perform)

    def _unstored(self, item: UploadItem) -> Version:
        """Return a version 0, which is never stored, to create version 1 from."""
        return Version(item.key, 0, self._owner, item.name, item.identity, asset_id=item.asset_id)

    def _admit(self, item: UploadItem, *, stable_for: float, dry_run: bool) -> None:
        """Add a recording to the uploads, or reject or defer it."""
        problem = why_not(item, stable_for)
        if problem is None:
            self.todo.append(item)
        elif problem[0] is Status.REJECTED:
            self._recorder.reject(item, problem[1], remember=not dry_run)
        else:
            self._recorder.add(item, *problem)

    def plan(self, *, max_credits: int | None, credits_if_unknown: int | None) -> None:
        """Price the uploads, and defer those that do not fit. The oldest go first.

        :param max_credits: The most that this run may cost over all its tries, and never more than the balance;
            ``None`` for no limit.
        :param credits_if_unknown: The credits to count for a recording of unknown length; by default the most that its
            size can hold.
        :raises RoughyError: If the balance cannot be read.
        """
        # Recordings that have ended since are among the results.
        started = [item for item in self._own_uploads if item.asset_id in self._waiting]
        unknown = price(self.todo, credits_if_unknown=credits_if_unknown, parallel=self._parallel)
        price(started, credits_if_unknown=credits_if_unknown, parallel=self._parallel)
        spent = sum(item.credits or 0 for item in started) + self._recorder.spent()
        balance = self._hook.get_credit_balance()
        log_plan(self.todo, unknown, credits_if_unknown, spent=spent, balance=balance, log=self._log)
        deferred = beyond_budget(self.todo, max_credits, spent=spent, balance=balance)
        for item, reason in deferred.items():
            self._recorder.defer(item, reason)
        self.todo = [item for item in self.todo if item not in deferred]

    def defer_all(self, reason: str) -> None:
        """Defer all uploads to a later run.

        :param reason: The reason to report.
        """
        for item in self.todo:
            self._recorder.defer(item, reason)
        self.todo = []

    # ---- Uploads

    def upload(self) -> None:
        """Upload the recordings of :attr:`todo`, and poll their assets once. Unfinished ones are in :attr:`waiting`.

        :raises RoughyIngestError: If :meth:`stop` ended it before all were uploaded.
        :raises RoughyError: The error that stopped the batch, unless the credits are used up. The ledger knows how far
            each recording has come.
        """
        self._transfers.upload(self.todo)
        verdicts = self._poll(list(self._waiting))
        self.settle(list(verdicts.values()))
        # Without its file, only Roughy itself can notice its end.
        unconfirmed = [self._waiting[id] for id, verdict in verdicts.items() if verdict.state == "pending_upload"]
        self._transfers.confirm([item for item in unconfirmed if item.file is not None])
        if self.fatal is not None and not isinstance(self.fatal, RoughyInsufficientCreditsError):
            raise self.fatal

    @property
    def waiting(self) -> list[str]:
        """The ids of the assets that are still waited for."""
        return list(self._waiting)

    def stop(self) -> None:
        """End the uploads under way, from a signal handler. A later try resumes them, if it can."""
        self._transfers.stop()

    # ---- Results

    def _poll(self, ids: Sequence[str]) -> dict[str, Verdict]:
        """Poll assets once, and return a verdict on each. Assets whose check failed are left out.

        :raises RoughyAuthenticationError: If the key was rejected.
        """
        if not ids:
            return {}
        self._failed_polls = {}
        verdicts = run_here(lambda: poll_batch(self._hook, ASSET, list(ids), failed=self._failed_polls))
        for verdict in verdicts.values():
            if verdict.outcome is Outcome.UNAVAILABLE:
                try:
                    verdict.raise_for_failure()
                except RoughyApiError as error:
                    # A 403 concerns that one asset.
                    if isinstance(error, RoughyAuthenticationError) and error.status != 403:
                        raise
        return verdicts

    def settle(self, verdicts: Sequence[Verdict]) -> None:
        """Store the results of assets. Unfinished ones stay in :attr:`waiting`.

        :param verdicts: One for each asset.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        final = [verdict for verdict in verdicts if verdict.is_final(self._on_pending_payment)]
        pairs = [(self._waiting.pop(verdict.id), verdict) for verdict in final if verdict.id in self._waiting]

        def settle(pair: tuple[UploadItem, Verdict]) -> RecordingResult | None:
            return self._settle(*pair)

        results = map(settle, pairs) if self._ledger is None else self._ledger.each(settle, pairs)
        for (item, _), result in zip(pairs, results, strict=True):
            if result is not None:
                self._recorder.note(item, result)

    def _settle(self, item: UploadItem, verdict: Verdict) -> RecordingResult | None:
        """Store the result of a recording, and return it; ``None`` if another run reports it, or it was reported."""
        try:
            return self._store_end(item, verdict)
        except RoughyLedgerEntryError as error:
            self._recorder.interrupt(item, str(error))
            return None

    def _store_end(self, item: UploadItem, verdict: Verdict) -> RecordingResult | None:
        result = result_of_verdict(item, verdict)
        state = {Status.READY: "ready", Status.FAILED: "gone" if verdict.state is None else "failed"}.get(
            Status(result.status)
        )
        if state is not None:
            fields = {name: getattr(result, name) for name in ("reason", "seconds", "credits", "request_id")}
            if not self._recorder.complete(item, state, **fields):
                return None
            return result if state == "ready" else replace(result, key=self._recorder.key_of(item))
        if self._ledger is None or not item.key or result.status != Status.PENDING_PAYMENT:
            return result
        version = item.version or self._unstored(item)
        if version.state != Progress.PENDING_PAYMENT:
            noted = claims.checkpoint(version, state=Progress.PENDING_PAYMENT, since=result.since)
            ended = claims.drive(noted, self._ledger.perform)
            if not isinstance(ended, Version):
                self._recorder.leave(item, ended)
                return None
            item.version = ended
        return result

    # ---- The wait in the triggerer, and the end

    def renew_lease(self) -> None:
        """Renew the lease now, for others that wait for a renewal, unless another live try of this run has it.

        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        if self._lease is None or self._ledger is None:
            return
        stored = self._ledger.read_lease(self._owner)
        if stored is None or stored.try_token == self._owner.try_token:
            self._lease.renew_or_log()

    def extend_lease(self) -> dict[str, Any] | None:
        """Hand the lease over to the trigger that waits for the assets.

        :returns: The lease for :func:`~airflow_provider_roughy.ledger.renewing`, as plain JSON; ``None`` without one.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if self._lease is None or self._ledger is None:
            return None
        self._lease.extend(time.time() + LEASE_SECONDS)
        return self._ledger.lease_to_dict(self._owner)

    def to_dict(self) -> dict[str, Any]:
        """Return the state that :meth:`resume` needs after the wait, as plain JSON."""
        fatal = self.fatal.to_dict() if isinstance(self.fatal, RoughyApiError) else None
        return {
            **self.results.to_dict(),
            "fatal": fatal,
            "waiting": {id: item.to_dict() for id, item in self._waiting.items()},
            "to_report": sorted(self._recorder.to_report),
        }

    def resume(self, before: Mapping[str, Any], waited_for: Iterable[str]) -> None:
        """Continue after the wait in the triggerer.

        :param before: What :meth:`to_dict` returned before the wait, or what 0.2 left.
        :param waited_for: The ids of the assets that the trigger waited for, which may be some of all.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        of_0_2 = "results" not in before
        self._recorder.results = BatchResults.from_dict(before.get("report", {}) if of_0_2 else before)
        fatal = before.get("trouble" if of_0_2 else "fatal")
        self._recorder.fatal = api_error(**fatal) if fatal else None
        waiting = before.get("waiting", waited_for)
        names: Mapping[str, Any] = before.get("report", {}).get("sources", {}) if of_0_2 else {}
        for id in waiting:
            row = waiting[id] if isinstance(waiting, Mapping) else {"name": names.get(id, id)}
            self._waiting[id] = UploadItem.from_dict({**row, "asset_id": id})
        if self._ledger is not None:
            self._recorder.to_report |= {key: None for key in before.get("to_report", ())}
            self._resume_claims(self._ledger)

    def _resume_claims(self, ledger: Ledger) -> None:
        """Find the versions of the recordings that are waited for or to be reported."""
        snapshot = ledger.snapshot()
        for key, version in read_versions(ledger, snapshot.open).items():
            if isinstance(version, RoughyLedgerError):
                self._log.warning("%s", version)
                continue
            if key in self._recorder.to_report:
                self._recorder.to_report[key] = version
            item = self._waiting.get(version.asset_id or "")
            if item is None:
                continue
            item.key, item.identity, item.name, item.version = key, version.identity, version.source, version
            if not version.owner.is_same_run(self._owner):
                # The lease had expired, such as while the triggerer was down, and another run has superseded the claim.
                del self._waiting[version.asset_id or ""]
                self._recorder.leave(item, Held(version))
        for old in ledger.legacy(snapshot):
            item = self._waiting.get(old.asset_id or "")
            if item is None or item.version is not None:
                continue
            if old.done:
                # Its lease had expired, and another run has finished it.
                del self._waiting[old.asset_id or ""]
                self.results.count_ingested(old.state if old.state in ENDED else Progress.SENT)
                continue
            identity = legacy_identity(old)
            item.key, item.identity, item.name, item.legacy_key = identity.key, identity.to_dict(), old.source, old.key
        unclaimed = [item for item in self._waiting.values() if item.version is None and item.key]

        def find(item: UploadItem) -> Result | None:
            with suppress(RoughyLedgerEntryError):
                return ledger.find_result(item.key)
            return None

        for item, result in zip(unclaimed, ledger.each(find, unclaimed), strict=True):
            if result is not None:
                del self._waiting[item.asset_id or ""]
                self._recorder.leave(item, Done(result))

    def log_unpaid(self) -> int | None:
        """Log how many recordings are unpaid, their costs, the balance, and until when Roughy keeps them.

        :returns: The balance in credits; ``None`` if no recording is unpaid, or it cannot be read.
        """
        unpaid = self.results.of(Status.PENDING_PAYMENT)
        if not unpaid:
            return None
        credits = None
        try:
            credits = self._hook.get_credit_balance()
            balance = f"{credits:,}"
        except RoughyError as error:
            balance = f"unknown ({error})"
        self._log.warning(
            "%s not paid for: %s%s needed, the balance is %s; Roughy keeps the oldest until %s, and prepares each "
            "automatically once the credits are topped up",
            "1 recording is" if len(unpaid) == 1 else f"{len(unpaid):,} recordings are",
            "at least " if any(result.credits is None for result in unpaid) else "",
            counted(sum(result.credits or 0 for result in unpaid), "credit"),
            balance,
            min(result.until or "" for result in unpaid),
        )
        return credits

    def leave_waiting(self) -> None:
        """Report the recordings that are still waited for, as an error has ended this try."""
        for item in self._waiting.values():
            self._recorder.interrupt(item, "uploaded, and Roughy was still preparing it: a retry waits for it")

    def finish(self) -> None:
        """Record in the ledger what this try has reported. Later tries of this run report it again; other runs do not.

        :raises RoughyLedgerError: If the ledger cannot be written; then a later run may report it once more.
        """
        self.is_reported = True
        self._recorder.finish()


def _listed(names: list[str]) -> str:
    """Return the first of some names, for a log line."""
    return ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")


def why_not(item: UploadItem, stable_for: float) -> tuple[Status, str] | None:
    """Return why a recording is not uploaded, by the facts of its file; ``None`` if it can be uploaded.

    :param item: The recording, which was found.
    :param stable_for: Defer files that were changed less than so many seconds ago.
    """
    file = item.file
    assert file is not None
    if (
        item.version is None
        and stable_for
        and file.changed is not None
        and (quiet := time.time() - file.changed) < stable_for
    ):
        waits = f"it may still be written to: changed {max(quiet, 0):.0f} s ago, `stable_for` is {stable_for:g} s"
        return Status.DEFERRED, waits
    if file.reason:
        return Status.REJECTED, file.reason
    if not MIN_UPLOAD_BYTES <= file.size <= MAX_UPLOAD_BYTES:
        limits = f"{MIN_UPLOAD_BYTES:,} to {MAX_UPLOAD_BYTES:,}"
        return Status.REJECTED, f"it has {file.size:,} bytes; Roughy takes {limits}"
    return None
