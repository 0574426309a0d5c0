"""Roughy's HTTP API as data: one function an endpoint, each returning a :class:`Call`.

A call is the request to send and the parser of its reply. Nothing here touches the network or a clock; ``client.py``
drives calls, in sync or async code alike. The facts are those of docs.roughy.ai, "API reference", v1; where the
pages are silent the parsers are liberal (any 2xx of a DELETE, unknown fields, unknown states).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyConfigurationError,
    RoughyProtocolError,
    api_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")

#: The smallest upload, in bytes (guide "Upload an asset").
MIN_UPLOAD_BYTES = 64
#: The largest upload, in bytes: 50 GiB (guide "Upload an asset").
MAX_UPLOAD_BYTES = 50 * 1024**3
#: The longest page of a list (API page "List assets").
PAGE_SIZE = 100


@dataclass(frozen=True)
class Request:
    """A request to send.

    :param method: The HTTP method.
    :param target: A path under the connection's base URL, or an absolute URL.
    :param params: The query.
    :param json: The body, as JSON.
    :param headers: Headers beside the key's and the client's own.
    :param content: The body, as blocks of bytes; ``headers`` then hold its ``Content-Length``.
    """

    method: str
    target: str = field(repr=False)
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Iterable[bytes] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Name it in an error: method and path; of a URL that Roughy handed out, not the part that is a secret."""
        path = re.split(r"[?#]", self.target, maxsplit=1)[0]
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2].rpartition("/")[0]
            path = f"{path.rstrip('/')}/…"
        return f"{self.method} {path}"


@dataclass(frozen=True)
class Reply:
    """A reply as it came.

    :param status: The HTTP status.
    :param headers: Its headers, with lower-case names.
    :param body: Its body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def request_id(self) -> str | None:
        """Roughy's name for this exchange, to give to its support."""
        return self.headers.get("x-request-id")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and the parser of its reply.

    :param request: What to send.
    :param parse: Makes the value of a 2xx reply.
    :param idempotent: Whether sending it twice does no more than sending it once.
    """

    request: Request
    parse: Callable[[Reply], T]
    idempotent: bool = True


def decipher(call: Call[T], reply: Reply) -> T:
    """Return the value of a reply, or raise what went wrong.

    :param call: What was asked.
    :param reply: What came back.
    :raises RoughyApiError: The subclass that fits Roughy's error.
    :raises RoughyProtocolError: If the reply breaks the contract.
    """
    if 200 <= reply.status < 300:
        try:
            return call.parse(reply)
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            raise _broken(call.request, reply, f"{type(err).__name__}: {err}") from err
    if reply.status < 400:
        raise _broken(call.request, reply, "a redirect, which is not followed")
    raise _error(call.request, reply)


def _broken(request: Request, reply: Reply, what: str) -> RoughyProtocolError:
    media = reply.headers.get("content-type", "no content type")
    asked = f" (request {reply.request_id})" if reply.request_id else ""
    return RoughyProtocolError(
        f"{request}: an answer that is not Roughy's: {reply.status}, {media}, {len(reply.body)} bytes: {what}{asked}"
    )


def _error(request: Request, reply: Reply) -> RoughyApiError:
    try:
        envelope = json.loads(reply.body)["error"]
        code, message = str(envelope["code"]), str(envelope["message"])
        details = [entry for entry in envelope.get("fields") or () if isinstance(entry, dict)]
    except (AttributeError, KeyError, TypeError, ValueError):
        # A proxy's page, or a HEAD, whose reply has no body.
        code, message, details = None, "", []
    return api_error(
        str(request),
        status=reply.status,
        code=code,
        message=message,
        fields=details,
        request_id=reply.request_id,
        retry_after=retry_after(reply),
    )


def retry_after(reply: Reply) -> float | None:
    """Return how many seconds Roughy asks to wait, from either form of ``Retry-After`` (RFC 9110, 10.2.3).

    A date is measured against the reply's own ``Date``, so that no clock but the server's counts.
    """
    value = reply.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(reply.headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, wait.total_seconds())


# ---- Assets


@dataclass(frozen=True)
class RoughyAsset:
    """An asset, with the API's own field names (API pages "Get an asset", "List assets").

    Fields that this version does not know are ignored. ``download_url`` and ``cuttable`` are ``None`` in an item of a
    list, which does not carry them.

    :param duration_seconds: Decimal seconds as text, e.g. ``"324.412"``; ``None`` until measured.
    :param size_bytes: ``None`` while the state is ``pending_upload``.
    :param upload_url: Where the bytes go; a secret.
    :param download_url: A signed link of about 15 minutes; a secret.
    :param request_id: The ``X-Request-Id`` of the answer; not a field of the API.
    """

    id: str
    project_id: str
    type: str | None
    state: str
    extension: str | None
    size_bytes: int | None
    content_type: str | None
    duration_seconds: str | None
    language: str | None
    created_at: str
    error_code: str | None = None
    error_message: str | None = None
    cuttable: bool | None = None
    upload_url: str | None = field(default=None, repr=False)
    download_url: str | None = field(default=None, repr=False)
    request_id: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, request_id: str | None = None) -> RoughyAsset:
        """Make an asset of a reply's JSON.

        :raises ValueError: If it is no asset.
        """
        return _from_json(cls, body, request_id)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, fit for XCom: every field but the secret URLs."""
        hidden = ("upload_url", "download_url", "request_id")
        return {name: value for name, value in vars(self).items() if name not in hidden}


