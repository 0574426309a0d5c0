"""Which recordings to use: asset ids as Airflow passes them on, and the report of a batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.ingest.result import Status

if TYPE_CHECKING:
    from airflow_provider_roughy.ingest.result import RecordingResult
    from airflow_provider_roughy.ledger import Ledger


def asset_ids_of(value: Any) -> list[str]:
    """Return asset ids without repeats, in their order. Empty ones, of tasks that were skipped, are left out.

    :param value: An id, or any iterable of ids.
    :raises RoughyConfigurationError: If it is a list that was rendered as text, or has something else than text.
    """
    if isinstance(value, str):
        _check_no_list("asset_ids", value, "ingest.output")
        if not value.strip():
            raise RoughyConfigurationError("`asset_ids` is empty text. Is a template empty?")
        value = [value]
    if value is None or isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise RoughyConfigurationError(f"`asset_ids` must be a list of asset ids, not {value!r}")
    ids: list[str] = []
    for id in value:
        if id is not None and not isinstance(id, str):
            message = f"`asset_ids` must be a list of asset ids, and has {str(id)[:100]}"
            if isinstance(id, Iterable):
                message += ". If a mapped task returns a list each, join the lists, or give its report as `from_report`"
            raise RoughyConfigurationError(message)
        if id:
            ids.append(id)
    return list(dict.fromkeys(ids))


def reports_of(value: Any) -> list[Any]:
    """Return the folders of reports, each once.

    :param value: A folder, or those of mapped tasks, such as the shards of a manifest, which share one.
    :raises RoughyConfigurationError: If no folder is given, or a list was rendered as text.
    """
    if isinstance(value, str):
        _check_no_list("from_report", value, 'ingest.output["report"]')
    several = isinstance(value, Iterable) and not isinstance(value, (str, os.PathLike))
    reports = list(dict.fromkeys(report for report in (value if several else [value]) if report is not None))
    if not reports:
        raise RoughyConfigurationError("`from_report` is empty: the task before has written no report")
    return reports


def _check_no_list(name: str, text: str, output: str) -> None:
    """Raise an error about a list, or Airflow's sequence of XComs, that a template has rendered as text."""
    if text.strip().startswith(("[", "(", "{", "LazyXCom", "LazySelect")):
        raise RoughyConfigurationError(
            f"`{name}` is a text that looks like a list: {text[:100]!r}. Pass the output of the task itself "
            f"(`{output}`), or set `render_template_as_native_obj=True` in the DAG"
        )


def ready_of(results: Iterable[RecordingResult]) -> dict[str, str]:
    """Return the source of each ready recording, by its asset id.

    :param results: The results of a batch.
    """
    return {result.asset_id: result.source for result in results if result.status == Status.READY and result.asset_id}


def sources_of_ledger(ledger: Ledger, asset_ids: Iterable[str]) -> dict[str, str]:
    """Return the sources of assets by the ledger of a batch, as far as it has them.

    :param ledger: The ledger.
    :param asset_ids: The assets.
    :raises RoughyLedgerError: If the ledger cannot be read.
    """
    wanted = set(asset_ids)
    return {entry.asset_id: entry.source for entry in ledger.entries() if entry.asset_id in wanted}
