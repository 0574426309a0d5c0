"""The operator that uploads a recording as a new asset."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.compat import AirflowFailException, BaseOperator, conf
from airflow_provider_roughy.exceptions import RoughyError, RoughyNotFoundError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import (
    ASSET,
    OnPendingPayment,
    Outcome,
    Verdict,
    as_seconds,
    check_on_pending_payment,
)
from airflow_provider_roughy.polling import Watch, wait_here
from airflow_provider_roughy.source import find_source
from airflow_provider_roughy.triggers import RoughyAssetTrigger, ended_by_airflow

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from airflow_provider_roughy.api import RoughyAsset
    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.source import Source


class RoughyCreateUploadOperator(BaseOperator):
    """Creates an asset and uploads a recording to it; returns the asset's id.

    The recording is looked at before anything is created: it must exist, be a file of 64 bytes to 50 GiB, and be
    readable. It is then streamed in constant memory, and goes on where Roughy stands after a broken connection, a
    timeout, a lost reply, a 5xx, a 429 or a lock. What no retry can mend (wrong key, no credits, neither audio nor
    video) fails at once and burns no retries, and leaves no asset behind.

    On Airflow 3.3 and later every start of the task (a retry, a cleared task, one after a killed worker) goes on where
    Roughy stands: the task state store holds the asset's id and a fingerprint of the source. If all bytes have arrived
    already, nothing is sent. If the asset is gone or failed at Roughy, or the source, the project or the language has
    changed, it starts anew, and cancels the old upload if that is still open. Before 3.3 there is no such store: a try
    that fails discards its asset, so that no orphan stays, and the next one starts anew.

    ``POST /v1/assets`` has no idempotency key. A worker that dies between Roughy's reply and the note of it leaves an
    empty asset in ``pending_upload``, which costs nothing.

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
        :class:`~airflow_provider_roughy.sensors.RoughyAssetSensor` if that fails.
    :param on_pending_payment: With ``wait_for_completion``: what to do about an asset that the credits did not cover:
        ``"fail"``, ``"skip"``, ``"return"`` or ``"wait"``, as in
        :class:`~airflow_provider_roughy.sensors.RoughyAssetSensor`.
    :param poll_interval: With ``wait_for_completion``: seconds, or a ``timedelta``, between two looks.
    :param timeout: With ``wait_for_completion``: seconds, or a ``timedelta``, to wait after the upload; by default
        Airflow's ``[sensors] default_timeout``. A timeout is no reason to upload again, so it burns no retries.
        Airflow's ``execution_timeout`` bounds upload and wait together, in the triggerer as well.
    :param durable: Whether a later start of the task may go on with an earlier one's upload (Airflow 3.3 and later).
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: With ``wait_for_completion``: whether to wait in the triggerer, which takes no worker slot.
    """

    template_fields: Sequence[str] = (
        "source",
        "project_id",
        "language",
        "source_conn_id",
        "asset_id",
        "roughy_conn_id",
    )
    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        project_id: str | None = None,
        language: str | None = None,
        source_conn_id: str | None = None,
        asset_id: str | None = None,
        wait_for_completion: bool = False,
        on_pending_payment: OnPendingPayment = "fail",
        poll_interval: float | timedelta = 30.0,
        timeout: float | timedelta | None = None,
        durable: bool = True,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_on_pending_payment(on_pending_payment)
        self.source = source
        self.project_id = project_id
        self.language = language
        self.source_conn_id = source_conn_id
        self.asset_id = asset_id
        self.wait_for_completion = wait_for_completion
        self.on_pending_payment = on_pending_payment
        self.poll_interval = as_seconds("poll_interval", poll_interval)
        self.timeout = as_seconds(
            "timeout", conf.getfloat("sensors", "default_timeout") if timeout is None else timeout
        )
        self.durable = durable
        self.roughy_conn_id = roughy_conn_id
        self.deferrable = deferrable
        #: The asset that bytes are being sent to.
        self._open_asset: RoughyAsset | None = None
        #: Whether a later try will find its upload.
        self._leave_open = False

    @cached_property
    def hook(self) -> RoughyHook:
        """The hook of this task."""
        return RoughyHook(self.roughy_conn_id)

    def execute(self, context: Context) -> str:
        """Upload, and wait if asked to.

        :returns: The asset's id.
        """
        started = time.time()
        notes = _Notes(context.get("task_state_store") if self.durable else None)
        with self.hook:
            asset_id = self._upload(notes)
            if self.wait_for_completion:
                self._wait_for(asset_id, started)
        return asset_id

    def _upload(self, notes: _Notes) -> str:
        self._leave_open = False
        source = find_source(self.source, conn_id=self.source_conn_id)
        language = language_code(self.language) if self.language else None
        if self.asset_id:
            asset = self.hook.get_asset(self.asset_id)
            Verdict.of(ASSET, asset).raise_for_failure("return")
            return self._resume(asset, source, notes)
        project_id = self.hook.get_project_id(self.project_id)
        wanted = {**source.fingerprint, "project_id": project_id, "language": language}
        earlier = self._find_earlier(notes, wanted)
        if earlier is not None:
            try:
                return self._resume(earlier, source, notes)
            except RoughyNotFoundError as error:
                self.log.info("The upload of asset %s is gone, starting anew: %s", earlier.id, error)
        asset = self.hook.create_asset(project_id, source.size, language)
        with self._guarded(asset):
            # Nothing comes between the two: a worker that dies here leaves an asset that nobody knows.
            self._leave_open = notes.write(asset.id, wanted)
            self.log.info(
                "Created asset %s in project %s for %s (%s)", asset.id, project_id, source.uri, _bytes(source.size)
            )
            self._send(asset, source, notes, fresh=True)
        return asset.id

    def _find_earlier(self, notes: _Notes, wanted: dict[str, Any]) -> RoughyAsset | None:
        """Decide what to make of an earlier start of this task: go on with its asset, or (``None``) start anew.

        A retry, a cleared task, a killed worker and a mapped task whose list has shifted all come by here.
        """
        note = notes.read()
        if note is None:
            return None
        asset_id, was_wanted = note
        try:
            asset = self.hook.get_asset(asset_id)
        except RoughyNotFoundError:
            self.log.info("Asset %s of an earlier try is gone: starting anew", asset_id)
            return None
        if was_wanted != wanted:
            names = sorted(wanted.keys() | was_wanted.keys())
            changed = ", ".join(name for name in names if was_wanted.get(name) != wanted.get(name))
            self.log.info("Asset %s of an earlier try was for something else (%s): starting anew", asset_id, changed)
            if asset.upload_url is not None:
                self._discard(self.hook, asset)
            return None
        if Verdict.of(ASSET, asset).outcome is Outcome.FAILED:
            self.log.info("Asset %s of an earlier try has failed at Roughy: starting anew", asset_id)
            return None
        self._leave_open = True
        return asset

    def _resume(self, asset: RoughyAsset, source: Source, notes: _Notes) -> str:
        if asset.upload_url is None:
            self.log.info("Asset %s is %s: its bytes have arrived, nothing to send", asset.id, asset.state)
        else:
            self.log.info("Resuming the upload of %s to asset %s", source.uri, asset.id)
            with self._guarded(asset):
                self._send(asset, source, notes)
        return asset.id

    def _send(self, asset: RoughyAsset, source: Source, notes: _Notes, *, fresh: bool = False) -> None:
        progress = _Progress(self.log, asset.id, notes)
        self.hook.upload(asset, source, progress, fresh=fresh)
        progress.finish(source.size)

    @contextmanager
    def _guarded(self, asset: RoughyAsset) -> Iterator[None]:
        """Discard the asset if the body fails and no later try is to go on with it; one that the user named stays."""
        self._open_asset = asset
        try:
            yield
        except BaseException as error:  # A kill and a timeout are no Exception, and must not leave an orphan either.
            if self.asset_id or (self._leave_open and not isinstance(error, AirflowFailException)):
                self.log.info("Asset %s keeps what has arrived: a later try goes on from there", asset.id)
            else:
                self._discard(self.hook, asset)
            raise
        finally:
            self._open_asset = None

    def on_kill(self) -> None:
        """Leave the upload for the next try to go on with, or discard it where the next try could not find it."""
        if self._open_asset is None or self._leave_open or self.asset_id:
            return
        # The hook itself may be in the middle of a request.
        with self.hook.twin() as hook:
            self._discard(hook, self._open_asset)

    def _discard(self, hook: RoughyHook, asset: RoughyAsset) -> None:
        """Cancel an upload; where there is none left to cancel, delete the asset, which nobody will come back for."""
        try:
            if hook.cancel_upload(asset) or hook.delete_asset(asset.id):
                self.log.info("Discarded asset %s and its upload", asset.id)
        except RoughyError as err:
            self.log.warning("Asset %s could not be discarded, and its upload stays open: %s", asset.id, err)

    def _wait_for(self, asset_id: str, started: float) -> None:
        deadline = time.time() + self.timeout
        if self.execution_timeout is not None:
            # Airflow 3 does not count the time in the triggerer.
            deadline = min(deadline, started + self.execution_timeout.total_seconds())
        watch = Watch(ASSET, asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        verdict = watch.look(self.hook, within=max(deadline - time.time(), 1.0))
        if verdict is None and self.deferrable:
            RoughyAssetTrigger(
                asset_id=asset_id,
                roughy_conn_id=self.roughy_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                on_pending_payment=self.on_pending_payment,
            ).take_over(self)
        if verdict is None:
            verdict = wait_here(self.hook, watch, poll_interval=self.poll_interval, deadline=deadline)
        verdict.raise_for_failure(self.on_pending_payment)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait in the triggerer, unless nothing came of it."""
        verdict = ended_by_airflow(ASSET, next_method, next_kwargs)
        if verdict:
            verdict.raise_for_failure()
        return super().resume_execution(next_method, next_kwargs, context)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> str:
        """Take the trigger's verdict.

        :returns: The asset's id.
        """
        verdict = Verdict.from_event(event)
        verdict.raise_for_failure(self.on_pending_payment)
        self.log.info("Asset %s is %s", verdict.id, verdict.state)
        return verdict.id


