"""The arguments that the operators of a batch and of a plan share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airflow_provider_roughy.compat import AirflowSkipException
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyUnusableLedgerError,
    RoughyUnusableSourceError,
)
from airflow_provider_roughy.ingest.discover import discover, list_of
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.transfer.storage import as_text, conn_id_in, local_path, without_secrets

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from airflow_provider_roughy.ingest.discover import Discovered
    from airflow_provider_roughy.ingest.trees import SourceLocation

#: How many sources a message names.
_MAX_NAMES = 5


def check_shard(shard: object, shards: object) -> None:
    """Check ``shard`` and ``shards``.

    :raises ValueError: If one is not a whole number in its range.
    """
    if shards is not None and (isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 1000):
        raise ValueError(f"shards must be 1 to 1,000, not {shards!r}")
    if shard is not None and (isinstance(shard, bool) or not isinstance(shard, int) or shard < 0):
        raise ValueError(f"shard must be a whole number from 0 on, not {shard!r}")
    if isinstance(shard, int) and isinstance(shards, int) and shard >= shards:
        raise ValueError(f"shard must be less than shards, {shards}, not {shard}")


def max_credits_of(value: int | str | None, *, is_priced: bool = False) -> int | None:
    """Return the most credits that a run may cost.

    :param value: The argument, which may have been a template.
    :param is_priced: Whether the length of each recording is read in any case.
    :raises RoughyConfigurationError: If it is not a whole number, or the extra ``probe`` is not installed.
    """
    if value is None and not is_priced:
        return None
    from airflow_provider_roughy import probe

    probe.check_installed()
    if value is None:
        return None
    # int() alone would turn 1.5 into 1.
    if isinstance(value, bool) or not re.fullmatch(r"\s*\d+\s*", str(value)):
        raise RoughyConfigurationError(
            f"`max_credits` must be a whole number from 0 on, not {value!r}; if it is a template, it rendered to that"
        )
    return int(value)


def ledger_outside(
    location: str | os.PathLike[str], conn_id: str | None, source: SourceLocation | Sequence[SourceLocation]
) -> Ledger:
    """Return a ledger that is not in the source.

    :param location: The ledger.
    :param conn_id: The Airflow connection of its storage.
    :param source: The source.
    :raises RoughyUnusableLedgerError: If it is in the source.
    """
    ledger = Ledger(location, conn_id=conn_id)
    for each in list_of(source):
        if ledger.is_within(str(each)):
            raise _ledger_in_source(ledger, each)
    return ledger


def find_recordings(
    source: SourceLocation | Sequence[SourceLocation],
    *,
    pattern: str | Sequence[str],
    recursive: bool,
    conn_id: str | None,
    ledger: Ledger | None,
    on_empty: str,
) -> Discovered:
    """Return the files of the source.

    :param source: The source.
    :param pattern: Which files of a folder count, by their names.
    :param recursive: Whether subfolders count, too.
    :param conn_id: The Airflow connection of its storage.
    :param ledger: The ledger, if there is one.
    :param on_empty: What to do if there is no file: ``"return"``, ``"skip"`` or ``"fail"``.
    :raises RoughyUnusableSourceError: If the source is missing, unreadable, or empty with ``on_empty="fail"``.
    :raises RoughyUnusableLedgerError: If the ledger is in the source.
    :raises RoughyConfigurationError: If ``pattern`` is empty.
    :raises AirflowSkipException: If the source is empty with ``on_empty="skip"``.
    """
    patterns = [pattern] if isinstance(pattern, str) else pattern
    if not patterns or not all(isinstance(each, str) and each.strip() for each in patterns):
        raise RoughyConfigurationError(f"`pattern` must be a glob or a list of globs, not {pattern!r}")
    found = discover(source, pattern=pattern, recursive=recursive, conn_id=conn_id)
    if ledger is not None and any(ledger.holds(file.canonical) for file in found.files):
        raise _ledger_in_source(ledger, source)
    if found.files or on_empty == "return":
        return found
    nothing = f"There is no recording in {_in_words(source)}"
    if found.left_out:
        nothing += f"; `pattern` does not match {counted(found.left_out, 'file')}: {found.listed_left_out}"
    raise (AirflowSkipException if on_empty == "skip" else RoughyUnusableSourceError)(nothing)


def source_conn_id_of(source: SourceLocation | Sequence[SourceLocation], conn_id: str | None) -> str | None:
    """Return the one Airflow connection of all sources, given by itself or in the sources.

    :param source: The source.
    :param conn_id: The connection that is given by itself.
    :raises RoughyConfigurationError: If the sources have several.
    """
    stored = {
        conn_id or getattr(each, "conn_id", None) or conn_id_in(str(each))
        for each in list_of(source)
        if local_path(str(each)) is None
    }
    if len(stored) > 1:
        raise RoughyConfigurationError(
            f"`source` names storages of several connections: {', '.join(sorted(map(str, stored)))}. A manifest has "
            "one: plan each by itself"
        )
    return stored.pop() if stored else conn_id


def _in_words(source: SourceLocation | Sequence[SourceLocation]) -> str:
    names = [as_text(without_secrets(str(each))) for each in list_of(source)]
    return ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")


def _ledger_in_source(ledger: Ledger, source: SourceLocation | Sequence[SourceLocation]) -> RoughyUnusableLedgerError:
    return RoughyUnusableLedgerError(
        f"Ledger {ledger.uri} is in the source, {_in_words(source)}: its objects would be ingested. Put it elsewhere"
    )
