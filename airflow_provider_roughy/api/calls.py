"""The types of API calls: a call, its request, its reply, and the common parts of the parsers.

A call is the request to send and the parser of its reply. This module uses neither the network nor a clock; ``http/``
sends calls, in sync or async code alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from uuid import UUID

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyConfigurationError,
    RoughyProtocolError,
    api_error,
    without_queries,
)

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
R = TypeVar("R", bound="Resource")

#: The longest page of a list (API page "List assets").
PAGE_SIZE = 100
#: Seconds; a longer ``Retry-After`` is shortened to this.
_MAX_RETRY_AFTER = 365 * 86400.0
#: Characters of a URL; a longer one is discarded.
_MAX_URL = 100_000


@dataclass(frozen=True)
class Request:
    """A request to send.

    :param method: The HTTP method.
    :param target: A path under the connection's base URL, or an absolute URL.
    :param params: The query.
    :param json: The body, as JSON.
    :param headers: Headers besides the key's and the client's own.
    :param content: The body, as blocks of bytes; ``headers`` then have its ``Content-Length``.
    :param longest_reply: The maximum number of bytes of the decompressed reply; ``None`` for the client's default.
    :param anonymous: Whether it is sent without the API key.
    """

    method: str
    target: str = field(repr=False)
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Iterable[bytes] | None = field(default=None, repr=False)
    longest_reply: int | None = None
    anonymous: bool = False

    def __str__(self) -> str:
        """Return method and path, for errors; of a URL from a reply, only the part that is not secret."""
        path = re.split(r"[?#]", self.target, maxsplit=1)[0]
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2].rpartition("/")[0]
            path = f"{path.rstrip('/')}/…"
        return f"{self.method} {path}"


@dataclass(frozen=True)
class Reply:
    """A reply, not decoded.

    :param status: The HTTP status.
    :param headers: Its headers, with lower-case names.
    :param body: Its body.
    :param whole: Whether it is certain that the body is complete. Without a header with its length, a body ends when
        the connection is closed, for whatever reason; of a compressed one, a member may be missing.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    whole: bool = True

    @property
    def request_id(self) -> str | None:
        """Roughy's id of the request, for its support."""
        return decode.text(self.headers.get("x-request-id"))


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and the parser of its reply.

    :param request: The request.
    :param parse: Returns the value of a 2xx reply.
    :param idempotent: Whether sending it twice has the same effect as sending it once.
    """

    request: Request
    parse: Callable[[Reply], T]
    idempotent: bool = True


def decipher(call: Call[T], reply: Reply, *, conn_id: str | None = None) -> T:
    """Return the value of a reply, or raise its error.

    :param call: The call.
    :param reply: The reply.
    :param conn_id: The Airflow connection that was used, which errors name.
    :raises RoughyApiError: The subclass that fits Roughy's error.
    :raises RoughyProtocolError: If the reply breaks the contract.
    """
    if 200 <= reply.status < 300:
        try:
            return call.parse(reply)
        except Exception as err:  # Parsers raise errors of many classes, such as for deep nesting.
            raise _broken(call.request, reply, _reason_of(err)) from err
    if reply.status < 400:
        raise _broken(call.request, reply, "a redirect, which is not followed")
    raise _error(call.request, reply, conn_id)


def _reason_of(error: Exception) -> str:
    """Return why a reply could not be parsed, as words."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    text = str(error)
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _broken(request: Request, reply: Reply, what: str) -> RoughyProtocolError:
    media = decode.text(reply.headers.get("content-type", "no content type"))
    asked = f" (request {reply.request_id})" if reply.request_id else ""
    size = len(reply.body)
    return RoughyProtocolError(
        f"{request}: an answer that is not Roughy's: {reply.status}, {media}, {size} bytes: {decode.text(what)}{asked}"
    )


def _error(request: Request, reply: Reply, conn_id: str | None) -> RoughyApiError:
    try:
        envelope = read_json(reply)["error"]
        code, message = decode.text(envelope["code"]), decode.text(envelope["message"]) or ""
        entries = envelope.get("fields")
        details = [
            {name: decode.text(entry.get(name)) or "" for name in ("field", "message")}
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict)
        ]
    except Exception:  # A proxy's page, the reply to a HEAD (which has no body), or anything unexpected.
        code, message, details = None, "", []
    return api_error(
        str(request),
        status=reply.status,
        code=code,
        message=message,
        fields=details,
        request_id=reply.request_id,
        retry_after=retry_after(reply),
        # Without a code, the error is not Roughy's own.
        hint="" if code is None else _hint(request, reply.status, conn_id),
    )


