"""The operators that cut an asset, and export the cut."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy import lineage
from airflow_provider_roughy.compat import BaseOperator
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import CUT
from airflow_provider_roughy.operators.making import MakingOperator
from airflow_provider_roughy.outlets import announce_file
from airflow_provider_roughy.storage import asset_uri
from airflow_provider_roughy.target import Overwrite, check_overwrite, find_target

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from airflow_provider_roughy.api import RoughyCut, RoughyExport
    from airflow_provider_roughy.compat import Context, ObjectStoragePath


class RoughyCutOperator(MakingOperator):
    """Cuts an asset and returns the cut's id, which the export operators and ``RoughyRenderOperator`` take.

    Cuts cost nothing, and the same asset with the same script finds the same cut: a retry, a cleared task and one whose
    worker was killed all go on with the cut that there is. So does a cut that has failed, which a retry would not mend:
    it fails with :class:`~airflow_provider_roughy.exceptions.RoughyCutFailedError` and burns no retries.

    While the asset is not ready, the task waits for that first, and asks no sooner than Roughy's ``Retry-After`` says.
    With ``deferrable=True`` it does all its waiting in the triggerer, on the one poll that all share who wait on one
    connection.

    The result is the cut's id in every mode, so that many are one line::

        cut = RoughyCutOperator.partial(task_id="cut", deferrable=True).expand(asset_id=upload.output)

    :param asset_id: The asset, e.g. the output of ``RoughyCreateUploadOperator``. (templated)
    :param script: What to cut by, up to 100,000 characters; by default Roughy finds that itself. (templated)
    :param wait_for_completion: Whether to wait until the cut is completed; otherwise its id is returned at once, for
        :class:`~airflow_provider_roughy.sensors.RoughyCutSensor`. An asset that is not ready is waited for anyway.
    :param on_pending_payment: What to do about an asset that the credits did not cover: ``"fail"`` raises
        :class:`~airflow_provider_roughy.exceptions.RoughyPaymentRequiredError`; ``"skip"`` skips the task; ``"return"``
        succeeds and returns ``None``, as there is no cut; ``"wait"`` waits on, because Roughy makes the asset ready
        by itself after a top-up.
    :param poll_interval: Seconds, or a ``timedelta``, between two looks.
    :param timeout: Seconds, or a ``timedelta``, to wait in all, for the asset and for the cut; by default Airflow's
        ``[sensors] default_timeout``. Then the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError` and burns no retries. Airflow's
        ``execution_timeout`` bounds it as well, in the triggerer too.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot.
    """

    kind = CUT
    template_fields: Sequence[str] = ("asset_id", "script", "roughy_conn_id")

    def __init__(self, *, asset_id: str, script: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asset_id = asset_id
        self.script = script

    def make(self) -> RoughyCut:
        """Ask for the cut."""
        return self.hook.create_cut(self.asset_id, self.script)


class _ExportOperator(BaseOperator):
    """What the exports of a cut have in common."""

    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        cut_id: str,
        target: str | os.PathLike[str] | ObjectStoragePath,
        format: str,
        target_conn_id: str | None = None,
        overwrite: Overwrite = "replace",
        roughy_conn_id: str = RoughyHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_overwrite(overwrite)
        self.cut_id = cut_id
        self.target = target
        self.format = format
        self.target_conn_id = target_conn_id
        self.overwrite = overwrite
        self.roughy_conn_id = roughy_conn_id

    def read(self, hook: RoughyHook) -> RoughyExport:
        """Read the file from Roughy."""
        raise NotImplementedError

    def execute(self, context: Context) -> str:
        """Write the file.

        :returns: The target's URI.
        """
        with RoughyHook(self.roughy_conn_id) as hook:
            export = self.read(hook)
        # Not by Roughy's name for it, which two cuts of one recording may share.
        name = f"{self.cut_id}{PurePath(export.filename or '').suffix or f'.{self.format}'}"
        target = find_target(self.target, name=name, conn_id=self.target_conn_id)
        written = target.save(export.content, self.overwrite)
        self.log.info(
            "Cut %s as %s: %s %s (%d bytes)",
            self.cut_id,
            self.format,
            "written to" if written else "there already:",
            target.uri,
            len(export.content),
        )
        lineage.report(hook, written=[asset_uri(target.uri)])
        announce_file(self, context, target.uri, cut_id=self.cut_id, format=self.format)
        return target.uri


class RoughyExportCutOperator(_ExportOperator):
    """Writes a cut as the timeline file of an editor, and returns the target's URI.

    The file appears whole or not at all, and running it twice writes the same file twice.

    :param cut_id: A completed cut, e.g. the output of ``RoughyCutOperator``. (templated)
    :param target: Where the file goes: a local path, a URI such as ``s3://bucket/key`` that Airflow's object storage
        knows, or an ``ObjectStoragePath``. In a folder, which ends with a slash or is there already, the file is named
        by the cut's id. (templated)
    :param format: The format, by Roughy's name for it, e.g. ``"fcpxml"``. One that Roughy does not know fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyUnsupportedFormatError` and burns no retries. (templated)
    :param frame_rate: Frames a second of the timeline, for a recording that has none of its own; without it that fails
        with :class:`~airflow_provider_roughy.exceptions.RoughyFrameRateRequiredError`. (templated)
    :param target_conn_id: The Airflow connection of the target's storage. (templated)
    :param overwrite: What to do about a file that is there: ``"replace"`` it always; ``"skip"`` writing if it is as
        long as the new one, and replace any other; or ``"fail"`` if it is not as long, which burns no retries. One that
        is as long counts as written by an earlier try of the task, so that retries succeed in every case.
    :param roughy_conn_id: The Airflow connection. (templated)
    """

    template_fields: Sequence[str] = (
        "cut_id",
        "target",
        "format",
        "frame_rate",
        "target_conn_id",
        "roughy_conn_id",
    )

    def __init__(self, *, frame_rate: float | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.frame_rate = frame_rate

    def read(self, hook: RoughyHook) -> RoughyExport:
        """Read the timeline from Roughy."""
        return hook.export_cut(self.cut_id, self.format, self.frame_rate)


class RoughyExportSubtitlesOperator(_ExportOperator):
    """Writes the captions of a cut, and returns the target's URI.

    The file appears whole or not at all, and running it twice writes the same file twice.

    :param cut_id: A completed cut, e.g. the output of ``RoughyCutOperator``. (templated)
    :param target: Where the file goes: a local path, a URI such as ``s3://bucket/key`` that Airflow's object storage
        knows, or an ``ObjectStoragePath``. In a folder, which ends with a slash or is there already, the file is named
        by the cut's id. (templated)
    :param format: ``"srt"`` or ``"vtt"``. (templated)
    :param target_conn_id: The Airflow connection of the target's storage. (templated)
    :param overwrite: What to do about a file that is there: ``"replace"`` it always; ``"skip"`` writing if it is as
        long as the new one, and replace any other; or ``"fail"`` if it is not as long, which burns no retries. One that
        is as long counts as written by an earlier try of the task, so that retries succeed in every case.
    :param roughy_conn_id: The Airflow connection. (templated)
    """

    template_fields: Sequence[str] = ("cut_id", "target", "format", "target_conn_id", "roughy_conn_id")

    def __init__(self, *, format: str = "srt", **kwargs: Any) -> None:
        super().__init__(format=format, **kwargs)

    def read(self, hook: RoughyHook) -> RoughyExport:
        """Read the captions from Roughy."""
        return hook.export_subtitles(self.cut_id, self.format)
