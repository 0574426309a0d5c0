"""Names the outputs of recordings, finds names that collide, and finds outputs that are written already."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.ingest.result import Status
from airflow_provider_roughy.produce.names import SourceName, unknown_cut
from airflow_provider_roughy.produce.recording import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_roughy.ledger import ClaimOwner, Ledger, OutputRecord
    from airflow_provider_roughy.produce.names import TargetTemplate
    from airflow_provider_roughy.produce.recording import Recording
    from airflow_provider_roughy.produce.wanted import Output, Wanted
    from airflow_provider_roughy.produce.writing import Writer


def plan(recording: Recording, wanted: Wanted, template: TargetTemplate, source_root: str | None) -> None:
    """Set which outputs apply to a recording, and their names.

    The type of an asset that is not ready may be unknown: then it gets the outputs of every type, and is planned again.

    :param recording: The recording.
    :param wanted: The outputs that are wanted.
    :param template: Where they go.
    :param source_root: The folder to which ``{source_dir}`` is relative.
    """
    name = SourceName.of(recording.source, source_root)
    extension = recording.extension or name.extension or "media"
    recording.outputs, recording.left_out = wanted.of(recording.type, extension=extension)
    if recording.type is None and not recording.is_ready:
        recording.left_out = {}
        of_types = [wanted.of(type, extension=extension)[0] for type in ("video", "audio")]
        recording.outputs = list({output.name: output for outputs in of_types for output in outputs}.values())
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


def find_collisions(recordings: Iterable[Recording]) -> None:
    """Reject recordings whose outputs have the name of another recording's output.

    :param recordings: The recordings.
    :raises RoughyConfigurationError: If outputs of one recording have the same name.
    """
    by_location: dict[str, list[tuple[Recording, str]]] = {}
    for recording in recordings:
        for output, location in recording.locations.items():
            by_location.setdefault(location, []).append((recording, output))
    for location, users in by_location.items():
        for (first, output), (second, other) in pairwise(users):
            if first is second:
                raise RoughyConfigurationError(
                    f"`target` gives {output} and {other} of {first.source} the same name, {location}: add {{kind}} "
                    "and {format}, or end it with a slash. Nothing was made"
                )
        if len(users) > 1:
            for recording, output in users:
                other = next(each.source for each, _ in users if each is not recording)
                recording.problem = recording.problem or Problem(
                    Status.REJECTED,
                    f"its {output} and that of {other} have the same name, {location}: add {{source_dir}}, "
                    "{source_name} or {asset_id} to `target`",
                )


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

    def find(item: tuple[Recording, Output]) -> tuple[OutputRecord | None, bool]:
        record = writer.find_written(*item)
        return record, record is not None and writer.is_there(*item, record)

    found = 0
    for (recording, output), (record, is_there) in zip(items, ledger.each(find, items), strict=True):
        if record is None:
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
