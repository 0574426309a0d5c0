"""Where a path or a URI leads: to this worker's disk, or into a storage that Airflow knows."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import ObjectStoragePath

#: What may stand in the URI of an Airflow asset as it is.
_PLAIN = "".join(char for char in map(chr, range(0x20, 0x7F)) if char not in "#?")

#: What a path may be, and no retry can mend: missing, forbidden, something else, or none.
_LASTING = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)
_LASTING_NUMBERS = (errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


def may_pass(error: Exception) -> bool:
    """Tell whether a retry may find better: a network's file system is away for a while, or a disk is full.

    :param error: What using a path has raised.
    """
    return not (isinstance(error, _LASTING) or getattr(error, "errno", None) in _LASTING_NUMBERS)


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


def without_secrets(uri: str) -> str:
    """Return a URI without what may be a secret: who signs in, and the query of a web address.

    In the name of an object, a question mark is a character like any other.
    """
    shown = re.sub(r"\A([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@", r"\1", uri)
    return re.sub(r"\A(https?://[^?]*)\?.*", r"\1", shown, flags=re.DOTALL | re.IGNORECASE)


def asset_uri(location: str) -> str:
    """Return a location as the URI of an Airflow asset: ``file:///…`` with all folders, or as its storage has it.

    It is written as a DAG's author would, without what may be a secret; only what Airflow would drop or refuse is
    spelled ``%XX``: ``#``, ``?`` and what is not ASCII.

    :param location: A path, or a URI.
    """
    path = local_path(location)
    uri = without_secrets(location) if path is None else f"file://{os.path.abspath(path)}"
    return quote(as_text(uri), safe=_PLAIN)


def check_no_password(location: str) -> None:
    """Refuse a URI with a password: Airflow would take that for the id of a connection, log it, and sign in without.

    :param location: A path, or a URI.
    :raises ValueError: If it has one; it is not shown.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*:[^/]*@", location):
        raise ValueError("before its @, a URI names an Airflow connection, which keeps the password")


def stored_path(uri: str, conn_id: str | None) -> ObjectStoragePath:
    """Return Airflow's path to an object.

    :param uri: ``scheme://…``
    :param conn_id: The Airflow connection of that storage.
    :raises ValueError: If a password is in it, or Airflow has no such storage.
    """
    check_no_password(uri)
    from airflow_provider_roughy.compat import ObjectStoragePath

    try:
        # Before 3.2, Airflow takes no connection for one, and leaves aside that in the URI.
        path = ObjectStoragePath(uri, conn_id=conn_id) if conn_id else ObjectStoragePath(uri)
        # Only now does Airflow look for the storage; it keeps what it finds.
        _ = path.fs
    except (ValueError, ImportError) as err:
        raise ValueError(f"{err}. Is the provider of that storage installed?") from err
    return path
