"""Where a path or a URI leads, on this worker's disk or in a storage that Airflow knows, and what its errors mean."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_roughy.exceptions import RoughyError, RoughyTargetError, without_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_roughy.compat import ObjectStoragePath

#: The characters that the URI of an Airflow asset may contain unquoted.
_PLAIN = "".join(char for char in map(chr, range(0x20, 0x7F)) if char not in "#?")

#: Characters that end a line, steer a terminal or reorder the text around them.
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

#: Other spellings of a scheme.
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "adl": "abfs", "ssh": "sftp"}

#: What to install to read a storage, by its scheme.
_PROVIDERS = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
    "sftp": "apache-airflow-providers-sftp[sshfs]",
}

#: Names by which storages return the version of an object, the best first: content before metadata.
VERSION_NAMES = (
    "md5hash",
    "content_md5",
    "generation",
    "etag",
    "e_tag",
    "mtime",
    "lastmodified",
    "last_modified",
    "updated",
    "created",
)


class ErrorKind(StrEnum):
    """What an error of a storage means, whatever its library has raised."""

    #: There is no such file, folder, bucket or container.
    MISSING = "missing"
    #: The credentials were rejected, or do not permit it.
    FORBIDDEN = "forbidden"
    #: The location or the storage cannot be used for this: not a path, another type of file, no provider installed.
    UNUSABLE = "unusable"
    #: The storage or the network is down, or the disk is full: a retry may succeed.
    TRANSIENT = "transient"


#: Errors of a path that no retry can fix, beside those that are missing or forbidden.
_UNUSABLE = (FileExistsError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
_UNUSABLE_NUMBERS = (errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
#: What HTTP statuses mean. Of all others, a retry may succeed.
_BY_STATUS = {
    401: ErrorKind.FORBIDDEN,
    403: ErrorKind.FORBIDDEN,
    404: ErrorKind.MISSING,
    501: ErrorKind.UNUSABLE,
}
#: The classes of errors of the storages' libraries that have no HTTP status.
_BY_NAME = {
    "SFTPNoSuchFile": ErrorKind.MISSING,
    "SFTPNoSuchPath": ErrorKind.MISSING,
    "SFTPPermissionDenied": ErrorKind.FORBIDDEN,
    "PermissionDenied": ErrorKind.FORBIDDEN,  # asyncssh: the login was rejected.
    "HostKeyNotVerifiable": ErrorKind.FORBIDDEN,
    "NoCredentialsError": ErrorKind.FORBIDDEN,  # botocore
    "PartialCredentialsError": ErrorKind.FORBIDDEN,
    "DefaultCredentialsError": ErrorKind.FORBIDDEN,  # google-auth
    "ClientAuthenticationError": ErrorKind.FORBIDDEN,  # azure-core
}
#: The most characters of a storage's own words in a message.
_MAX_WORDS = 300


def kind_of(error: BaseException) -> ErrorKind:
    """Return what an error of a storage means. Only this function decides that, for every use of every storage.

    :param error: The error that the storage raised.
    """
    if isinstance(error, FileNotFoundError):
        return ErrorKind.MISSING
    # gcsfs raises plain text for a 403.
    if isinstance(error, PermissionError) or (type(error) is OSError and str(error).startswith("Forbidden")):
        return ErrorKind.FORBIDDEN
    by_name = next((_BY_NAME[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in _BY_NAME), None)
    by_status = _BY_STATUS.get(http_status(error) or 0)
    if by_name or by_status:
        return by_name or by_status or ErrorKind.TRANSIENT
    if isinstance(error, _UNUSABLE) or getattr(error, "errno", None) in _UNUSABLE_NUMBERS:
        return ErrorKind.UNUSABLE
    return ErrorKind.TRANSIENT


def may_pass(error: BaseException) -> bool:
    """Return whether a retry may fix an error of a storage, such as one that is down or a full disk.

    :param error: The error that the storage raised.
    """
    return kind_of(error) is ErrorKind.TRANSIENT


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the reply that caused an error, or ``None`` if no reply did.

    :param error: What a storage raised.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for status in (response, getattr(cause, "status_code", None), getattr(cause, "code", None)):
            with suppress(TypeError, ValueError):
                if 400 <= int(str(status)) < 600:
                    return int(str(status))
        # Not what was being handled: a storage may go down while a library handles that a file is missing.
        cause = cause.__cause__
    return None


@contextmanager
def storage_errors(
    what: str,
    passing: type[RoughyError],
    final: type[RoughyError] | None = None,
    *,
    is_final: Callable[[Exception], bool] = lambda error: not may_pass(error),
    through: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Raise the errors of a storage as errors of this package.

    :param what: What failed, such as ``Source s3://… cannot be opened``. The storage's own words are appended.
    :param passing: The class of errors that a retry may fix.
    :param final: The class of errors that no retry can fix; by default the same.
    :param is_final: Returns whether an error is one of those.
    :param through: Errors that the caller handles. They are raised as they are, as are those of this package.
    """
    unchanged: tuple[type[Exception], ...] = (RoughyError, *through)
    try:
        yield
    except unchanged:
        raise
    except Exception as err:  # Storages raise errors of their own, and not all of them are OSError.
        cls = final if final is not None and is_final(err) else passing
        # The class of an error is more useful than its text, unless the text was written for users.
        plain = isinstance(err, ValueError) or (isinstance(err, OSError) and err.errno is None)
        name = "" if plain and str(err) else f"{type(err).__name__}: "
        error = cls(f"{what}: {name}{words_of(err)}".removesuffix(": "))
        if isinstance(error, RoughyTargetError):
            error.is_forbidden = kind_of(err) is ErrorKind.FORBIDDEN or getattr(err, "errno", None) == errno.EROFS
        raise error from cause_of(err)


