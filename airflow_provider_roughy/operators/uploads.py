"""The operator that uploads a recording as a new asset."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.ingest.discover import find_file
from airflow_provider_roughy.ingest.result import Status
from airflow_provider_roughy.ingest.trees import check_no_rendered_value
from airflow_provider_roughy.ingest.upload import upload_once
from airflow_provider_roughy.ingest.verdicts import duration_of
from airflow_provider_roughy.instruments import CREDITS, FILES
from airflow_provider_roughy.ledger import ClaimOwner, Ledger
from airflow_provider_roughy.lifecycle import ASSET, Outcome, Verdict
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.links import asset_links, show_asset
from airflow_provider_roughy.observability.openlineage import RunFacts
from airflow_provider_roughy.observability.outlets import announce_verdict
from airflow_provider_roughy.operators.interruptible import InterruptibleOperator
from airflow_provider_roughy.operators.waiting import WaitingOperator
from airflow_provider_roughy.polling import ResourcePoller, wait_here
from airflow_provider_roughy.probe import credits_for
from airflow_provider_roughy.transfer.source import find_source
from airflow_provider_roughy.transfer.storage import as_text, without_secrets
from airflow_provider_roughy.triggers import RoughyAssetTrigger

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.transfer.resumable import DurableUpload, StateStore
    from airflow_provider_roughy.transfer.source import Source


#: The statuses of recordings, for metrics, by the outcome of the wait.
_STATUSES: dict[Outcome, str] = {
    Outcome.WAITING: "uploaded",
    Outcome.SUCCEEDED: Status.READY.value,
    Outcome.PAYMENT_REQUIRED: Status.PENDING_PAYMENT.value,
    Outcome.FAILED: Status.FAILED.value,
}


class RoughyCreateUploadOperator(InterruptibleOperator, WaitingOperator):
    """Creates an asset and uploads a recording to it; returns the asset's id.

    The operator checks the recording before it creates anything: it must be a readable file of 64 bytes to 50 GiB. It
    streams the file in constant memory, and resumes after a broken connection, a timeout, a lost reply, a 5xx, a 429, a
    lock or a gateway that answers in Roughy's place. An error that no retry can fix (wrong key, no credits, neither
    audio nor video) fails the task at once and uses no retry.

    The task succeeds only when Roughy itself confirms that all bytes have arrived. If Roughy may have them and does not
    confirm it, the task fails with :class:`~airflow_provider_roughy.exceptions.RoughyUnconfirmedUploadError` and may be
    retried; it does not delete the asset.

    On Airflow 3.3 and later, every start of the task (a retry, a cleared task, one after a killed worker) resumes the
    upload: the task state store holds the asset's id and a fingerprint of the source. If all bytes have arrived
    already, the task sends nothing. If the asset is gone or failed at Roughy, or the source, the project or the
    language has changed, it starts a new upload, and cancels the old one if that is still open. Before 3.3 there is no
    such store: a try that fails discards its asset, so that no orphan stays, and the next try starts a new upload. It
    keeps the asset only if the key was rejected, or if all bytes may have arrived; ``asset_id`` resumes it. With a
    ``ledger``, every version resumes uploads as 3.3 does.

    Limits: ``POST /v1/assets`` has no idempotency key. If its reply is lost, or the worker dies before it has stored
    the asset's id, an empty asset stays in ``pending_upload``, which costs nothing, and the next try creates another
    one. The next try cannot adopt it: an empty asset has neither a name nor a size, so that it could be one that
    another task is about to fill. Without a ledger, a mapped task is known by its index: if the list that it is mapped
    over has shifted when it is cleared, it uploads the file that is now at its index, although another index has
    uploaded that file before, and Roughy charges it again.

    The result is the asset's id in every mode. To wait for many::

        upload = RoughyCreateUploadOperator.partial(task_id="upload").expand(source=files)
        RoughyAssetSensor.partial(task_id="wait", deferrable=True).expand(asset_id=upload.output)

    :param source: A local path, a URI such as ``s3://bucket/key`` that Airflow's object storage knows, or an
        ``ObjectStoragePath``. (templated)
    :param project_id: The project of the new asset; by default the one in the connection's extra. (templated)
    :param language: The language spoken, two letters of ISO 639-1; by default Roughy detects it. (templated)
    :param source_conn_id: The Airflow connection of the source's storage. (templated)
    :param asset_id: Resume the open upload of this asset instead of creating one. Nothing is sent if its bytes have
        all arrived already. (templated)
    :param wait_for_completion: Whether to wait until Roughy has prepared the asset; fails like
        :class:`~airflow_provider_roughy.sensors.RoughyAssetSensor` if that fails. Only then an outlet that is an
        ``AssetAlias`` announces it.
    :param on_pending_payment: With ``wait_for_completion``: what to do about an asset that the credits did not cover:
        ``"fail"``, ``"skip"``, ``"return"`` or ``"wait"``, as in
        :class:`~airflow_provider_roughy.sensors.RoughyAssetSensor`.
    :param poll_interval: With ``wait_for_completion``: seconds, or a ``timedelta``, between two polls.
    :param timeout: With ``wait_for_completion``: seconds, or a ``timedelta``, to wait after the upload; by default
        Airflow's ``[sensors] default_timeout``. A timeout is no reason to upload again, so it uses no retry.
        Airflow's ``execution_timeout`` bounds upload and wait together, in the triggerer as well.
    :param durable: Whether a later start of the task may resume the upload of an earlier one (Airflow 3.3 and later).
    :param ledger: A folder that records what has been ingested, as of
        :class:`~airflow_provider_roughy.operators.RoughyIngestOperator`, which may share it: an absolute path or a URI.
        Then a later start resumes an earlier upload on every version of Airflow, and other runs, tasks and DAGs return
        the asset of the same recording instead of uploading it again. (templated)
    :param ledger_conn_id: The Airflow connection of the ledger's storage. (templated)
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: With ``wait_for_completion``: whether to wait in the triggerer, which takes no worker slot.
    """

    template_fields: Sequence[str] = (
        "source",
        "project_id",
        "language",
        "source_conn_id",
        "ledger",
        "ledger_conn_id",
        "asset_id",
        "roughy_conn_id",
    )
    operator_extra_links = asset_links()

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        project_id: str | None = None,
        language: str | None = None,
        source_conn_id: str | None = None,
        asset_id: str | None = None,
        wait_for_completion: bool = False,
        durable: bool = True,
        ledger: str | os.PathLike[str] | None = None,
        ledger_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.project_id = project_id
        self.language = language
        self.source_conn_id = source_conn_id
        self.asset_id = asset_id
        self.wait_for_completion = wait_for_completion
        self.durable = durable
        self.ledger = ledger
        self.ledger_conn_id = ledger_conn_id
        #: The upload under way.
        self._running: DurableUpload | None = None

    def execute(self, context: Context) -> str:
        """Upload, and wait if asked to.

        :returns: The asset's id.
        """
        started = time.time()
        with self._interrupt, self.hook:
            asset_id = self._upload(context)
            show_asset(context, asset_id)
            if not self.wait_for_completion:
                return self._end(context, Verdict(asset_id, Outcome.WAITING, kind=ASSET.name, state="uploaded"))
            return self._end(context, self._wait_for(asset_id, started))

    def _upload(self, context: Context) -> str:
        check_no_rendered_value("source", str(self.source))
        source = find_source(self.source, conn_id=self.source_conn_id)
        language = language_code(self.language) if self.language else None
        if self.asset_id:
            return self._run(source, None, lambda upload: upload.resume(str(self.asset_id)))
        project_id = self.hook.get_project_id(self.project_id)
        if self.ledger is None:
            memory = context.get("task_state_store") if self.durable else None
            return self._run(source, memory, lambda upload: upload.run(project_id, language))
        try:
            return upload_once(
                self.hook.client,
                Ledger(self.ledger, conn_id=self.ledger_conn_id),
                ClaimOwner.of(context["ti"]),
                find_file(self.source, conn_id=self.source_conn_id),
                project_id=project_id,
                language=language,
                on_start=self._set_running,
                on_arrival=lambda asset_id: lineage.report_upload(self.hook, source.uri, asset_id),
                log=self.log,
            )
        finally:
            self._running = None

    def _set_running(self, upload: DurableUpload) -> None:
        self._running = upload

    def _run(self, source: Source, memory: StateStore | None, start: Callable[[DurableUpload], str]) -> str:
        self._running = self.hook.durable_upload(source, memory=memory, log=self.log)
        try:
            return start(self._running)
        finally:
            self._running = None

    def stop_running(self) -> None:
        """Keep the upload for the next try, or discard it if the next try could not find it."""
        if self._running is not None:
            self._running.abandon()

    def _wait_for(self, asset_id: str, started: float) -> Verdict:
        deadline = self.deadline(started)
        poller = ResourcePoller(ASSET, asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        verdict = poller.poll(self.hook, within=max(deadline - time.time(), 1.0))
        if verdict is None and self.deferrable:
            RoughyAssetTrigger(
                asset_id=asset_id,
                roughy_conn_id=self.roughy_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                on_pending_payment=self.on_pending_payment,
                not_before=poller.not_before,
            ).defer(self)
        if verdict is None:
            verdict = wait_here(
                self.hook,
                poller,
                poll_interval=self.poll_interval,
                deadline=deadline,
                not_before=poller.not_before,
            )
        return verdict

    def _end(self, context: Context, verdict: Verdict) -> str:
        self._record(verdict)
        verdict.raise_for_failure(self.on_pending_payment)
        announce_verdict(self, context, verdict, source=as_text(without_secrets(str(self.source))))
        return verdict.id

    def _record(self, verdict: Verdict) -> None:
        """Record what became of the recording, for metrics and OpenLineage."""
        status, seconds = _STATUSES.get(verdict.outcome, Status.INTERRUPTED.value), duration_of(verdict)
        credits = None if seconds is None else credits_for(seconds)
        FILES.add(status=status)
        if credits is not None and status in (Status.READY, Status.PENDING_PAYMENT):
            CREDITS.add(credits, status=status)
        request_ids = [verdict.request_id] if verdict.request_id else []
        self.run_facts = RunFacts({status: 1}, credits, seconds, request_ids)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> str:
        """Continue after the wait in the triggerer.

        :returns: The asset's id.
        """
        verdict = Verdict.from_event(event)
        # The lineage that was reported before the wait ended with that process.
        lineage.report_upload(self.hook, str(self.source), verdict.id)
        result = self._end(context, verdict)
        self.log.info("Asset %s is %s", verdict.id, verdict.state)
        return result
