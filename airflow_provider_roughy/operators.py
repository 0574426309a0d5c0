"""The operators: upload a recording as a new asset, delete an asset."""

from __future__ import annotations

import asyncio
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, OnPendingPayment, Verdict, check_on_pending_payment
from airflow_provider_roughy.source import find_source
from airflow_provider_roughy.triggers import RoughyAssetTrigger, Watch, wait_for_asset

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_roughy.api import RoughyAsset
    from airflow_provider_roughy.source import Source


class RoughyCreateUploadOperator(BaseOperator):
    """Creates an asset and uploads a recording to it; returns the asset's id.

    The recording is looked at before anything is created: it must exist, be a file of 64 bytes to 50 GiB, and be
    readable. It is then streamed in constant memory, and goes on where Roughy stands after a broken connection, a
    timeout, a lost reply, a 5xx, a 429 or a lock. What no retry can mend (wrong key, no credits, neither audio nor
    video) fails at once and burns no retries. If the try fails for good, the upload is cancelled and its asset is
    gone: the next try starts anew, and no orphan stays.

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
    :param poll_interval: With ``wait_for_completion``: seconds between two looks.
    :param timeout: With ``wait_for_completion``: seconds to wait after the upload; by default Airflow's
        ``[sensors] default_timeout``. A timeout is no reason to upload again, so it burns no retries.
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
        poll_interval: float = 30.0,
        timeout: float | None = None,
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
        self.poll_interval = poll_interval
        self.timeout = conf.getfloat("sensors", "default_timeout") if timeout is None else timeout
        self.roughy_conn_id = roughy_conn_id
        self.deferrable = deferrable

    @cached_property
    def hook(self) -> RoughyHook:
        """The hook of this task."""
        return RoughyHook(self.roughy_conn_id)

    def execute(self, context: Context) -> str:
        """Upload, and wait if asked to.

        :returns: The asset's id.
        """
        with self.hook:
            asset_id = self._upload()
            if self.wait_for_completion:
                self._wait_for(asset_id)
        return asset_id

    def _upload(self) -> str:
        source = find_source(self.source, conn_id=self.source_conn_id)
        if self.language:
            language_code(self.language)
        if self.asset_id:
            asset = self.hook.get_asset(self.asset_id)
            Verdict.of(ASSET, asset).raise_for_failure("return")
            if asset.upload_url is None:
                self.log.info("Asset %s is %s: its bytes have arrived, nothing to send", asset.id, asset.state)
                return asset.id
            self.log.info("Resuming the upload of %s to asset %s", source.uri, asset.id)
            self._send(asset, source)
            return asset.id
        asset = self.hook.create_asset(self.project_id, source.size, self.language or None)
        self.log.info(
            "Created asset %s in project %s for %s (%s)",
            asset.id,
            asset.project_id,
            source.uri,
            _bytes(source.size),
        )
        try:
            self._send(asset, source, fresh=True)
        except BaseException:  # A kill and a timeout are no Exception, and must not leave an orphan either.
            self._cancel(asset)
            raise
        return asset.id

    def _send(self, asset: RoughyAsset, source: Source, *, fresh: bool = False) -> None:
        progress = _Progress(self.log, asset.id)
        self.hook.upload(asset, source, progress, fresh=fresh)
        progress.finish(source.size)

    def _cancel(self, asset: RoughyAsset) -> None:
        try:
            if self.hook.cancel_upload(asset):
                self.log.info("Cancelled the upload of asset %s", asset.id)
        except RoughyError as err:
            self.log.warning("The upload of asset %s could not be cancelled, and stays open: %s", asset.id, err)

    def _wait_for(self, asset_id: str) -> None:
        deadline = time.time() + self.timeout
        watch = Watch(asset_id, on_pending_payment=self.on_pending_payment, log=self.log)
        verdict = watch.look(self.hook)
        if verdict is None and self.deferrable:
            trigger = RoughyAssetTrigger(
                asset_id=asset_id,
                roughy_conn_id=self.roughy_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                on_pending_payment=self.on_pending_payment,
            )
            self.log.info("Asset %s is waited for in the triggerer", asset_id)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=trigger.defer_timeout)
        if verdict is None:
            verdict = asyncio.run(wait_for_asset(self.hook, watch, poll_interval=self.poll_interval, deadline=deadline))
        verdict.raise_for_failure(self.on_pending_payment)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> str:
        """Take the trigger's verdict.

        :returns: The asset's id.
        """
        verdict = Verdict.from_event(event)
        verdict.raise_for_failure(self.on_pending_payment)
        self.log.info("Asset %s is %s", verdict.id, verdict.state)
        return verdict.id


class RoughyDeleteAssetOperator(BaseOperator):
    """Removes an asset and everything derived from it (cuts, subtitles, renders), at once and for good.

    Running it twice is harmless, which makes it fit for a teardown::

        RoughyDeleteAssetOperator(task_id="delete", asset_id=upload.output).as_teardown(setups=upload)

    The result is ``{"asset_id": ..., "deleted": bool}``; ``deleted`` is false if there was nothing left to delete.

    :param asset_id: The asset. (templated)
    :param missing_ok: Whether it is fine that there is none; otherwise that fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyNotFoundError`.
    :param roughy_conn_id: The Airflow connection. (templated)
    """

    template_fields: Sequence[str] = ("asset_id", "roughy_conn_id")
    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        asset_id: str,
        missing_ok: bool = True,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.asset_id = asset_id
        self.missing_ok = missing_ok
        self.roughy_conn_id = roughy_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Delete the asset."""
        with RoughyHook(self.roughy_conn_id) as hook:
            deleted = hook.delete_asset(self.asset_id, missing_ok=self.missing_ok)
        self.log.info("Asset %s %s", self.asset_id, "deleted" if deleted else "was gone already")
        return {"asset_id": self.asset_id, "deleted": deleted}


class _Progress:
    """Logs how far an upload is: after every tenth, but at most once a second, or after 30 seconds.

    :param log: Where to.
    :param asset_id: The asset.
    """

    def __init__(self, log: Any, asset_id: str) -> None:
        self._log = log
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

    def finish(self, total: int) -> None:
        """Log that all bytes have arrived."""
        seconds = time.monotonic() - self._started
        self._log.info("Asset %s: all %s have arrived, after %.1f s", self._asset_id, _bytes(total), seconds)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