class _Notes:
    """What one start of a task leaves to the next, in Airflow's task state store; no secret, it is plain text.

    :param store: ``context["task_state_store"]``, which Airflow has from 3.3 on.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def read(self) -> tuple[str, dict[str, Any]] | None:
        """Return the asset of an earlier start, and what it was made for."""
        match self._store.get("roughy_upload") if self._store is not None else None:
            case {"asset_id": str(asset_id), "wanted": dict(wanted)}:
                return asset_id, wanted
        return None

    def write(self, asset_id: str, wanted: dict[str, Any]) -> bool:
        """Keep the asset and what it is made for.

        :returns: Whether there is a store to keep it in.
        """
        if self._store is None:
            return False
        self._store.set("roughy_upload", {"asset_id": asset_id, "wanted": wanted})
        return True

    def show_progress(self, done: int, total: int) -> None:
        """Show how far the upload is, where Airflow's UI shows the store."""
        if self._store is not None:
            self._store.set("roughy_progress", {"bytes": done, "of": total, "percent": 100 * done // total})


class _Progress:
    """Tells how far an upload is: after every tenth, but at most once a second, or after 30 seconds.

    :param log: Where to.
    :param asset_id: The asset.
    :param notes: Where to as well.
    """

    def __init__(self, log: Any, asset_id: str, notes: _Notes) -> None:
        self._log = log
        self._notes = notes
        self._asset_id = asset_id
        self._started = self._logged_at = time.monotonic()
        self._first: int | None = None
        self._logged = 0

    def __call__(self, done: int, total: int) -> None:
        if self._first is None:
            self._first = self._logged = done
        now = time.monotonic()
        quiet = now - self._logged_at
        if done >= total or not (quiet >= 30 or (quiet >= 1 and abs(done - self._logged) >= total / 10)):
            return
        self._logged_at, self._logged = now, done
        rate = max(done - self._first, 0) / (now - self._started)
        left = f"{(total - done) / rate:.0f} s left" if rate else "stalled"
        self._log.info(
            "Asset %s: %s of %s (%.0f %%), %s/s, %s",
            self._asset_id,
            _bytes(done),
            _bytes(total),
            100 * done / total,
            _bytes(rate),
            left,
        )
        self._show(done, total)

    def finish(self, total: int) -> None:
        """Log that all bytes have arrived."""
        seconds = time.monotonic() - self._started
        self._log.info("Asset %s: all %s have arrived, after %.1f s", self._asset_id, _bytes(total), seconds)
        self._show(total, total)

    def _show(self, done: int, total: int) -> None:
        try:
            self._notes.show_progress(done, total)
        except Exception as err:  # Airflow's API may be down for a while; the upload does not need it.
            self._log.debug("The progress could not be shown: %s", err)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
