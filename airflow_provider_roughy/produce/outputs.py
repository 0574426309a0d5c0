"""Names the outputs of recordings, finds names that collide, and finds outputs that are written already."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING

from airflow_provider_roughy.api.decode import timestamp
from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyTargetError
from airflow_provider_roughy.ingest.result import Status
from airflow_provider_roughy.produce.names import SourceName, length_problem, unknown_cut
from airflow_provider_roughy.produce.problems import problem_of
from airflow_provider_roughy.produce.recording import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from airflow_provider_roughy.ledger import ClaimOwner, Ledger, OutputRecord
    from airflow_provider_roughy.produce.names import TargetTemplate
    from airflow_provider_roughy.produce.recording import Recording
    from airflow_provider_roughy.produce.wanted import Output, Wanted
    from airflow_provider_roughy.produce.writing import Writer

_NO_TIME = datetime.min.replace(tzinfo=UTC)


def plan(recording: Recording, wanted: Wanted, template: TargetTemplate, source_root: str | None) -> None:
    """Set which outputs apply to a recording, and their names.

    Nothing is set while its asset is neither ready nor has a type, or if its asset has failed.

    :param recording: The recording.
    :param wanted: The outputs that are wanted.
    :param template: Where they go.
    :param source_root: The folder to which ``{source_dir}`` is relative.
    """
    if _has_failed(recording) or (recording.type is None and not recording.is_ready):
        return
    name = SourceName.of(recording.source, source_root)
    extension = recording.extension or name.extension or "media"
    recording.outputs, recording.left_out = wanted.of(recording.type, extension=extension)
    if recording.newer is not None:
        _replace(recording, recording.newer)
        return
    values = {
        "source_name": name.name,
        "source_stem": name.stem,
        "source_dir": name.folder,
        "asset_id": recording.asset_id,
        "project_id": recording.project_id or "",
        "cut_id": unknown_cut(recording.asset_id) if wanted.needs_cut else "",
    }
    recording.locations = {
        output.name: template.fill({**values, "kind": output.kind, "format": output.format})
        for output in recording.outputs
    }
    for output, location in recording.locations.items():
        # An id is as long as that of a cut.
        if too_long := length_problem(location.replace(unknown_cut(recording.asset_id), recording.asset_id)):
            recording.problems[output] = Problem(Status.REJECTED, f"{location}: {too_long}: change `target`")


def _replace(recording: Recording, newer: str) -> None:
    """Make nothing of a recording that has a newer version."""
    recording.newer = newer
    recording.left_out = {each.name: f"asset {newer} is a newer version of it" for each in recording.outputs or ()}
    recording.outputs, recording.locations = [], {}


def _find_versions(recordings: Iterable[Recording], named: Collection[Recording]) -> None:
    """Make only the newest of several versions of a file whose outputs have the same names."""
    versions: dict[tuple[str, str | None, tuple[str, ...]], list[Recording]] = {}
    for recording in recordings:
        if recording.origin and recording.locations and not _has_failed(recording):
            names = (recording.origin, recording.project_id, tuple(sorted(recording.locations.values())))
            versions.setdefault(names, []).append(recording)
    for same in versions.values():
        newest = max(same, key=lambda each: (timestamp(each.created_at) or _NO_TIME, each.asset_id))
        for recording in same:
            if recording is not newest and recording in named:
                _replace(recording, newest.asset_id)


def find_collisions(recordings: Iterable[Recording], named: Collection[Recording], *, may_raise: bool) -> None:
    """Reject recordings whose outputs have the name of another recording's output, or of the folder of one.

    Of several versions of a file, only the newest has outputs.

    :param recordings: All recordings.
    :param named: Those of them that have got their names now. The others keep theirs.
    :param may_raise: Whether it is an error if outputs of one recording have the same name; otherwise, it is rejected.
    :raises RoughyConfigurationError: In that case.
    """
    _find_versions(recordings, named)
    by_location: dict[str, list[tuple[Recording, str]]] = {}
    for recording in recordings:
        if _has_failed(recording):
            continue
        for output, location in recording.locations.items():
            by_location.setdefault(location, []).append((recording, output))
    for location, of_location in by_location.items():
        # Of several recordings of one name, two are enough: all of them are rejected for that.
        above = chain.from_iterable(by_location.get(each, [])[:2] for each in _folders_of(location))
        users = [*of_location, *above]
        outputs: dict[Recording, str] = {}
        for recording, output in users:
            if recording in outputs:
                reason = (
                    f"`target` gives {outputs[recording]} and {output} of {recording.source} the same name, "
                    f"{location}: add {{kind}} and {{format}}, or end it with a slash"
                )
                if may_raise:
                    raise RoughyConfigurationError(f"{reason}. Nothing was made")
                recording.problem = recording.problem or Problem(Status.REJECTED, reason)
            outputs[recording] = output
        if len(outputs) == 1:
            continue
        for recording, output in outputs.items():
            if recording in named:
                other = next(each for each in outputs if each is not recording)
                own, others = recording.locations[output], other.locations[outputs[other]]
                both = (
                    f"the same name, {own}" if own == others else f"names of which one is a folder, {own} and {others}"
                )
                recording.problem = recording.problem or Problem(
                    Status.REJECTED,
                    f"its {output} and that of {other.source} have {both}: add {{source_dir}}, {{source_name}} or "
                    "{asset_id} to `target`",
                )


def _has_failed(recording: Recording) -> bool:
    return recording.problem is not None and recording.problem.status == Status.FAILED


def _folders_of(location: str) -> Iterator[str]:
    """Yield the folders that a location is in."""
    while "/" in location:
        location = location.rpartition("/")[0]
        yield location


def find_written(recordings: Iterable[Recording], writer: Writer, ledger: Ledger, owner: ClaimOwner) -> int:
    """Find outputs that are written already, and reject recordings whose names another recording has.

    :param recordings: The recordings.
    :param writer: Compares records and files.
    :param ledger: Has the records.
    :param owner: This try of this run.
    :returns: How many are written already.
    :raises RoughyLedgerError: If the ledger cannot be read.
    """
    items = [(recording, output) for recording in recordings for output in recording.missing()]

    def find(item: tuple[Recording, Output]) -> tuple[OutputRecord | None, bool | RoughyTargetError]:
        record = writer.find_written(*item)
        try:
            return record, record is not None and writer.is_there(*item, record)
        except RoughyTargetError as error:
            return record, error

    found = 0
    for (recording, output), (record, is_there) in zip(items, ledger.each(find, items), strict=True):
        if record is None:
            continue
        if isinstance(is_there, RoughyTargetError):
            # Do not write an output again whose file could not be checked.
            recording.problems[output.name] = problem_of(is_there)
            continue
        if is_there:
            found += 1
            recording.written[output.name] = record.uri
            if record.owner == str(owner):
                recording.new.append(output.name)
        elif recording.source != record.source and recording.asset_id != record.asset_id:
            recording.problem = recording.problem or Problem(
                Status.REJECTED,
                f"its {output.name} would replace {record.uri}, which {record.owner} has written for "
                f"{record.source}: add {{source_dir}}, {{source_name}} or {{asset_id}} to `target`",
            )
        else:
            recording.recorded[output.name] = record.size_bytes
    return found