def words_of(error: BaseException) -> str:
    """Return the text of a storage's error as logs and databases accept it, in one line.

    The queries of URLs are left out, as they may be signatures, and so is the XML that Azure appends.

    :param error: The error.
    """
    words = " ".join(_shown(error).partition("\nContent: ")[0].split("\n"))
    return words if len(words) <= _MAX_WORDS else f"{words[:_MAX_WORDS]}…"


def cause_of(error: Exception) -> Exception | None:
    """Return an error as the cause of another one, or ``None`` if a traceback must not show it.

    :param error: The error of a storage.
    """
    return error if _shown(error) == str(error) else None


def _shown(error: BaseException) -> str:
    return as_text(without_queries(str(error)))


def local_path(location: str) -> str | None:
    """Return the path on this worker that a location names, or ``None`` if it is the URI of another storage.

    :param location: A path, or a URI.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    if match is None:
        return location
    if match[1].lower() == "file":
        # As in Airflow's object storage: an optional connection id, then a path that is not quoted.
        return re.sub(r"\A[^/@]*@", "", location[len("file://") :])
    return None


def as_text(location: str) -> str:
    """Return a location as text that logs and databases accept: the name of a file may be any bytes.

    :param location: A path, or a URI.
    """
    return location.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def as_line(location: str) -> str:
    """Return a location as text for one line of a log or a terminal, which it can neither split nor control.

    Control characters, line separators and marks that change the direction of text are written as escapes.

    :param location: A path, or a URI.
    """
    return _NOT_IN_A_LINE.sub(lambda found: found[0].encode("unicode_escape").decode(), as_text(location))


#: A URI with a password, which may have slashes, up to its last @. A number after a host's name is a port; an access
#: point of S3 has colons.
_WITH_PASSWORD = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]*://)(?!\[|arn:|[^/@:]*:\d{0,5}/)[^/@]*:.*@", re.DOTALL)


def without_secrets(uri: str) -> str:
    """Return a URI without its credentials and, if it is a web address, without its query.

    Other storages have no query: there, a question mark is part of an object's name.

    :param uri: ``scheme://…``, or a path.
    """
    shown = _WITH_PASSWORD.sub(r"\1", uri)
    shown = re.sub(r"\A([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@", r"\1", shown)
    return re.sub(r"\A(https?://[^?]*)\?.*", r"\1", shown, flags=re.DOTALL | re.IGNORECASE)


def canonical_uri(uri: str) -> str:
    """Return the URI of an object without its connection and with one spelling of its scheme.

    :param uri: ``scheme://[conn_id@]path``.
    """
    scheme, _, rest = without_secrets(uri).partition("://")
    scheme = scheme.lower()
    return f"{_SCHEMES.get(scheme, scheme)}://{re.sub('/+$', '', rest)}"


def canonical_location(location: str) -> str:
    """Return the canonical name of a path or a URI. Links are resolved on this worker.

    :param location: A path, or a URI.
    """
    path = local_path(location)
    return name_of_path(os.path.realpath(path)) if path is not None else canonical_uri(location)


def location_digest(location: str) -> bytes:
    """Return 16 bytes that stand for a location, where those of a hundred thousand are kept in memory.

    :param location: A path, or a URI.
    """
    return hashlib.blake2b(location.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def name_of_path(path: str) -> str:
    """Return a path as text that can be stored: the name of a file may be any bytes.

    :param path: A path, as Python has it.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"bytes:{os.fsencode(path).hex()}"
    return path


def asset_uri(location: str) -> str:
    """Return the URI of the Airflow asset for a location: an absolute ``file:///…``, or the URI without credentials.

    Only characters that Airflow would drop or refuse are quoted (``%XX``): ``#``, ``?`` and those beyond ASCII.

    :param location: A path, or a URI.
    """
    path = local_path(location)
    uri = without_secrets(location) if path is None else f"file://{os.path.abspath(path)}"
    return quote(as_text(uri), safe=_PLAIN)