def get_asset(asset_id: str) -> Call[RoughyAsset]:
    """Read an asset: ``GET /v1/assets/{asset_id}``."""
    return Call(Request("GET", f"/v1/assets/{_uuid('asset_id', asset_id)}"), _parse_asset)


def list_assets(
    *, project_id: str | None = None, state: str | None = None, limit: int = PAGE_SIZE, offset: int = 0
) -> Call[Page[RoughyAsset]]:
    """Read one page of assets, newest first: ``GET /v1/assets``.

    :param project_id: Only those of one project.
    :param state: Only those in one state.
    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """
    params: dict[str, str | int] = {"limit": limit, "offset": offset}
    if project_id is not None:
        params["project_id"] = _uuid("project_id", project_id)
    if state is not None:
        params["state"] = state
    return Call(Request("GET", "/v1/assets", params=params), _page_of(RoughyAsset))


def create_asset(project_id: str, size_bytes: int, *, language: str | None = None) -> Call[RoughyAsset]:
    """Create an asset and open its upload: ``POST /v1/assets``.

    There is no idempotency key: every call makes an asset.

    :param project_id: The project it belongs to.
    :param size_bytes: The exact size of the upload, 64 bytes to 50 GiB.
    :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
    :raises RoughyConfigurationError: If an argument is out of bounds.
    """
    if not MIN_UPLOAD_BYTES <= size_bytes <= MAX_UPLOAD_BYTES:
        raise RoughyConfigurationError(
            f"size_bytes must be {MIN_UPLOAD_BYTES} to {MAX_UPLOAD_BYTES} bytes, not {size_bytes}"
        )
    body: dict[str, Any] = {"project_id": _uuid("project_id", project_id), "size_bytes": size_bytes}
    if language is not None:
        body["language"] = language_code(language)
    return Call(Request("POST", "/v1/assets", json=body), _parse_created, idempotent=False)


def delete_asset(asset_id: str) -> Call[None]:
    """Remove an asset and everything derived from it, at once and for good: ``DELETE /v1/assets/{asset_id}``."""
    return Call(Request("DELETE", f"/v1/assets/{_uuid('asset_id', asset_id)}"), _ignore)


# ---- Uploads (TUS 1.0.0; tus.io/protocols/resumable-upload)

TUS_HEADERS = {"Tus-Resumable": "1.0.0"}


def read_offset(upload_url: str, *, headers: Mapping[str, str] = TUS_HEADERS) -> Call[tuple[int, int | None]]:
    """Ask how much of an upload has arrived: ``HEAD {upload_url}``.

    :returns: The offset in bytes, and the length in bytes if it was told.
    """

    def parse(reply: Reply) -> tuple[int, int | None]:
        length = reply.headers.get("upload-length")
        return _byte_count(reply, "upload-offset"), None if length is None else _byte_count(reply, "upload-length")

    return Call(Request("HEAD", upload_url, headers=headers), parse)


def send_bytes(
    upload_url: str,
    content: Iterable[bytes],
    *,
    offset: int,
    length: int,
    headers: Mapping[str, str] = TUS_HEADERS,
) -> Call[int]:
    """Send bytes of an upload: ``PATCH {upload_url}``.

    :param content: The bytes, in blocks.
    :param offset: Where they belong, in bytes from the start.
    :param length: How many there are.
    :returns: The offset that Roughy stands at now, in bytes.
    """
    headers = {
        **headers,
        "Upload-Offset": str(offset),
        "Content-Length": str(length),
        "Content-Type": "application/offset+octet-stream",
    }
    return Call(
        Request("PATCH", upload_url, headers=headers, content=content),
        lambda reply: _byte_count(reply, "upload-offset"),
        idempotent=False,
    )


