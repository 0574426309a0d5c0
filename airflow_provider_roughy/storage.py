"""Where a path or a URI leads: to this worker's disk, or into a storage that Airflow knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import ObjectStoragePath


def local_path(location: str) -> str | None:
    """Return the path on this worker that a location means, or ``None`` if it leads elsewhere.

    :param location: A path, or a URI.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    if match is None:
        return location
    if match[1].lower() == "file":
        # As Airflow's object storage takes it: a connection's id may come first, and the rest is a path as it is.
        return re.sub(r"\A[^/@]*@", "", location[len("file://") :])
    return None


def as_text(location: str) -> str:
    """Return a location as text: the name of a file may be none, and logs and databases take nothing else."""
    return location.encode("utf-8", "backslashreplace").decode()


def stored_path(uri: str, conn_id: str | None) -> ObjectStoragePath:
    """Return Airflow's path to an object.

    :param uri: ``scheme://…``
    :param conn_id: The Airflow connection of that storage.
    """
    from airflow_provider_roughy.compat import ObjectStoragePath

    return ObjectStoragePath(uri, conn_id=conn_id)
