"""Cuts: the segments of a recording that are kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

from airflow_provider_roughy.emulator.choices import Choices
from airflow_provider_roughy.emulator.editing import Segment, edit
from airflow_provider_roughy.emulator.timelines import parse_rate
from airflow_provider_roughy.emulator.wire import Reader, as_fraction, as_text, uuid7

from .assets import SEEDED_DURATION, Asset, Assets
from .clock import Clock
from .database import Database
from .files import Files
from .history import History
from .jobs import Job, Jobs

#: Longest script in characters (API page "Cut an asset").
SCRIPT_CHARACTERS = 100_000

#: Frames per second of videos that are seeded without any bytes.
SEEDED_RATE = "25"

as_script: Reader[str] = as_text(0, SCRIPT_CHARACTERS)


def _as_segments(value: object) -> str:
    """Return segments as they are stored: JSON of start and end in seconds, as text."""
    try:
        segments = [(as_fraction(begin), as_fraction(end)) for begin, end in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        segments = []
    moments = [moment for segment in segments for moment in segment]
    if not segments or moments != sorted(set(moments)) or moments[0] < 0:
        raise ValueError("Input should be pairs of begin and end in seconds, in order")
    return json.dumps([[str(begin), str(end)] for begin, end in segments])


def _as_frame_rate(value: object) -> str:
    return str(parse_rate(str(value)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut(Job):
    """One cut.

    :param script: The script of the request.
    :param segments: The kept segments, as JSON; see :meth:`kept`.
    :param frame_rate: The frame rate of the video, a fraction as text; ``None`` if there is no video.
    """

    script: str | None = None
    segments: str | None = None
    frame_rate: str | None = None

    @property
    def kept(self) -> list[Segment]:
        """The kept parts of the recording: start and end of each segment in seconds, in order."""
        return [(Fraction(begin), Fraction(end)) for begin, end in json.loads(self.segments or "[]")]


class Cuts(Jobs[Cut]):
    """All cuts."""

    NAME = "Cut"
    TABLE = "cuts"
    SETTABLE_FIELDS: ClassVar[Mapping[str, Reader[Any]]] = {"segments": _as_segments, "frame_rate": _as_frame_rate}
    _row = Cut

    def __init__(
        self, database: Database, clock: Clock, files: Files, history: History, assets: Assets, choices: Choices
    ) -> None:
        columns = "script TEXT, segments TEXT, frame_rate TEXT"
        super().__init__(database, clock, files, history, assets, choices, columns=columns)

    def create(self, account: int, asset_id: str, script: str | None) -> tuple[Cut, bool]:
        """Cut an asset. The same asset and script return the same cut (API page "Cut an asset").

        :returns: The cut, and whether it is new.
        """
        with self._database.change():
            asset = self._assets.get(account, asset_id)
            self._assets.require_cuttable(asset)
            query = "SELECT * FROM cuts WHERE asset_id = ? AND script IS ? ORDER BY created_at DESC, rowid DESC"
            found = self._database.row(Cut, query, asset_id, script)
            if found is not None and not (found.state == "failed" and self._choices.repeat_after_failure == "new"):
                return found, False
            cut = self._new(asset, script)
            self._queue(cut)
            return cut, True

    def _new(self, asset: Asset, script: str | None) -> Cut:
        now = self._clock.now()
        return Cut(
            id=uuid7(now),
            account=asset.account,
            project_id=asset.project_id,
            asset_id=asset.id,
            created_at=now,
            queued_at=now,
            script=script,
        )

    def _make(self, job: Cut, asset: Asset) -> dict[str, Any]:
        path = self._files.path(asset.id)
        if not path.exists():
            return self._seeded_result(job)
        found = edit(path, job.script, lambda: self._is_given_up(job.id))
        rate = None if found.frame_rate is None else str(found.frame_rate)
        segments = [[str(begin), str(end)] for begin, end in found.segments]
        return {"segments": json.dumps(segments), "frame_rate": rate}

    def _seeded_result(self, job: Cut) -> dict[str, Any]:
        """Return the columns of a cut that keeps the whole recording."""
        asset = self._assets.known(job.asset_id)
        segments = [["0", asset.duration_seconds or SEEDED_DURATION]]
        return {"segments": json.dumps(segments), "frame_rate": SEEDED_RATE if asset.type == "video" else None}

    @property
    def _failed_code(self) -> str:
        return self._choices.failed_cut_error_code

    def seed(self, state: str, fields: Mapping[str, Any], *, asset_id: str | None, script: str | None) -> Cut:
        """Create a cut in a given state.

        :param state: Any word; a state of the API sets the fields that belong to it.
        :param fields: See :meth:`set_state`.
        :param asset_id: The asset; by default a new one that is ready.
        :param script: The script of the cut.
        :raises UnknownId: If there is no such asset.
        :raises ValueError: If a field does not exist, or a value has the wrong type.
        """
        script = None if script is None else as_script(script)
        with self._database.change():
            return self._seed(self._new(self._seeded_asset(asset_id), script), state, fields)