def cancel_upload(upload_url: str) -> Call[None]:
    """Cancel an upload, which removes its asset: ``DELETE {upload_url}``."""
    return Call(Request("DELETE", upload_url, headers=TUS_HEADERS), _ignore)


# ---- Projects


@dataclass(frozen=True)
class RoughyProject:
    """A project, with the API's own field names (API page "Create a project")."""

    id: str
    name: str
    state: str
    created_at: str
    updated_at: str
    archived_at: str | None = None
    request_id: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, request_id: str | None = None) -> RoughyProject:
        """Make a project of a reply's JSON.

        :raises ValueError: If it is no project.
        """
        return _from_json(cls, body, request_id)


def create_project(name: str) -> Call[RoughyProject]:
    """Create a project: ``POST /v1/projects``.

    :param name: Free text, 1 to 256 characters.
    """
    return Call(Request("POST", "/v1/projects", json={"name": name}), _parse_project, idempotent=False)


def get_project(project_id: str) -> Call[RoughyProject]:
    """Read a project: ``GET /v1/projects/{project_id}``."""
    return Call(Request("GET", f"/v1/projects/{_uuid('project_id', project_id)}"), _parse_project)


def list_projects(*, state: str | None = None, limit: int = PAGE_SIZE, offset: int = 0) -> Call[Page[RoughyProject]]:
    """Read one page of projects, newest first: ``GET /v1/projects``.

    :param state: ``"active"`` (Roughy's default) or ``"archived"``.
    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """
    params: dict[str, str | int] = {"limit": limit, "offset": offset}
    if state is not None:
        params["state"] = state
    return Call(Request("GET", "/v1/projects", params=params), _page_of(RoughyProject))


# ---- Credits


def get_credit_balance() -> Call[int]:
    """Read the spendable credits: ``GET /v1/credits/balance``."""
    return Call(Request("GET", "/v1/credits/balance"), lambda reply: int(_json(reply)["balance"]))


# ---- Shared by the parsers


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list (API page "List assets").

    :param items: The items, newest first.
    :param total: How many match in all.
    :param limit: How many were asked for.
    :param offset: How many were passed over.
    """

    items: list[T]
    total: int
    limit: int
    offset: int

    @property
    def next_offset(self) -> int | None:
        """Where the next page starts, or ``None`` after the last one."""
        end = self.offset + len(self.items)
        return end if self.items and end < self.total else None


def language_code(value: str) -> str:
    """Return a language as Roughy stores it: two lower-case letters.

    :raises RoughyConfigurationError: If it is anything else.
    """
    if not re.fullmatch(r"[A-Za-z]{2}", value):
        raise RoughyConfigurationError(f"language must be two letters of ISO 639-1, not {value!r}")
    return value.lower()


def _uuid(name: str, value: str) -> str:
    try:
        return str(UUID(value))
    except (AttributeError, TypeError, ValueError):
        raise RoughyConfigurationError(f"{name} must be a UUID, not {value!r}") from None


def _json(reply: Reply) -> Any:
    return json.loads(reply.body)


def _ignore(reply: Reply) -> None:
    return None


def _parse_asset(reply: Reply) -> RoughyAsset:
    return RoughyAsset.from_json(_json(reply), request_id=reply.request_id)


def _parse_created(reply: Reply) -> RoughyAsset:
    body = _json(reply)
    # The Location header carries the same URL (API page "Create an asset").
    url = body.get("upload_url") or reply.headers["location"]
    return RoughyAsset.from_json({**body, "upload_url": url}, request_id=reply.request_id)


def _parse_project(reply: Reply) -> RoughyProject:
    return RoughyProject.from_json(_json(reply), request_id=reply.request_id)


def _page_of(cls: Any) -> Callable[[Reply], Page[Any]]:
    def parse(reply: Reply) -> Page[Any]:
        body = _json(reply)
        items = [cls.from_json(item, request_id=reply.request_id) for item in body["items"]]
        return Page(items, int(body["total"]), int(body["limit"]), int(body["offset"]))

    return parse


def _from_json(cls: type[T], body: Mapping[str, Any], request_id: str | None) -> T:
    if not isinstance(body, dict):
        raise ValueError("not an object")
    body = {**body, "request_id": request_id}
    values = {entry.name: body[entry.name] for entry in fields(cls) if entry.name in body}  # type: ignore[arg-type]
    if not isinstance(values.get("id"), str) or not isinstance(values.get("state"), str):
        raise ValueError("no id or no state")
    return cls(**values)


def _byte_count(reply: Reply, name: str) -> int:
    value = reply.headers[name]
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{name} is {value!r}")
    return int(value)
