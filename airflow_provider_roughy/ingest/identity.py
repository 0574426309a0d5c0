"""What makes two files the same recording. Only this module decides which key a recording has in a ledger.

=============== ======================================================================================================
Part            Where it comes from
=============== ======================================================================================================
``uri``         the real path of a local file (all links resolved), or ``scheme://path`` of an object, without the
                connection's id and with one spelling of each scheme; ``sha256:…`` with ``identity="content"``,
                and then neither a storage nor a version
``storage``     the endpoint or account that keeps an object, not the name of the Airflow connection; empty for files
``size``        bytes
``version``     the content's hash or generation, else the ETag, else the time of the last modification
``project_id``  the canonical spelling of the UUID
``language``    two letters of ISO 639-1, or ``None``
=============== ======================================================================================================

Nothing here reads a file, a clock or the network. How places are spelled is in ``transfer/storage.py``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.ledger.entries import canonical_project
from airflow_provider_roughy.transfer.storage import (
    VERSION_NAMES,
    canonical_location,
    canonical_uri,
    name_of_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "VERSION_NAMES",
    "Identity",
    "canonical_location",
    "canonical_project",
    "canonical_uri",
    "name_of_path",
    "normal",
    "version_of",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a recording.

    :param uri: Its real path or canonical URI.
    :param size: Bytes.
    :param version: The version of the file, such as ``etag=…``.
    :param project_id: The project that it belongs to, as a canonical UUID.
    :param language: The language spoken, or ``None``.
    :param storage: The endpoint or account that keeps it; empty for a local file.
    """

    uri: str
    size: int
    version: str
    project_id: str
    language: str | None = None
    storage: str = ""

    @property
    def key(self) -> str:
        """The name of the recording in a ledger: 40 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:40]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, for a ledger's entry."""
        # asdict() copies deeply, which takes ten times as long.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def version_of(versions: Mapping[str, str]) -> str:
    """Return the version of a file, preferably one that does not change with its metadata.

    :param versions: What the storage returns, by names of :data:`VERSION_NAMES`.
    """
    return next((f"{name}={normal(versions[name])}" for name in VERSION_NAMES if versions.get(name)), "")


def normal(version: str) -> str:
    """Return a version without the quotes and the ``W/`` that an ETag may have."""
    return version.removeprefix("W/").strip('"')
