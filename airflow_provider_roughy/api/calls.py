"""What every file of the API is made of: a call, its request, its reply, and the parsers' common parts.

A call is the request to send and the parser of its reply. Nothing here touches the network or a clock; ``client.py``
drives calls, in sync or async code alike.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, fields
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from uuid import UUID

from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyConfigurationError,
    RoughyProtocolError,
    api_error,
    shortened,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

T = TypeVar("T")
R = TypeVar("R", bound="Resource")

#: The longest page of a list (API page "List assets").
PAGE_SIZE = 100
#: Seconds; a longer ``Retry-After`` says the same.
_LONGEST_RETRY_AFTER = 365 * 86400.0
#: Characters; a longer text in a field of a resource is none of Roughy's, and would go to Airflow's database.
_LONGEST_TEXT = 100_000


@dataclass(frozen=True)
class Request:
    """A request to send.

    :param method: The HTTP method.
    :param target: A path under the connection's base URL, or an absolute URL.
    :param params: The query.
    :param json: The body, as JSON.
    :param headers: Headers beside the key's and the client's own.
    :param content: The body, as blocks of bytes; ``headers`` then hold its ``Content-Length``.
    :param longest_reply: Bytes that the reply may have, unpacked; ``None`` for as many as any other.
    """

    method: str
    target: str = field(repr=False)
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Iterable[bytes] | None = field(default=None, repr=False)
    longest_reply: int | None = None

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
        except Exception as err:  # Whatever a parser stumbles over: deep nesting, a number beyond all bounds.
            raise _broken(call.request, reply, f"{type(err).__name__}: {err}") from err
    if reply.status < 400:
        raise _broken(call.request, reply, "a redirect, which is not followed")
    raise _error(call.request, reply)


def _broken(request: Request, reply: Reply, what: str) -> RoughyProtocolError:
    media = shortened(reply.headers.get("content-type", "no content type"))
    asked = f" (request {shortened(reply.request_id)})" if reply.request_id else ""
    size = len(reply.body)
    return RoughyProtocolError(
        f"{request}: an answer that is not Roughy's: {reply.status}, {media}, {size} bytes: {shortened(what)}{asked}"
    )


def _error(request: Request, reply: Reply) -> RoughyApiError:
    try:
        envelope = read_json(reply)["error"]
        code, message = str(envelope["code"]), str(envelope["message"])
        details = [entry for entry in envelope.get("fields") or () if isinstance(entry, dict)]
    except Exception:  # A proxy's page, a HEAD, whose reply has no body, or what nobody thought of.
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
        return min(float(value), _LONGEST_RETRY_AFTER)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(reply.headers.get("date", ""))
    except (OverflowError, TypeError, ValueError):
        return None
    return min(max(0.0, wait.total_seconds()), _LONGEST_RETRY_AFTER)


# ---- Shared by the resources


def secret() -> Any:
    """Declare a field of a resource that is a secret, such as a signed URL: neither its ``repr`` nor XCom shows it.

    Nor is it compared: each answer has a link of its own to the same file.
    """
    # Airflow's masker is not told of it: it forgets nothing, so that a triggerer would fill it for months, and compiles
    # all that it knows anew for each secret. 100 signed URLs cost it 3 s of a processor, 200 of them 12 s.
    return field(default=None, repr=False, compare=False, metadata={"secret": True})


@dataclass(frozen=True)
class Resource:
    """What the API's resources have in common. Fields that this version does not know are ignored.

    :param id: The resource.
    """

    id: str

    #: The ``X-Request-Id`` of the answer; not a field of the API.
    request_id: str | None = field(default=None, repr=False, compare=False, kw_only=True)

    #: Fields that must be text, if the class has them.
    _words: ClassVar[tuple[str, ...]] = ("id", "state")

    @classmethod
    def from_json(cls, body: Any, *, request_id: str | None = None) -> Self:
        """Make one of a reply's JSON.

        :param body: The JSON.
        :param request_id: The ``X-Request-Id`` of the reply.
        :raises TypeError: If a field is missing.
        :raises ValueError: If it is something else.
        """
        if not isinstance(body, dict):
            raise ValueError("not an object")
        values: dict[str, Any] = {"request_id": shortened(request_id)}
        for each in fields(cls):
            if each.name in body and each.name != "request_id":
                value = body[each.name]
                if each.name in cls._words and not isinstance(value, str):
                    raise ValueError(f"no {each.name}")
                if each.metadata.get("secret") and not isinstance(value, str):
                    value = None
                if isinstance(value, str) and each.name != "error_message" and len(value) > _LONGEST_TEXT:
                    raise ValueError(f"{each.name} has {len(value)} characters")
                values[each.name] = value
        if isinstance(values.get("error_message"), str):
            values["error_message"] = shortened(values["error_message"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, fit for XCom: every field but the secrets."""
        shown = [each.name for each in fields(self) if not each.metadata.get("secret") and each.name != "request_id"]
        return {name: getattr(self, name) for name in shown}


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


def resource_id(name: str, value: str) -> str:
    """Spell the id of a resource as Roughy does: a UUID in lower case.

    :param name: What the user calls it.
    :param value: The id, in any spelling of a UUID.
    :raises RoughyConfigurationError: If it is none.
    """
    try:
        return str(UUID(value))
    except (AttributeError, TypeError, ValueError):
        raise RoughyConfigurationError(f"{name} must be a UUID, not {value!r}") from None


def file_name(id: str, extension: Any) -> str:
    """Return what a file of a resource is called in a folder: its id, which is its own, and its extension.

    :param id: The resource.
    :param extension: Without a dot. Roughy's word, of which only what can be no path is taken.
    """
    return f"{id}.{extension}" if re.fullmatch(r"[A-Za-z0-9]{1,16}", str(extension or "")) else id


def read_json(reply: Reply) -> Any:
    """Return the JSON of a reply.

    :raises ValueError: If it is none, or holds what no database takes: numbers that are none (``NaN``, ``1e999``), half
        of a surrogate pair.
    """
    value = json.loads(reply.body, parse_float=_finite, parse_constant=_finite)
    if b"\\ud" in reply.body or b"\\uD" in reply.body:
        # Perhaps half a character, which cannot be written into a log, an event or a database.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def page_params(limit: int, offset: int, *, state: str | None = None, **ids: str | None) -> dict[str, str | int]:
    """Return the query of a page of a list.

    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    :param state: Only those in one state.
    :param ids: Only those of these resources, by the name of the parameter.
    :raises RoughyConfigurationError: If one of them is no id.
    """
    params: dict[str, str | int] = {"limit": limit, "offset": offset}
    params |= {name: resource_id(name, id) for name, id in ids.items() if id is not None}
    return params if state is None else params | {"state": state}


def parse_nothing(reply: Reply) -> None:
    """Take any reply for an answer."""


def parse_as(cls: type[R]) -> Callable[[Reply], R]:
    """Return the parser of a resource."""
    return lambda reply: cls.from_json(read_json(reply), request_id=reply.request_id)


def parse_page_of(cls: type[R], *, limit: int, offset: int) -> Callable[[Reply], Page[R]]:
    """Return the parser of a page.

    :param cls: Its items.
    :param limit: What was asked for; what the reply repeats of it counts for nothing.
    :param offset: Likewise.
    """

    def parse(reply: Reply) -> Page[R]:
        body = read_json(reply)
        items = [cls.from_json(item, request_id=reply.request_id) for item in body["items"]]
        return Page(items, int(body["total"]), limit, offset)

    return parse


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value
