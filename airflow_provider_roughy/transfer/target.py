"""Where a download's bytes go: a local file, or an object that Airflow's ``ObjectStoragePath`` can write.

A target appears whole or not at all, whatever ends the download: an error, a kill, a full disk. An existing file stays
until then. Two downloads to the same target write separate unfinished files with unpredictable names.
``overwrite`` is applied twice: before the download, and again when the file appears. With ``"fail"``, the file appears
by an operation that the storage itself refuses if there is a file by then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyUnusableTargetError
from airflow_provider_roughy.transfer.storage import as_text, check_no_password, local_path, without_secrets
from airflow_provider_roughy.transfer.target_base import Overwrite, Sink, Target, check_overwrite
from airflow_provider_roughy.transfer.target_local import LocalTarget
from airflow_provider_roughy.transfer.target_stored import APPEARS_WHOLE, StoredTarget

if TYPE_CHECKING:
    import os

    from airflow_provider_roughy.compat import ObjectStoragePath

__all__ = [
    "LocalTarget",
    "Overwrite",
    "Sink",
    "StoredTarget",
    "Target",
    "check_overwrite",
    "check_rendered",
    "find_target",
]


def find_target(
    target: str | os.PathLike[str] | ObjectStoragePath, *, name: str | None, conn_id: str | None = None
) -> Target:
    """Return a target that can be written.

    :param target: A local path, a URI with a scheme that Airflow's object storage knows, or an ``ObjectStoragePath``.
        It is a folder if it ends with a slash, or if a folder of that name exists.
    :param name: The name of the file if the target is a folder; ``None`` if the target must not be one.
    :param conn_id: The Airflow connection of that storage.
    :raises RoughyUnusableTargetError: If no file can be written there, or a template has rendered parts of it as empty.
    :raises RoughyTargetError: If the storage does not say what exists there.
    """
    text = str(target)
    check_rendered(text)
    conn_id = conn_id or getattr(target, "conn_id", None)
    found = _at(f"{text}{name or ''}" if text.endswith("/") else text, conn_id)
    if found.is_folder and not text.endswith("/") and name is not None:
        found = _at(f"{text}/{name}", conn_id)
    if found.is_folder:
        raise RoughyUnusableTargetError(f"Target {found.uri} is a folder, not a file")
    return found


def check_rendered(location: str) -> None:
    """Refuse the locations that templates render if a value is missing, and those with a password.

    :raises RoughyUnusableTargetError: If it has a password, if it names no folder or no bucket, or a part of it is
        ``None`` or blank.
    """
    shown = as_text(without_secrets(location))
    try:
        check_no_password(location)
    except ValueError as err:
        raise RoughyUnusableTargetError(f"Target {shown!r} has a password: {err}") from None
    if "\0" in location:
        raise RoughyUnusableTargetError(f"Target {shown} contains a NUL character")
    path = local_path(location)
    scheme, _, rest = location.partition("://") if path is None else ("", "", path)
    # The part before an @ is the id of a connection.
    place = re.sub(r"\A[^/@]*@", "", rest) if path is None else rest
    if not location:
        raise RoughyUnusableTargetError("The target is empty")
    if not place.strip("/ \t\r\n"):
        raise RoughyUnusableTargetError(f"Target {shown!r} names no folder and no file. Is a template empty?")
    if scheme.lower() in APPEARS_WHOLE and place.startswith("/"):
        raise RoughyUnusableTargetError(f"Target {shown!r} names no bucket. Is a template empty?")
    if any(part and not part.strip() for part in place.split("/")):
        raise RoughyUnusableTargetError(f"Target {shown!r} has a blank part. Is a template empty?")
    if "None" in place.split("/"):
        raise RoughyUnusableTargetError(f"Target {shown!r} has a part `None`. Is a template empty?")


def _at(location: str, conn_id: str | None) -> Target:
    path = local_path(location)
    return StoredTarget(location, conn_id=conn_id) if path is None else LocalTarget(path, uri=location)
