"""Renders: media files rendered from an asset, whole or by a cut of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from airflow_provider_roughy.emulator.choices import Choices
from airflow_provider_roughy.emulator.media import MediaProblem
from airflow_provider_roughy.emulator.rendering import render
from airflow_provider_roughy.emulator.wire import (
    ApiError,
    Fields,
    Reader,
    as_integer,
    as_member,
    as_number,
    as_object,
    as_one_of,
    invalid,
    uuid7,
)

from .assets import Asset, Assets
from .clock import Clock
from .cuts import Cuts
from .database import Database
from .files import Files
from .history import History
from .jobs import Job, Jobs

#: Format -> whether it is video (render page).
FORMATS: Mapping[str, bool] = {"mp4": True, "mov": True, "m4a": False, "mp3": False}

#: The other options of a render (render page): resolutions of the shorter edge, Mbps, kbps.
RESOLUTIONS = ("720p", "1080p", "4k")
VIDEO_BITRATES = (5, 10, 20, 50)
AUDIO_BITRATES = (128, 192, 256, 320)

#: The size in bytes of renders that are seeded as completed without any content.
SEEDED_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Render(Job):
    """One render.

    :param output: The output options of the request, as JSON with sorted keys.
    :param cancelled: Whether it was cancelled.
    """

    output: str
    cut_id: str | None = None
    size_bytes: int | None = None
    cancelled: int = 0

    @property
    def output_options(self) -> dict[str, Any]:
        """The output options of the request."""
        return dict(json.loads(self.output))


def read_output(raw: Mapping[str, object], choices: Choices) -> dict[str, Any]:
    """Return the ``output`` of a request with all its fields; those that the request does not have are null.

    :raises ApiError: The 422 for an invalid field.
    """
    fields = Fields("body.output", raw)
    output = {
        "format": fields.required("format", as_one_of(tuple(FORMATS))),
        "resolution": fields.optional("resolution", as_one_of(RESOLUTIONS)),
        "video_bitrate": fields.optional("video_bitrate", as_member(VIDEO_BITRATES)),
        "audio_bitrate": fields.optional("audio_bitrate", as_member(AUDIO_BITRATES)),
        "frame_rate": fields.optional("frame_rate", as_number(1, 120)),
    }
    fields.check()
    if not FORMATS[str(output["format"])] and choices.picture_of_audio_output == "refused":
        names = [name for name in ("resolution", "video_bitrate", "frame_rate") if output[name] is not None]
        if names:
            raise invalid(*((f"body.output.{name}", "Only for video output") for name in names))
    return output


class Renders(Jobs[Render]):
    """All renders."""

    NAME = "Render"
    TABLE = "renders"
    SETTABLE_FIELDS: ClassVar[Mapping[str, Reader[Any]]] = {"size_bytes": as_integer(0, 1 << 60)}
    _row = Render

    def __init__(
        self,
        database: Database,
        clock: Clock,
        files: Files,
        history: History,
        assets: Assets,
        choices: Choices,
        *,
        cuts: Cuts,
    ) -> None:
        columns = "output TEXT NOT NULL, cut_id TEXT, size_bytes INTEGER, cancelled INTEGER NOT NULL"
        super().__init__(database, clock, files, history, assets, choices, columns=columns)
        self._cuts = cuts

    def create(self, account: int, asset_id: str, output: Mapping[str, Any], cut_id: str | None) -> tuple[Render, bool]:
        """Render an asset. The same request returns the same render (API page "Render an asset").

        :param output: The output options, checked.
        :returns: The render, and whether it is new.
        """
        with self._database.change():
            asset = self._assets.get(account, asset_id)
            self._require_ready(asset, picture=FORMATS[output["format"]])
            if cut_id is not None:
                self._require_cut(account, asset_id, cut_id)
            new = self._new(asset, output, cut_id)
            query = (
                "SELECT * FROM renders WHERE asset_id = ? AND output = ? AND cut_id IS ? AND cancelled = 0 "
                "ORDER BY created_at DESC, rowid DESC"
            )
            found = self._database.row(Render, query, asset_id, new.output, cut_id)
            if found is not None and not (found.state == "failed" and self._choices.repeat_after_failure == "new"):
                return found, False
            self._queue(new)
            return new, True

    def _require_ready(self, asset: Asset, *, picture: bool) -> None:
        if not picture:
            self._assets.require_cuttable(asset)
        elif asset.state != "ready":
            raise ApiError(409, "The asset is not ready.", code="asset_not_ready")
        elif asset.type == "audio" and not self._choices.audio_has_video_renders:
            raise ApiError(409, "The asset has no picture.", code="unsupported_format")

    def _require_cut(self, account: int, asset_id: str, cut_id: str) -> None:
        try:
            cut = self._cuts.get(account, cut_id)
        except ApiError:
            cut = None
        if cut is None or cut.asset_id != asset_id:
            if self._choices.foreign_cut_status == 404:
                raise ApiError(404, "Cut not found.")
            raise invalid(("body.cut_id", "Input should be a cut of this asset"))
        if cut.state != "completed":
            raise ApiError(409, "The cut is not completed.", code="modifier_not_ready")

    def _new(self, asset: Asset, output: Mapping[str, Any], cut_id: str | None) -> Render:
        now = self._clock.now()
        return Render(
            id=uuid7(now),
            account=asset.account,
            project_id=asset.project_id,
            asset_id=asset.id,
            created_at=now,
            queued_at=now,
            output=json.dumps(output, sort_keys=True),
            cut_id=cut_id,
        )

    def cancel(self, account: int, render_id: str) -> None:
        """Cancel a render that is not finished; ``Choices`` decide what becomes of it.

        :raises ApiError: The 409 if it is finished.
        """
        with self._database.change():
            found = self.get(account, render_id)
            if found.state not in ("pending", "processing"):
                raise ApiError(409, "The render is finished.")
            removed = self._choices.cancelled_render == "removed"
            # Before the state, since it decides which event the state causes.
            self._database.update("renders", render_id, cancelled=1)
            self.set_state(render_id, "cancelled" if removed else self._choices.cancelled_render, {})
            message = "The render was cancelled."
            self._database.update("renders", render_id, error_code="cancelled", error_message=message, size_bytes=None)
            self._files.remove(render_id)
            if removed:
                self._remove(render_id)

    def _make(self, job: Render, asset: Asset) -> dict[str, Any]:
        source, target = self._files.path(asset.id), self._files.path(job.id)
        if not source.exists():
            raise MediaProblem("The asset has no bytes: it was put there without any.")
        segments = None if job.cut_id is None else self._cuts.known(job.cut_id).kept
        try:
            render(source, target, segments, job.output_options, lambda: self._is_given_up(job.id))
        except BaseException:
            self._files.remove(job.id)
            raise
        return {"size_bytes": self._files.size(job.id)}

    def _seeded_result(self, job: Render) -> dict[str, Any]:
        return {"size_bytes": self._files.size(job.id) or SEEDED_BYTES}

    @property
    def _failed_code(self) -> str:
        return self._choices.failed_render_error_code

    def seed(
        self,
        state: str,
        fields: Mapping[str, Any],
        *,
        asset_id: str | None,
        cut_id: str | None,
        output: Mapping[str, Any],
        content: bytes | None,
    ) -> Render:
        """Create a render in a given state.

        :param state: Any word; a state of the API sets the fields that belong to it.
        :param fields: See :meth:`set_state`.
        :param asset_id: The asset; by default that of the cut, or a new one that is ready.
        :param cut_id: The cut.
        :param output: The output options.
        :param content: Bytes to store; without them, the render cannot be downloaded.
        :raises UnknownId: If there is no such asset or cut.
        :raises ValueError: If a field does not exist, or a value has the wrong type.
        """
        if not isinstance(content, (bytes, type(None))):
            raise ValueError("content must be bytes")
        if content is not None and not content:
            raise ValueError("content must not be empty: no render is. Without content it has a size, and no bytes")
        try:
            output = read_output(as_object(output), self._choices)
        except ApiError as error:
            raise ValueError(error.message) from None
        with self._database.change():
            if cut_id is not None:
                asset_id = self._cuts.known(cut_id).asset_id
            seeded = self._new(self._seeded_asset(asset_id), output, cut_id)
            if content is not None:
                self._files.path(seeded.id).write_bytes(content)
            return self._seed(seeded, state, fields)
