"""The operator that uploads a recording as a new asset."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy import lineage
from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.lifecycle import ASSET, Outcome, Verdict
from airflow_provider_roughy.links import asset_links, show_asset
from airflow_provider_roughy.memory import Owner, remembered
from airflow_provider_roughy.operators.waiting import WaitingOperator
from airflow_provider_roughy.outlets import announce_verdict
from airflow_provider_roughy.polling import Watch, wait_here
from airflow_provider_roughy.source import find_source
from airflow_provider_roughy.storage import as_text, without_secrets
from airflow_provider_roughy.triggers import RoughyAssetTrigger

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.durable import DurableUpload, Memory
    from airflow_provider_roughy.source import Source


class RoughyCreateUploadOperator(WaitingOperator):
    """Creates an asset and uploads a recording to it; returns the asset's id.

    The recording is looked at before anything is created: it must exist, be a file of 64 bytes to 50 GiB, and be
    readable. It is then streamed in constant memory, and goes on where Roughy stands after a broken connection, a
    timeout, a lost reply, a 5xx, a 429, a lock or a gateway that answers in Roughy's place. What no retry can mend
    (wrong key, no credits, neither audio nor video) fails at once and burns no retries.

    The task succeeds only when Roughy itself says that all bytes have arrived. If it may have them and does not confirm
    it, the task fails with :class:`~airflow_provider_roughy.exceptions.RoughyUnconfirmedUploadError` and may be
    retried; its asset is never deleted then.

    On Airflow 3.3 and later every start of the task (a retry, a cleared task, one after a killed worker) goes on where
    Roughy stands: the task state store holds the asset's id and a fingerprint of the source. If all bytes have arrived
    already, nothing is sent. If the asset is gone or failed at Roughy, or the source, the project or the language has
    changed, it starts anew, and cancels the old upload if that is still open. Before 3.3 there is no such store: a try
    that fails discards its asset, so that no orphan stays, and the next one starts anew. Only a refused key, and bytes
    that may all have arrived, leave it where it is; ``asset_id`` resumes it. With a ``ledger`` it is on every version
    as on 3.3.

    What it cannot do: ``POST /v1/assets`` has no idempotency key. If its reply is lost, or the worker dies between the
    reply and the note of it, an empty asset stays in ``pending_upload``, which costs nothing, and the next try makes
    another. It is not adopted: an asset has no name of its own, and while it is empty no size, so it could as well be
    the one that a neighbour is about to fill. And a mapped task is known by its index: if the list that it is mapped
    over has shifted when it is cleared, it uploads the file that is now at its index, although another index has
    uploaded that before, and Roughy charges it again.

    The result is the asset's id in every mode, so that waiting for many is one line::

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
    :param poll_interval: With ``wait_for_completion``: seconds, or a ``timedelta``, between two looks.
    :param timeout: With ``wait_for_completion``: seconds, or a ``timedelta``, to wait after the upload; by default
        Airflow's ``[sensors] default_timeout``. A timeout is no reason to upload again, so it burns no retries.
        Airflow's ``execution_timeout`` bounds upload and wait together, in the triggerer as well.
    :param durable: Whether a later start of the task may go on with an earlier one's upload (Airflow 3.3 and later).
    :param ledger: A folder that remembers what has been ingested, as of
        :class:`~airflow_provider_roughy.operators.RoughyIngestOperator`, which may share it. Then a later start goes on
        with an earlier one's upload on every version of Airflow, and the same recording is not uploaded again by
        another run, another task or another DAG: they return its asset. (templated)
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
        with self.hook:
            asset_id = self._upload(context)
            show_asset(context, asset_id)
            if not self.wait_for_completion:
                return self._end(context, Verdict(asset_id, Outcome.WAITING, kind=ASSET.name, state="uploaded"))
            return self._end(context, self._wait_for(asset_id, started))

    def _upload(self, context: Context) -> str:
        source = find_source(self.source, conn_id=self.source_conn_id)
        language = language_code(self.language) if self.language else None
        if self.asset_id:
            return self._run(source, None, lambda upload: upload.resume(str(self.asset_id)))
        project_id = self.hook.get_project_id(self.project_id)
        with ExitStack() as stack:
            memory: Memory | None = context.get("task_state_store") if self.durable else None
            if self.ledger is not None:
                memory = stack.enter_context(
                    remembered(
                        Ledger(self.ledger, conn_id=self.ledger_conn_id),
                        source,
                        owner=Owner.of(context["ti"]),
                        project_id=project_id,
                        language=language,
                    )
                )
            return self._run(source, memory, lambda upload: upload.run(project_id, language))

    def _run(self, source: Source, memory: Memory | None, start: Callable[[DurableUpload], str]) -> str:
        self._running = self.hook.durable_upload(source, memory=memory, log=self.log)
        try:
            return start(self._running)
        finally:
            self._running = None

    def on_kill(self) -> None:
        """Leave the upload for the next try to go on with, or discard it where the next try could not find it."""
        if self._running is not None:
            self._running.abandon()

    def _wait_for(self, asset_id: str, started: float) -> Verdict:
        deadline = self.deadline(started)
        watch = Watch(ASSET, asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        verdict = watch.look(self.hook, within=max(deadline - time.time(), 1.0))
        if verdict is None and self.deferrable:
            RoughyAssetTrigger(
                asset_id=asset_id,
                roughy_conn_id=self.roughy_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                on_pending_payment=self.on_pending_payment,
                not_before=watch.not_before,
            ).take_over(self)
        if verdict is None:
            verdict = wait_here(
                self.hook,
                watch,
                poll_interval=self.poll_interval,
                deadline=deadline,
                not_before=watch.not_before,
            )
        return verdict

    def _end(self, context: Context, verdict: Verdict) -> str:
        verdict.raise_for_failure(self.on_pending_payment)
        announce_verdict(self, context, verdict, source=as_text(without_secrets(str(self.source))))
        return verdict.id

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> str:
        """Take the trigger's verdict.

        :returns: The asset's id.
        """
        verdict = Verdict.from_event(event)
        # What the process before the wait has reported is gone with it.
        lineage.report_upload(self.hook, str(self.source), verdict.id)
        result = self._end(context, verdict)
        self.log.info("Asset %s is %s", verdict.id, verdict.state)
        return result