def conn_id_in(uri: str) -> str | None:
    """Return the Airflow connection that a URI names before its ``@``, or ``None``.

    :param uri: ``scheme://[conn_id@]…``, or a path.
    """
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://([^/@:]+)@", uri)
    return match[1] if match else None


def check_no_password(location: str) -> None:
    """Refuse a URI with a password. Airflow would take it for a connection id, log it, and not sign in with it.

    :param location: A path, or a URI.
    :raises ValueError: If it has a password, which the message does not quote.
    """
    if _WITH_PASSWORD.match(location):
        raise ValueError("before its @, a URI names an Airflow connection, which keeps the password")


def stored_path(uri: str, conn_id: str | None) -> ObjectStoragePath:
    """Return the ``ObjectStoragePath`` of an object.

    :param uri: ``scheme://…``
    :param conn_id: The Airflow connection of that storage.
    :raises ValueError: If the URI has a password, or Airflow knows no such storage.
    """
    check_no_password(uri)
    from airflow_provider_roughy.compat import ObjectStoragePath

    try:
        # Before 3.2, Airflow takes conn_id=None for a value, and ignores the connection in the URI.
        path = ObjectStoragePath(uri, conn_id=conn_id) if conn_id else ObjectStoragePath(uri)
        # Airflow looks up the storage only now, and keeps it.
        _ = path.fs
    except (ValueError, ImportError) as err:
        raise ValueError(_why_not_opened(uri.partition("://")[0].lower(), err)) from err
    return path


def _why_not_opened(scheme: str, error: Exception) -> str:
    """Say why Airflow cannot open a storage, and what to do.

    :param scheme: The scheme of its URIs.
    :param error: What Airflow raised.
    """
    if not isinstance(error, ImportError) and not re.search("filesystem|protocol", str(error), re.IGNORECASE):
        return str(error)
    if scheme in ("http", "https"):
        return (
            f"Airflow cannot open {scheme}:// URLs as files. Use a path of the worker, or a storage such as s3:// or "
            "gs://; a file on the web has to be copied there first"
        )
    provider = _PROVIDERS.get(_SCHEMES.get(scheme, scheme))
    if provider is None:
        return f"Airflow cannot open {scheme}:// locations: {error}. Install the Airflow provider of that storage"
    return (
        f"Airflow cannot open {scheme}:// locations here ({error}). Run `pip install {provider}` wherever Airflow runs "
        "tasks"
    )


def unchanged_path(path: ObjectStoragePath, uri: str) -> str:
    """Return the name of an object in its storage, if Airflow has not changed it.

    :param path: The object.
    :param uri: The URI that the path was created from.
    :raises ValueError: If Airflow's object storage has read another name from the URI.
    """
    bare: str = path.path.rstrip("/")
    if not re.search(r"[/@]\Z", uri.rstrip("/").removesuffix(bare.lstrip("/"))):
        raise ValueError(
            f"Airflow's object storage reads it as {as_text(bare)!r}: `::`, tabs and line ends cannot stand in a URI. "
            "Name the folder that it is in, or rename it"
        )
    return bare


def storage_id(fs: Any) -> str:
    """Return an identifier of a storage: its endpoint, account or host, which does not depend on the connection.

    :param fs: A file system of fsspec.
    """
    options = getattr(fs, "client_kwargs", None) or {}
    places = (
        getattr(fs, "endpoint_url", None) or options.get("endpoint_url"),  # S3
        getattr(fs, "_endpoint", None),  # GCS
        getattr(fs, "account_name", None),  # Azure
        getattr(fs, "host", None),  # SFTP and others
    )
    place = next((place for place in places if isinstance(place, str) and place), "")
    scheme, _, host = place.lower().rpartition("://")
    host = host.rstrip("/").removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/"))
    # All endpoints of AWS, and no endpoint, lead to the same bucket.
    return "" if re.search(r"(\A|\.)s3[.-].*amazonaws\.com(\.cn)?\Z", host) else host


def stored_versions(info: dict[str, Any]) -> dict[str, str]:
    """Return the version of an object, by names of :data:`VERSION_NAMES`.

    :param info: Its metadata, as its fsspec file system returns them.
    """
    properties = {name.lower(): value for name, value in info.items() if isinstance(name, str)}
    # A class of Azure's library with the methods of a mapping.
    settings: Any = properties.get("content_settings")
    if hasattr(settings, "get") and settings.get("content_md5"):
        properties["content_md5"] = bytes(settings["content_md5"]).hex()
    return {name: str(properties[name]) for name in VERSION_NAMES if properties.get(name)}