def _hint(request: Request, status: int, conn_id: str | None) -> str:
    """Return what to check after an error of Roughy, in which connection; empty if the error's class has a hint."""
    if conn_id and status in (401, 403):
        return f"Check the API key, which is the password of the Airflow connection {conn_id!r}"
    project_id = _project_of(request)
    if project_id and status == 404:
        account = f"The account of Airflow connection {conn_id!r}" if conn_id else "The account of this API key"
        return f"{account} has no project {project_id}: check `project_id` of the task, or in the connection's extra"
    return ""


def _project_of(request: Request) -> str | None:
    """Return the id of the project that a request is about, if it is about no other resource."""
    in_path = re.fullmatch(r"/v1/projects/([0-9a-f-]+)", request.target)
    if in_path:
        return in_path[1]
    filters = {} if "asset_id" in request.params else request.params
    named = (request.json or filters).get("project_id")
    return named if isinstance(named, str) else None


def retry_after(reply: Reply) -> float | None:
    """Return the seconds of ``Retry-After``, in either of its forms (RFC 9110, 10.2.3).

    A date is compared with the reply's own ``Date``, so that only the server's clock matters.
    """
    value = reply.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), _MAX_RETRY_AFTER)
    until, now = decode.http_date(value), decode.http_date(reply.headers.get("date"))
    if until is None or now is None:
        return None
    return min(max(0.0, (until - now).total_seconds()), _MAX_RETRY_AFTER)


