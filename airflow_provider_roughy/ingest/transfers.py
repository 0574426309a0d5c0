"""The transfers of a batch: many files in parallel, an error in one of which does not affect the rest."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyIngestError,
    RoughyInsufficientCreditsError,
    RoughyLedgerError,
    RoughySourceError,
    RoughyUnsupportedMediaError,
    RoughyUntrustedUrlError,
    RoughyUnusableSourceError,
)
from airflow_provider_roughy.ingest.compare import OF_ONE_ENTRY
from airflow_provider_roughy.ingest.files import ChangedSinceFoundError
from airflow_provider_roughy.ingest.result import Status
from airflow_provider_roughy.ingest.state import NamespacedStore, ThreadSafeStore
from airflow_provider_roughy.ingest.upload import ClaimedUpload
from airflow_provider_roughy.ledger import entry_key
from airflow_provider_roughy.ledger.claims import Uploaded
from airflow_provider_roughy.logs import Log, Quiet, counted
from airflow_provider_roughy.transfer.pool import FedPool, Stopped, TransferPool
from airflow_provider_roughy.transfer.progress import Newest, bytes_in_words
from airflow_provider_roughy.transfer.resumable import DurableUpload
from airflow_provider_roughy.transfer.storage import ErrorKind, kind_of
from airflow_provider_roughy.transfer.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.ingest.recorder import Recorder
    from airflow_provider_roughy.ingest.upload import UploadItem
    from airflow_provider_roughy.transfer.pool import OnProgress
    from airflow_provider_roughy.transfer.resumable import StateStore

#: Recordings with errors that may pass, with none that succeeded in between, after which the batch stops.
_MAX_FAILED_IN_A_ROW = 5
#: Errors that stop the batch, as every other recording would fail with them.
FATAL_TO_BATCH = (
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyInsufficientCreditsError,
    RoughyLedgerError,
    RoughyUntrustedUrlError,
)

_log = logging.getLogger(__name__)


class Transfers:
    """The transfers of one try.

    :param hook: Talks to Roughy.
    :param recorder: Records what becomes of each recording.
    :param project_id: The project of new assets, as the user spells it.
    :param store: Remembers uploads across tries without a ledger: Airflow's task state store.
    :param parallel: How many at once.
    :param bandwidth_limit: The bytes a second that all uploads together may send; ``None`` for no limit.
    :param planned: Whether the recordings are those of a plan: a later one takes up a file that was changed since.
    :param log: Logs events.
    """

    def __init__(
        self,
        hook: RoughyHook,
        recorder: Recorder,
        *,
        project_id: str,
        store: StateStore | None = None,
        parallel: int = 4,
        bandwidth_limit: int | None = None,
        planned: bool = False,
        log: Log = _log,
    ) -> None:
        self._hook = hook
        self._recorder = recorder
        self._project_id = project_id
        self._store = None if store is None else ThreadSafeStore(store)
        self._parallel = parallel
        self._planned = planned
        self._throttle = None if bandwidth_limit is None else Throttle(bandwidth_limit)
        self._log = log
        #: The recordings whose bytes Roughy has, by asset id.
        self.sent: dict[str, UploadItem] = {}
        self._pool: TransferPool[UploadItem] | None = None
        self._uploads: dict[UploadItem, DurableUpload] = {}

    def upload(self, items: Sequence[UploadItem]) -> None:
        """Upload recordings; those whose bytes Roughy has are in :attr:`sent`, the others are reported.

        :param items: The recordings.
        :raises RoughyIngestError: If :meth:`stop` ended it.
        """
        self.run(items, self._upload, "Uploaded")

    def confirm(self, items: Sequence[UploadItem]) -> None:
        """Confirm uploads whose bytes Roughy has acknowledged and whose assets are still ``pending_upload``.

        :param items: The recordings.
        :raises RoughyIngestError: If :meth:`stop` ended it.
        """
        if items:
            self._log.warning(
                "Roughy has acknowledged all bytes of %s, but still shows `pending_upload`; confirming",
                counted(len(items), "upload"),
            )
        self.run(items, self._confirm, "Confirmed")

    def run(self, items: Sequence[UploadItem], transfer: Callable[[UploadItem, OnProgress], None], what: str) -> None:
        """Call a function for each recording, several at once, and log the progress. Those not started are deferred.

        :param items: The recordings.
        :param transfer: The function. What it raises is reported for that recording.
        :param what: The first word of the log line.
        :raises RoughyIngestError: If :meth:`stop` ended it.
        """
        if not items:
            return
        # Fetch the Airflow connection here, and not in several threads at once.
        self._hook.get_conn()
        pool = self._pool = TransferPool(items, transfer, self._on_error)
        total = sum(item.size for item in items)

        def log_progress(seconds: float, sent: int) -> None:
            rate = sent / seconds if seconds else 0.0
            self._log.info(
                "%s %s of %s, %s of %s (%.0f %%), %s/s, %s%s",
                what,
                f"{pool.done - pool.failed:,}",
                counted(len(items), "file"),
                bytes_in_words(sent),
                bytes_in_words(total),
                100 * sent / total if total else 100,
                bytes_in_words(rate),
                f"{(total - sent) / rate:.0f} s left" if rate else "no bytes yet",
                f"; {pool.failed:,} failed, see the results" if pool.failed else "",
            )
            shown.put({"files": pool.done, "of": len(items), "bytes": sent, "of_bytes": total})

        try:
            with Newest(self._show_progress) as shown:
                pool.run(self._parallel, log_progress)
        except Stopped:
            # Airflow 3 only calls on_kill(): without an error, the task would succeed with what it returns.
            raise RoughyIngestError(
                f"The task was killed after {pool.done:,} of {counted(len(items), 'file')}; a retry uploads the rest",
                outcomes=self._recorder.results.xcoms(),
            ) from None
        finally:
            self._pool = None
        for item in pool.left:
            self._recorder.defer(item, f"not started: the batch was stopped: {self._recorder.fatal}")

    def upload_fed(self, tick: Callable[[FedPool[UploadItem]], None]) -> list[UploadItem]:
        """Upload recordings that are added while others are uploaded.

        :param tick: Called again and again in this thread, with the pool, to add recordings and to record results.
        :returns: Those that were not started, because an error has stopped the batch.
        :raises RoughyIngestError: If :meth:`stop` ended it.
        """
        self._hook.get_conn()
        pool: FedPool[UploadItem] = FedPool(self._upload, self._on_error)
        self._pool = pool
        try:
            pool.run_fed(self._parallel, lambda: tick(pool))
        except Stopped:
            raise RoughyIngestError(
                f"The task was killed after it had uploaded {counted(pool.done - pool.failed, 'file')}; a retry "
                "uploads the rest",
                outcomes={},
            ) from None
        finally:
            self._pool = None
        return list(pool.left)

    def stop(self) -> None:
        """End the transfers under way, from a signal handler. A later try resumes them, if it can."""
        if self._pool is not None:
            self._pool.stop()
        for upload in list(self._uploads.values()):
            upload.abandon()

    def _show_progress(self, progress: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.set("roughy_progress", progress)

    def _upload(self, item: UploadItem, on_progress: OnProgress) -> None:
        upload = self._uploads[item] = self._new_upload(item, on_progress)
        try:
            if not isinstance(upload, ClaimedUpload):
                item.asset_id = upload.run(self._project_id, item.identity["language"])
                self.sent[item.asset_id] = item
            elif isinstance(ended := upload.claim_and_send(), Uploaded):
                self.sent[ended.asset_id] = item
            else:
                self._recorder.leave(item, ended)
        except RoughyUnsupportedMediaError as error:
            if self._recorder.ledger is not None:
                self._recorder.complete(item, "rejected", reason=str(error))
            raise
        finally:
            self._uploads.pop(item, None)

    def _new_upload(self, item: UploadItem, on_progress: OnProgress, *, confirm: bool = False) -> DurableUpload:
        source, client = item.open(), self._hook.client
        if self._throttle is not None:
            on_progress = self._throttle.limiting(on_progress)
        options: dict[str, Any] = {"on_progress": on_progress, "log": Quiet(self._log)}
        ledger = self._recorder.ledger
        if ledger is not None:
            return ClaimedUpload(client, source, ledger=ledger, owner=self._recorder.owner, item=item, **options)
        memory = None
        if self._store is not None and not confirm:
            identity = {**source.fingerprint, "project_id": self._project_id, "language": item.identity["language"]}
            memory = NamespacedStore(self._store, entry_key(identity))
        return DurableUpload(client, source, memory=memory, confirm=confirm, **options)

    def _confirm(self, item: UploadItem, on_progress: OnProgress) -> None:
        assert item.asset_id is not None
        try:
            upload = self._new_upload(item, on_progress, confirm=True)
            if isinstance(upload, ClaimedUpload):
                upload.confirm()
            else:
                upload.resume(item.asset_id)
        except RoughyError:
            del self.sent[item.asset_id]
            raise

    def _on_error(self, item: UploadItem, error: RoughyError, failed_in_a_row: int) -> bool:
        """Report a recording that was not transferred, and return whether the batch stops.

        :param failed_in_a_row: Recordings with errors that may pass since the last success, this one included.
        """
        gone = isinstance(error, RoughyUnusableSourceError) and not _is_forbidden(error)
        if self._planned and (gone or isinstance(error, ChangedSinceFoundError)):
            reason = "it was changed or removed since it was planned: a new plan takes the file as it is then"
            self._recorder.add(item, Status.DEFERRED, reason, credits=item.credits)
            return False
        if gone:
            # It could be used when it was found.
            error = RoughySourceError(f"{error}: it was changed since it was found; a retry looks again")
        details: dict[str, Any] = {"credits": item.credits}
        if isinstance(error, RoughyApiError):
            details["request_id"] = error.request_id
        if isinstance(error, (RoughyUnusableSourceError, RoughyUnsupportedMediaError)):
            if isinstance(error, RoughyUnsupportedMediaError):
                # Only such a result is in the ledger: a file that may not be read is tried again in each run.
                details["key"] = self._recorder.key_of(item)
            self._recorder.add(item, Status.REJECTED, str(error), **details)
            return False
        if isinstance(error, RoughyInsufficientCreditsError):
            self._recorder.add(item, Status.DEFERRED, str(error), **details)
        else:
            self._recorder.add(item, Status.INTERRUPTED, str(error), retryable=not error.final, **details)
        # An error that no retry can fix when an asset is created (such as a missing project) affects all recordings.
        refuses_all = isinstance(error, RoughyApiError) and error.final and error.request == "POST /v1/assets"
        fatal = isinstance(error, FATAL_TO_BATCH) and not isinstance(error, OF_ONE_ENTRY)
        if not (refuses_all or fatal or failed_in_a_row >= _MAX_FAILED_IN_A_ROW):
            return False
        if self._recorder.fatal is None:
            self._log.error(
                "Stopping the batch at %s and deferring the files that are not started: %s", item.name, error
            )
            self._recorder.fatal = error
        return True


def _is_forbidden(error: RoughyError) -> bool:
    cause = error.__context__
    return cause is not None and kind_of(cause) is ErrorKind.FORBIDDEN
