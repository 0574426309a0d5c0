"""Writes the outputs of recordings to the target, each whole or not at all, and records them in the ledger."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING
from uuid import uuid4

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import RoughyFrameRateRequiredError
from airflow_provider_roughy.ledger import OutputRecord
from airflow_provider_roughy.lifecycle import ASSET, RENDER
from airflow_provider_roughy.logs import Log, Quiet
from airflow_provider_roughy.produce.names import unknown_cut
from airflow_provider_roughy.transfer.download import Downloaded, download
from airflow_provider_roughy.transfer.target import find_target

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call, RoughyExport
    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.ledger import ClaimOwner, Ledger
    from airflow_provider_roughy.produce.recording import Recording
    from airflow_provider_roughy.produce.wanted import Output
    from airflow_provider_roughy.transfer.pool import OnProgress
    from airflow_provider_roughy.transfer.target import Overwrite, Target

_log = logging.getLogger(__name__)


class Writer:
    """Writes outputs.

    :param hook: Talks to Roughy.
    :param owner: This try of this run.
    :param ledger: Records what was written; ``None`` to remember nothing.
    :param target_conn_id: The Airflow connection of the target's storage.
    :param overwrite: What to do about files that exist.
    :param log: Logs events.
    """

    def __init__(
        self,
        hook: RoughyHook,
        *,
        owner: ClaimOwner,
        ledger: Ledger | None,
        target_conn_id: str | None,
        overwrite: Overwrite,
        log: Log = _log,
    ) -> None:
        self._hook = hook
        self._owner = owner
        self._ledger = ledger
        self._target_conn_id = target_conn_id
        self._overwrite = overwrite
        self._log = Quiet(log)

    def check(self, root: str) -> None:
        """Check that Airflow can open the storage of the target, before anything is made.

        :param root: The folder that all outputs are in.
        :raises RoughyUnusableTargetError: If nothing can be written there.
        :raises RoughyTargetError: If the storage does not answer.
        """
        if root.rpartition("/")[2] not in ("", ":"):
            # No file or folder has that name.
            find_target(f"{root}/", name=f".roughy-{uuid4().hex}", conn_id=self._target_conn_id)

    # ---- What is written already

    def find_written(self, recording: Recording, output: Output) -> OutputRecord | None:
        """Return the record of an output, or of another one of that name.

        :param recording: The recording.
        :param output: Its output.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        return None if self._ledger is None else self._ledger.find_output(recording.locations[output.name])

    def is_there(self, recording: Recording, output: Output, record: OutputRecord) -> bool:
        """Return whether the file of a record is this output, and still there.

        :param recording: The recording.
        :param output: Its output.
        :param record: The record.
        :raises RoughyTargetError: If that could not be checked.
        """
        if record.request != request_of(recording, output):
            return False
        target = self._target(recording, output, record.cut_id)
        # Where the check is forbidden, the ledger counts.
        return target.unseen is not None or target.size == record.size_bytes

    # ---- Writing

    def write(self, recording: Recording, output: Output, on_progress: OnProgress) -> None:
        """Write an output, and record it.

        :param recording: The recording, whose cut or render is completed.
        :param output: Its output.
        :param on_progress: Called with the bytes so far and the total.
        :raises RoughyError: If it could not be written or recorded.
        """
        overwrite = self._overwrite_for(recording, output)
        if output.kind in ("captions", "timeline"):
            written = self._export(recording, output, overwrite)
            on_progress(written.size_bytes or 0, written.size_bytes or 0)
        else:
            kind, id = (RENDER, recording.render_id) if output.kind == "render" else (ASSET, recording.asset_id)
            written = download(
                self._hook.client,
                kind,
                id or "",
                location_of(recording, output, recording.cut_id),
                conn_id=self._target_conn_id,
                may_be_folder=False,
                overwrite=overwrite,
                on_progress=on_progress,
                log=self._log,
            )
        if self._ledger is not None:
            self._ledger.record_output(
                OutputRecord(
                    target=recording.locations[output.name],
                    uri=written.uri,
                    source=recording.source,
                    asset_id=recording.asset_id,
                    request=request_of(recording, output),
                    size_bytes=written.size_bytes or 0,
                    owner=str(self._owner),
                    cut_id=recording.cut_id,
                    render_id=recording.render_id if output.kind == "render" else None,
                )
            )
        if written.written or self._ledger is not None:
            recording.new.append(output.name)
        recording.written[output.name] = written.uri

    def _overwrite_for(self, recording: Recording, output: Output) -> Overwrite:
        """Return what to do about an existing file. One of the ledger that nobody has changed is replaced."""
        recorded = recording.recorded.get(output.name)
        if self._overwrite == "replace" or recorded is None:
            return self._overwrite
        is_unchanged = self._target(recording, output, recording.cut_id).size == recorded
        return "replace" if is_unchanged else self._overwrite

    def _export(self, recording: Recording, output: Output, overwrite: Overwrite) -> Downloaded:
        export = self._read_export(recording, output)
        target = self._target(recording, output, recording.cut_id)
        written = target.save(export.content, overwrite)
        return Downloaded(target.uri, written, len(export.content))

    def _read_export(self, recording: Recording, output: Output) -> RoughyExport:
        run, cut_id = self._hook.client.run, recording.cut_id or ""
        if output.kind == "captions":
            return run(api.export_subtitles(cut_id, output.format))
        frame_rate = output.request.get("frame_rate")

        def call(rate: str | None) -> Call[RoughyExport]:
            return api.export_cut(cut_id, output.format, frame_rate=rate)

        if recording.type == "audio":
            return run(call(frame_rate))
        # A video keeps its own frame rate, if it has one.
        try:
            return run(call(None))
        except RoughyFrameRateRequiredError:
            if frame_rate is None:
                raise
            return run(call(frame_rate))

    def _target(self, recording: Recording, output: Output, cut_id: str | None) -> Target:
        location = location_of(recording, output, cut_id)
        return find_target(location, name=None, conn_id=self._target_conn_id)


def location_of(recording: Recording, output: Output, cut_id: str | None) -> str:
    """Return where an output goes whose cut is known.

    :param recording: The recording.
    :param output: Its output.
    :param cut_id: The cut.
    """
    return recording.locations[output.name].replace(unknown_cut(recording.asset_id), cut_id or "")


def request_of(recording: Recording, output: Output) -> str:
    """Return a hash of what an output is made with: if it is the same, so is the file.

    :param recording: The recording.
    :param output: Its output.
    """
    of_cut = output.kind in ("captions", "timeline") or output.request.get("of") == "cut"
    # A file whose place has the id of its cut belongs to that cut.
    of_cut = of_cut or unknown_cut(recording.asset_id) in recording.locations[output.name]
    request = {
        "asset_id": recording.asset_id,
        "output": output.name,
        "request": output.request,
        "script": recording.script if of_cut else None,
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:40]
