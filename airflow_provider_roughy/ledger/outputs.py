"""What a ledger knows of outputs: which file was written for which recording, and what it was made with.

A record is written after its file has appeared, so a record always has a file, and a file without a record is written
again. Roughy returns the same cut and the same render for the same request, and files appear whole or not at all. So
two tries that write the same output write the same file and the same record, and no claims are needed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.ledger.entries import utc_now
from airflow_provider_roughy.ledger.objects import LedgerObjects

#: Characters of a text; the path of a file may have 4,096 bytes.
_MAX_TEXT = 16_384


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """An output that was written.

    :param target: Its location as it is known before the cut is made: instead of the cut's id, it names the asset.
    :param uri: Where its file is, without credentials.
    :param source: The recording, as messages name it.
    :param asset_id: The asset of the recording.
    :param request: A hash of what it was made with.
    :param size_bytes: Bytes of its file.
    :param owner: The run that wrote it.
    :param cut_id: The cut it was made from, if any.
    :param render_id: The render, if it is one.
    :param at: When it was written, in UTC (ISO 8601).
    """

    target: str
    uri: str
    source: str
    asset_id: str
    request: str
    size_bytes: int
    owner: str
    cut_id: str | None = None
    render_id: str | None = None
    at: str = ""

    def encode(self) -> bytes:
        """Return the stored bytes."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}).encode()

    @classmethod
    def decode(cls, content: bytes) -> OutputRecord:
        """Read a record.

        :param content: The stored bytes.
        :raises ValueError: If they are not a record.
        """
        try:
            values: Any = json.loads(content)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        size = decode.integer(values.get("size_bytes"))
        names = ("target", "uri", "source", "asset_id", "request", "owner", "cut_id", "render_id", "at")
        texts = {name: decode.text(values.get(name), limit=_MAX_TEXT) for name in names}
        if size is None or None in [texts[name] for name in names[:6]]:
            raise ValueError("a field is missing")
        return cls(size_bytes=size, **{**texts, "at": texts["at"] or ""})  # type: ignore[arg-type]


def output_name(target: str) -> str:
    """Return the name of a record's object.

    :param target: The ``target`` of the record.
    """
    return f"outputs/{hashlib.sha256(target.encode('utf-8', 'backslashreplace')).hexdigest()[:40]}.json"


class Outputs(LedgerObjects):
    """The outputs that were written."""

    def find_output(self, target: str) -> OutputRecord | None:
        """Read the record of an output.

        :param target: Its location, as in :class:`OutputRecord`.
        :returns: ``None`` if there is none, or if it is damaged: then the output is written again.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        content = self._read(output_name(target))
        if content is None:
            return None
        try:
            return OutputRecord.decode(content)
        except ValueError:
            return None

    def record_output(self, record: OutputRecord) -> None:
        """Store the record of an output whose file has appeared. It replaces an earlier one.

        :param record: The record.
        :raises RoughyLedgerError: If the ledger cannot be written; then a later try writes the file again.
        """
        with self._errors():
            self._folder.write(output_name(record.target), replace(record, at=record.at or utc_now()).encode())