def is_page(headers: Mapping[str, str]) -> bool:
    """Return whether a body is a web page, which a proxy or a login page sends instead of a file.

    :param headers: The headers of the reply, with lower-case names.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


# ---- Shared by the resources


def secret() -> Any:
    """Declare a field of a resource that is a secret, such as a signed URL: it is in neither ``repr`` nor XCom.

    It is not compared either, because each reply has a different link to the same file.
    """
    # It is not registered with Airflow's masker, which forgets nothing, so that it would grow for months in a
    # triggerer, and which compiles all its secrets again for each new one: 100 signed URLs take 3 s of CPU, 200 of
    # them 12 s.
    return field(default=None, repr=False, compare=False, metadata={"secret": True})


def _url(value: Any) -> str | None:
    """Decode a URL; ``None`` if decoding would change it, because it would not work then."""
    return value if isinstance(value, str) and decode.text(value, limit=_MAX_URL) == value else None


def _moment(value: Any) -> str | None:
    """Decode a date-time, and keep it as Roughy wrote it."""
    return value if decode.timestamp(value) is not None else None


def _message(value: Any) -> str | None:
    """Decode a text for people, which may quote a signed URL."""
    text = decode.text(value)
    return None if text is None else without_queries(text)


def _object(value: Any) -> dict[str, Any]:
    """Decode an object with any members."""
    found = decode.plain(value)
    return found if isinstance(found, dict) else {}


#: The decoders of fields by annotation, unless there is one for the name or in the class.
_BY_TYPE: Mapping[str, Callable[[Any], Any]] = {
    "str": decode.text,
    "int": decode.integer,
    "bool": decode.boolean,
    "list[str]": decode.texts,
    "dict[str, Any]": _object,
}
_BY_NAME: Mapping[str, Callable[[Any], Any]] = {
    "id": decode.identifier,
    "asset_id": decode.identifier,
    "cut_id": decode.identifier,
    "project_id": decode.identifier,
    "error_message": _message,
    "size_bytes": decode.size,
    "duration_seconds": decode.decimal,
    **dict.fromkeys(
        ("created_at", "updated_at", "archived_at", "started_at", "completed_at", "deleted_at", "email_verified_at"),
        _moment,
    ),
}


@dataclass(frozen=True)
class _Field:
    """How a field of a resource is decoded.

    :param name: Its name.
    :param decode: Returns its value, or ``None`` if it has none.
    :param required: Whether a reply must have it.
    :param nullable: Whether it may be ``None``.
    """

    name: str
    decode: Callable[[Any], Any]
    required: bool
    nullable: bool


@dataclass(frozen=True)
class Resource:
    """The base of the API's resources. Unknown fields are ignored.

    :param id: The resource.
    """

    id: str

    #: The ``X-Request-Id`` of the reply; not a field of the API.
    request_id: str | None = field(default=None, repr=False, compare=False, kw_only=True)

    #: The decoders of fields of this class.
    _decoders: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}

    @classmethod
    @cache
    def _fields(cls) -> tuple[_Field, ...]:
        found = []
        for each in fields(cls):
            if each.name == "request_id":
                continue
            kind, _, null = str(each.type).partition(" | ")
            by_name = cls._decoders.get(each.name) or (_url if each.metadata.get("secret") else _BY_NAME.get(each.name))
            is_required = each.default is MISSING and each.default_factory is MISSING
            decoder = by_name or _BY_TYPE.get(kind)
            if decoder is None:
                raise TypeError(
                    f"{cls.__name__}.{each.name} needs a decoder in `_decoders` of its class: none is known for its "
                    f"name or its type {each.type!r}"
                )
            found.append(_Field(each.name, decoder, is_required, null == "None"))
        return tuple(found)

    @classmethod
    def from_json(cls, body: Any, *, request_id: str | None = None) -> Self:
        """Create one from a reply's JSON. A field of an unexpected type becomes ``None`` or text, and is logged.

        :param body: The JSON.
        :param request_id: The ``X-Request-Id`` of the reply.
        :raises ValueError: If it is not an object, or a field that the API requires is missing or cannot be decoded.
        """
        if not isinstance(body, dict):
            raise ValueError("not an object")
        values: dict[str, Any] = {"request_id": request_id}
        for each in cls._fields():
            if each.name not in body:
                if each.required:
                    raise ValueError(f"{each.name} is missing")
                continue
            given = body[each.name]
            value = None if given is None else each.decode(given)
            if value is None and not each.nullable:
                raise ValueError(f"{each.name} is {'missing' if given is None else 'of another type or out of bounds'}")
            if type(value) is not type(given):
                _report_odd_field(cls, body, each.name, given, value)
            values[each.name] = value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON for XCom: every field but the secrets."""
        shown = [each.name for each in fields(self) if not each.metadata.get("secret") and each.name != "request_id"]
        return {name: getattr(self, name) for name in shown}

    def serialize(self) -> dict[str, Any]:
        """Return what Airflow stores as an XCom, without the secrets. Airflow calls this for the values of tasks."""
        return {**self.to_dict(), "request_id": self.request_id}

    @classmethod
    def deserialize(cls, data: dict[str, Any], version: int) -> Self:
        """Return a resource that Airflow has stored. Airflow calls it if ``allowed_deserialization_classes`` allows it.

        :param data: The result of :meth:`serialize`.
        :param version: The version of the class, as Airflow stored it.
        """
        return cls(**data)


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list (API page "List assets").

    :param items: The items, newest first, without those that cannot be decoded.
    :param total: The number of all entries that match.
    :param limit: The requested number of items.
    :param offset: The requested offset.
    :param ids: A unique key of each entry, in order, including entries that cannot be decoded; empty for the ids of
        ``items``.
    """

    items: list[T]
    total: int
    limit: int
    offset: int
    ids: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", tuple(str(getattr(item, "id", item)) for item in self.items))

    @property
    def end(self) -> int:
        """The offset after its last entry."""
        return self.offset + len(self.ids)

    @property
    def next_offset(self) -> int | None:
        """The offset of the next page, or ``None`` after the last one."""
        return self.end if self.ids and self.end < self.total else None


def resource_id(name: str, value: str) -> str:
    """Return the id of a resource in Roughy's spelling: a UUID in lower case.

    :param name: The parameter's name.
    :param value: The id, in any spelling of a UUID.
    :raises RoughyConfigurationError: If it is not a UUID.
    """
    try:
        return str(UUID(value))
    except (AttributeError, TypeError, ValueError):
        raise RoughyConfigurationError(f"{name} must be a UUID, not {value!r}") from None


def file_name(id: str, extension: Any) -> str:
    """Return the file name of a resource in a folder: its id, which is unique, and its extension.

    :param id: The resource.
    :param extension: Roughy's extension, without a dot; ignored if it could change the path.
    """
    return f"{id}.{extension}" if re.fullmatch(r"[A-Za-z0-9]{1,16}", str(extension or "")) else id


def read_json(reply: Reply) -> Any:
    """Return the JSON of a reply, whose values are not decoded.

    :raises ValueError: If the body is not JSON.
    """
    return decode.loads(reply.body)


def page_params(limit: int, offset: int, *, state: str | None = None, **ids: str | None) -> dict[str, str | int]:
    """Return the query of a page of a list.

    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    :param state: Only those in one state.
    :param ids: Only those of these resources, by the name of the parameter.
    :raises RoughyConfigurationError: If an id is not a UUID, or the state is not text.
    """
    params: dict[str, str | int] = {"limit": limit, "offset": offset}
    params |= {name: resource_id(name, id) for name, id in ids.items() if id is not None}
    return params if state is None else params | {"state": sendable_text("state", state)}


def parse_nothing(reply: Reply) -> None:
    """Accept any reply."""


def parse_as(cls: type[R], **asked: str | None) -> Callable[[Reply], R]:
    """Return the parser of a resource.

    :param cls: The resource.
    :param asked: The ids that the request names, by the field of the resource, ``None`` for no id: a reply with another
        one is an error.
    :raises TypeError: If nothing decodes one of its fields.
    """
    # Here, as an error in the parser would be taken for one of the reply.
    cls._fields()

    def parse(reply: Reply) -> R:
        made = read_json(reply)
        resource = cls.from_json(made, request_id=reply.request_id)
        for name, id in asked.items():
            if name in made and getattr(resource, name) != id:
                raise ValueError(f"it is about another resource: its {name} is {getattr(resource, name)}, not {id}")
        return resource

    return parse


def parse_page_of(cls: type[R], *, limit: int, offset: int) -> Callable[[Reply], Page[R]]:
    """Return the parser of a page.

    :param cls: The class of its items.
    :param limit: The ``limit`` of the request. The one in the reply is not used.
    :param offset: The ``offset`` of the request. The one in the reply is not used.
    :raises TypeError: If nothing decodes one of the fields of an item.
    """
    # Here, as an error in the parser would be taken for one of the reply.
    cls._fields()

    def parse(reply: Reply) -> Page[R]:
        body = read_json(reply)
        return page_of(cls, body["items"], body.get("total"), reply, limit=limit, offset=offset)

    return parse


def page_of(cls: type[R], entries: Any, total: Any, reply: Reply, *, limit: int, offset: int) -> Page[R]:
    """Return a page without the entries that cannot be decoded, each of which is logged once.

    :param cls: The class of its items.
    :param entries: The entries of the reply.
    :param total: The reply's number of all entries that match. Without it, a full page counts as not the last one.
    :param reply: The reply.
    :param limit: The ``limit`` of the request.
    :param offset: The ``offset`` of the request.
    :raises ValueError: If ``entries`` is not an array.
    """
    if not isinstance(entries, list):
        raise ValueError("its list of items is not an array")
    request_id = reply.request_id
    items, ids = [], []
    for entry in entries:
        try:
            item = cls.from_json(entry, request_id=request_id)
        except Exception as error:  # One entry must not fail the page, whatever it is.
            ids.append(_name_of(entry) or repr(decode.plain(entry)))
            decode.report_once(
                "Skipped %s %s in a list, because it cannot be decoded: %s",
                _noun(cls),
                _name_of(entry) or "without an id",
                decode.text(str(error)),
            )
        else:
            items.append(item)
            ids.append(item.id)
    end = offset + len(ids)
    count = decode.size(total)
    return Page(items, end + (len(ids) >= limit) if count is None else count, limit, offset, tuple(ids))


def sendable_text(name: str, value: Any, *, most: int | None = None) -> str:
    """Return text for a request if Roughy may repeat it in a reply: Airflow's database cannot store every text.

    :param name: The parameter's name.
    :param value: The text.
    :param most: The maximum number of characters.
    :raises RoughyConfigurationError: If it is not text, too long, or has NUL or half of a surrogate pair.
    """
    if not isinstance(value, str) or (most is not None and len(value) > most):
        what = f"{len(value)} characters" if isinstance(value, str) else repr(value)
        limit = "" if most is None else f" of at most {most} characters"
        raise RoughyConfigurationError(f"{name} must be text{limit}: {what}")
    if found := decode.UNSTORABLE.search(value):
        what = "a NUL character" if found[0] == "\0" else f"half of a surrogate pair ({found[0]!a})"
        raise RoughyConfigurationError(f"{name} must be text that can be stored: character {found.start()} is {what}")
    return value


def sendable(name: str, value: Any) -> Any:
    """Return JSON for a request if Roughy may repeat it in a reply.

    :param name: The parameter's name.
    :param value: The JSON.
    :raises RoughyConfigurationError: If it is not JSON, or has parts that no database can store.
    """
    if isinstance(value, str):
        return sendable_text(name, value)
    if isinstance(value, Mapping):
        return {
            sendable_text(f"a name in {name}", key): sendable(f"{name}[{key!r}]", each) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [sendable(f"{name}[{number}]", each) for number, each in enumerate(value)]
    if value is None or isinstance(value, bool) or (isinstance(value, int) and decode.integer(value) is not None):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise RoughyConfigurationError(
        f"{name} must be text, a number, or JSON made of them, not {decode.text(repr(value))}"
    )


def _noun(cls: type[Resource]) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", cls.__name__.removeprefix("Roughy")).lower()


def _name_of(entry: Any) -> str | None:
    named = entry.get("id") if isinstance(entry, dict) else None
    return decode.identifier(named) or decode.text(named, limit=100)


def _report_odd_field(cls: type[Resource], body: Mapping[str, Any], name: str, given: Any, value: Any) -> None:
    decode.report_once(
        "Decoded %s of %s %s as %s: it came as %s, which the API does not document",
        name,
        _noun(cls),
        _name_of(body) or "without an id",
        "unknown" if value is None else repr(str(value)[:100]),
        type(given).__name__,
    )
