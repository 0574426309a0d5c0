"""The operators that cut an asset, and export the cut."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import CUT
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.outlets import announce_file
from airflow_provider_roughy.operators.derived import DerivedResourceOperator
from airflow_provider_roughy.operators.interruptible import InterruptibleOperator
from airflow_provider_roughy.transfer.storage import asset_uri
from airflow_provider_roughy.transfer.target import Overwrite, check_overwrite, find_target

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from airflow_provider_roughy.api import RoughyCut, RoughyExport
    from airflow_provider_roughy.compat import Context, ObjectStoragePath


class RoughyCutOperator(DerivedResourceOperator):
    """Cuts an asset and returns the cut's id, which the export operators and ``RoughyRenderOperator`` take.

    Cuts cost nothing. For the same asset and script, Roughy returns the same cut, so a retry, a cleared task and a task
    whose worker was killed continue with it. A cut that has failed fails the task with
    :class:`~airflow_provider_roughy.exceptions.RoughyCutFailedError` and uses no retry, as a retry would find the same
    cut.

    If the asset is not ready, the task waits for it first, at least as long as Roughy's ``Retry-After`` says.
    With ``deferrable=True`` the task waits in the triggerer, where all waiters of a connection share one poll.

    The result is the cut's id in every mode. To cut many assets::

        cut = RoughyCutOperator.partial(task_id="cut", deferrable=True).expand(asset_id=upload.output)

    :param asset_id: The asset, e.g. the output of ``RoughyCreateUploadOperator``. (templated)
    :param script: The script to cut by, up to 100,000 characters; by default Roughy decides what to keep. (templated)
    :param wait_for_completion: Whether to wait until the cut is completed; otherwise its id is returned at once, for
        :class:`~airflow_provider_roughy.sensors.RoughyCutSensor`. The task always waits for an asset that is not ready.
    :param on_pending_payment: What to do about an asset that the credits do not cover: ``"fail"`` raises
        :class:`~airflow_provider_roughy.exceptions.RoughyPaymentRequiredError`; ``"skip"`` skips the task; ``"return"``
        succeeds and returns ``None``, as there is no cut; ``"wait"`` continues to wait, as Roughy makes the asset ready
        automatically after a top-up.
    :param poll_interval: Seconds, or a ``timedelta``, between two polls.
    :param timeout: Seconds, or a ``timedelta``, to wait for the asset and the cut together; by default Airflow's
        ``[sensors] default_timeout``. After that the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError` and uses no retry. Airflow's
        ``execution_timeout`` bounds the wait as well, in the triggerer too.
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
        """Create the cut."""
        return self.hook.create_cut(self.asset_id, self.script)


class _ExportOperator(InterruptibleOperator):
    """The base of operators that export a file of a cut."""

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
        with self._interrupt, RoughyHook(self.roughy_conn_id) as hook:
            export = self.read(hook)
        # Not the file name that Roughy gives: two cuts of one recording may share it.
        extension = re.fullmatch(r".*(\.[A-Za-z0-9]{1,16})", export.filename or "", re.DOTALL)
        name = f"{self.cut_id}{extension[1] if extension else f'.{self.format}'}"
        target = find_target(self.target, name=name, conn_id=self.target_conn_id)
        written = target.save(export.content, self.overwrite)
        self.log.info(
            "%s cut %s as %s: %s (%d bytes)",
            "Exported" if written else "Skipped, as the file exists already:",
            self.cut_id,
            self.format,
            target.uri,
            len(export.content),
        )
        lineage.report(hook, written=[asset_uri(target.uri)])
        announce_file(self, context, target.uri, written=written, cut_id=self.cut_id, format=self.format)
        return target.uri


class RoughyExportCutOperator(_ExportOperator):
    """Writes a cut as the timeline file of an editor, and returns the target's URI.

    The file is written completely or not at all. Running the task twice writes the same file twice.

    :param cut_id: A completed cut, e.g. the output of ``RoughyCutOperator``. (templated)
    :param target: Where the file goes: a local path, a URI such as ``s3://bucket/key`` that Airflow's object storage
        knows, or an ``ObjectStoragePath``. If it ends with a slash or is a folder that exists, the file in it is named
        by the cut's id. (templated)
    :param format: The format, by Roughy's name for it, e.g. ``"fcpxml"``. A format that Roughy does not know fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyUnsupportedFormatError` and uses no retry. (templated)
    :param frame_rate: Frames a second of the timeline, for a recording that has none of its own. Without it, such a
        recording fails with :class:`~airflow_provider_roughy.exceptions.RoughyFrameRateRequiredError`. (templated)
    :param target_conn_id: The Airflow connection of the target's storage. (templated)
    :param overwrite: What to do about a file that exists: ``"replace"`` it; ``"skip"`` writing if it has the same
        content, and replace it otherwise; or ``"fail"`` if its content differs, which uses no retry. A file with the
        same content counts as written by an earlier try of the task, so that retries succeed in every case.
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

    The file is written completely or not at all. Running the task twice writes the same file twice.

    :param cut_id: A completed cut, e.g. the output of ``RoughyCutOperator``. (templated)
    :param target: Where the file goes: a local path, a URI such as ``s3://bucket/key`` that Airflow's object storage
        knows, or an ``ObjectStoragePath``. If it ends with a slash or is a folder that exists, the file in it is named
        by the cut's id. (templated)
    :param format: ``"srt"`` or ``"vtt"``. (templated)
    :param target_conn_id: The Airflow connection of the target's storage. (templated)
    :param overwrite: What to do about a file that exists: ``"replace"`` it; ``"skip"`` writing if it has the same
        content, and replace it otherwise; or ``"fail"`` if its content differs, which uses no retry. A file with the
        same content counts as written by an earlier try of the task, so that retries succeed in every case.
    :param roughy_conn_id: The Airflow connection. (templated)
    """

    template_fields: Sequence[str] = ("cut_id", "target", "format", "target_conn_id", "roughy_conn_id")

    def __init__(self, *, format: str = "srt", **kwargs: Any) -> None:
        super().__init__(format=format, **kwargs)

    def read(self, hook: RoughyHook) -> RoughyExport:
        """Read the captions from Roughy."""
        return hook.export_subtitles(self.cut_id, self.format)
