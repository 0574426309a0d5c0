"""Every error of this package.

::

    RoughyError
    ├── RoughyConfigurationError *         the connection or an argument is unusable; nothing was sent
    ├── RoughyMissingConnectionError       Airflow has no such connection, or its secrets backend is down
    ├── RoughyApiError                     Roughy answered with an error
    │   ├── RoughyAuthenticationError *    401, 403, account_locked
    │   ├── RoughyInsufficientCreditsError *  402
    │   ├── RoughyNotFoundError *          404, 410
    │   ├── RoughyConflictError            409
    │   │   ├── RoughyUnsupportedMediaError *  409 on the first chunk: neither audio nor video
    │   │   ├── RoughyAssetProcessingError     asset_processing, asset_not_ready: later
    │   │   ├── RoughyCutNotReadyError         modifier_not_ready: the cut is not completed
    │   │   ├── RoughyUnsupportedFormatError *  unsupported_format
    │   │   └── RoughyFrameRateRequiredError *  frame_rate_required
    │   ├── RoughyValidationError *        400, 412, 413, 415, 422
    │   ├── RoughyGatewayError             4xx of something in front of Roughy
    │   ├── RoughyRateLimitError           429
    │   └── RoughyServerError              5xx
    ├── RoughyUnreachableError             no answer: refused, reset, timed out
    ├── RoughyProtocolError                an answer that breaks the contract
    │   └── RoughyUntrustedUrlError *      a URL that the key must not be sent to
    ├── RoughySourceError                  the source failed or changed while it was read
    │   └── RoughyUnusableSourceError *    missing, a directory, unreadable, too small, too big
    ├── RoughyLedgerError                  the ledger could not be read or written just now
    │   ├── RoughyUnusableLedgerError *    an unknown storage, a folder that must not be written
    │   ├── RoughyLedgerEntryError         one entry of it cannot be read
    │   └── RoughyClaimedError             another run is ingesting the recording
    ├── RoughyIngestError                  some recordings of a batch were interrupted
    │   └── RoughyIngestFailedError *      some failed or were rejected, and no retry helps
    ├── RoughyProduceError                 some outputs of recordings were not made
    │   └── RoughyProduceFailedError *     no retry makes them
    ├── RoughyTargetError                  the target could not be written: full disk, storage down
    │   ├── RoughyUnusableTargetError *    not the name of a file, or no permission to write there
    │   └── RoughyTargetExistsError *      another file exists, and must not be replaced
    ├── RoughyUploadError                  upload retries exhausted
    │   ├── RoughyUploadClosedError        the asset waits for bytes, and has no upload to send them to
    │   └── RoughyUnconfirmedUploadError   Roughy may have all bytes, and does not confirm it
    ├── RoughyDownloadError                download retries exhausted
    ├── RoughyInterruptedError             the task was killed
    ├── RoughyNotReadyError                there is nothing to download yet
    ├── RoughyFailedError *                a resource of Roughy is ``failed``
    │   ├── RoughyAssetFailedError *       the asset; asset_failed
    │   ├── RoughyCutFailedError *         the cut
    │   └── RoughyRenderFailedError *      the render
    ├── RoughyWebhookError                 a request that is no webhook of Roughy's
    ├── RoughyPaymentRequiredError *       the asset is in ``pending_payment``; asset_payment_required
    └── RoughyTimeoutError †               the wait was longer than ``timeout``

``*`` is an :class:`AirflowFailException` as well: no retry can fix it, so Airflow makes none.
``†`` is an :class:`AirflowSensorTimeout`, which Airflow does not retry either.
The others are not an ``AirflowException``: Airflow retries them, and ``soft_fail`` treats them the same in every mode
(a plain ``AirflowException`` would fail a poking sensor and skip a deferred one).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow_provider_roughy.compat import AirflowFailException, AirflowSensorTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_Words = TypeVar("_Words", str, str | None)

#: Characters of Roughy's text that an error keeps: it goes into logs, events and Airflow's database.
_MAX_TEXT = 2000
#: What may be a URL, where its query or fragment begins, its scheme, and the user in it. It may be percent-encoded.
_WORD = re.compile(r"[^\s\"<>]+")
_MARK = re.compile(r"[?#]|%3F|%23", re.IGNORECASE)
_QUERY = re.compile(r"\?|%3F", re.IGNORECASE)
_SCHEME = re.compile(r"https?(?:://|%3A%2F%2F)", re.IGNORECASE)
_USER = re.compile(r"://[^/]*@")
#: Fields of a validation error that are kept.
_MAX_FIELDS = 20


class RoughyError(Exception):
    """Base of every error of this package."""

    #: What to do about it. The message ends with it.
    hint: ClassVar[str] = ""

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed a little later."""
        return False

    @property
    def final(self) -> bool:
        """Whether no retry of the task can succeed, so that Airflow makes none.

        It is ``False`` for :class:`RoughyTimeoutError`, which Airflow does not retry either.
        """
        return isinstance(self, AirflowFailException)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without calling ``__init__``, whose arguments are keywords."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[RoughyError], args: tuple[Any, ...], state: dict[str, Any]) -> RoughyError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class RoughyConfigurationError(RoughyError, AirflowFailException):
    """The connection or an argument is unusable. Nothing was created or sent."""


class RoughyMissingConnectionError(RoughyError):
    """Airflow has no such connection, or its secrets backend is down, which looks the same. A retry may help."""

    transient = True


class RoughyApiError(RoughyError):
    """Roughy replied with an error (API page "Errors").

    :param request: The method and path that were answered, with no query.
    :param status: The HTTP status.
    :param code: Roughy's error code, one of a closed list, or ``None`` if the reply has none
        (a proxy's page, an empty body).
    :param message: Roughy's own text.
    :param fields: For ``validation_error``: ``{"field": "body.size_bytes", "message": ...}`` each.
    :param request_id: The ``X-Request-Id`` of the reply, for Roughy's support.
    :param retry_after: Seconds of ``Retry-After``.
    :param hint: What to do about it, such as what to change in which connection; by default that of the class.
    """

    def __init__(
        self,
        request: str,
        *,
        status: int,
        code: str | None = None,
        message: str = "",
        fields: Sequence[Mapping[str, str]] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
        hint: str = "",
    ) -> None:
        self.request = request
        self.status = status
        self.code = shortened(code)
        self.message = shortened(message)
        self.fields = [{name: shortened(str(words)) for name, words in field.items()} for field in fields[:_MAX_FIELDS]]
        self.request_id = shortened(request_id)
        self.retry_after = retry_after
        details = "; ".join(f"{field.get('field')}: {field.get('message')}" for field in self.fields)
        text = f"{request}: {status}{f' {self.code}' if code else ''}{f': {self.message}' if message else ''}"
        if details:
            text += f" [{details}]"
        text += _asked_in(self.request_id)
        hint = hint or self.hint
        super().__init__(f"{text}. {hint}" if hint else text)

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed a little later: timeout, locked upload, rate limit, server fault."""
        return _says_later(self.status, self.code)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, from which :func:`api_error` creates the same error again, without its ``hint``."""
        return {
            "request": self.request,
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "fields": self.fields,
            "request_id": self.request_id,
            "retry_after": self.retry_after,
        }


class RoughyAuthenticationError(RoughyApiError, AirflowFailException):
    """The key is missing, wrong or not allowed to do this (401, 403), or the account is locked."""

    hint = "Check the API key, which is the password of the Airflow connection"
    transient = False


class RoughyInsufficientCreditsError(RoughyApiError, AirflowFailException):
    """The balance is not above zero, so no upload was opened (402)."""

    hint = "Top up the credits at Roughy, then clear the task"


class RoughyNotFoundError(RoughyApiError, AirflowFailException):
    """There is no such resource, it belongs to another account (404), or it was removed (410)."""


class RoughyConflictError(RoughyApiError):
    """The resource is in a state that does not allow this (409)."""


class RoughyUnsupportedMediaError(RoughyConflictError, AirflowFailException):
    """Roughy does not recognise the first bytes as audio or video (409 on the first chunk)."""

    hint = "The file is neither audio nor video that Roughy can read"


class RoughyAssetProcessingError(RoughyConflictError):
    """The asset is not ready, so that no cut or render can be created (409 ``asset_processing``, ``asset_not_ready``).

    ``retry_after`` is the number of seconds to wait before the next request, if Roughy named one.
    """

    hint = "Wait until the asset is ready, for instance with RoughyAssetSensor, then try again"


class RoughyCutNotReadyError(RoughyConflictError):
    """The cut that the render follows is not completed (409 ``modifier_not_ready``)."""

    hint = "Wait until the cut is completed, for instance with RoughyCutSensor, then try again"


class RoughyUnsupportedFormatError(RoughyConflictError, AirflowFailException):
    """Roughy does not support this format, or not for this recording (409 ``unsupported_format``)."""

    hint = "Ask for another format"


class RoughyFrameRateRequiredError(RoughyConflictError, AirflowFailException):
    """The timeline needs a frame rate, and the recording does not have one (``frame_rate_required``)."""

    hint = "Pass frame_rate, that of the editor's project"


class RoughyValidationError(RoughyApiError, AirflowFailException):
    """Roughy rejected the request as invalid (400, 412, 413, 415, 422)."""


class RoughyGatewayError(RoughyApiError):
    """A 4xx without Roughy's error envelope: a proxy or a gateway refused the request, and Roughy itself may not."""

    hint = "This is not Roughy's own error: check for a proxy, a firewall or a login page between Airflow and Roughy"
    transient = True


class RoughyRateLimitError(RoughyApiError):
    """Too many requests (429)."""


class RoughyServerError(RoughyApiError):
    """Roughy, or a proxy in front of it, failed (5xx)."""


#: Roughy's closed list of error codes (API page "List assets", ``ErrorCode``).
ERRORS_BY_CODE: dict[str, type[RoughyApiError]] = {
    "bad_request": RoughyValidationError,
    "unauthenticated": RoughyAuthenticationError,
    "forbidden": RoughyAuthenticationError,
    "not_found": RoughyNotFoundError,
    "conflict": RoughyConflictError,
    "gone": RoughyNotFoundError,
    "precondition_failed": RoughyValidationError,
    "payload_too_large": RoughyValidationError,
    "unsupported_media_type": RoughyValidationError,
    "validation_error": RoughyValidationError,
    "account_locked": RoughyAuthenticationError,
    "rate_limited": RoughyRateLimitError,
    "insufficient_credits": RoughyInsufficientCreditsError,
    "internal_error": RoughyServerError,
    "upstream_error": RoughyServerError,
    "upstream_unavailable": RoughyServerError,
    "asset_processing": RoughyAssetProcessingError,
    "asset_payment_required": RoughyConflictError,
    "asset_failed": RoughyConflictError,
    "asset_not_ready": RoughyAssetProcessingError,
    "modifier_not_ready": RoughyCutNotReadyError,
    "unsupported_format": RoughyUnsupportedFormatError,
    "frame_rate_required": RoughyFrameRateRequiredError,
    "cut_not_proposed": RoughyConflictError,
}

#: The errors of replies whose code is missing or unknown: a proxy's, or a newer Roughy's.
_ERRORS_BY_STATUS: dict[int, type[RoughyApiError]] = {
    400: RoughyValidationError,
    401: RoughyAuthenticationError,
    402: RoughyInsufficientCreditsError,
    403: RoughyAuthenticationError,
    404: RoughyNotFoundError,
    409: RoughyConflictError,
    410: RoughyNotFoundError,
    412: RoughyValidationError,
    413: RoughyValidationError,
    415: RoughyValidationError,
    422: RoughyValidationError,
    429: RoughyRateLimitError,
}


def api_error(request: str, *, status: int, code: str | None = None, **details: Any) -> RoughyApiError:
    """Return the error of a reply: by its code, else by its status.

    A status that asks for a later request takes precedence over the code, as a gateway may have replied.

    :param request: The method and path of the request.
    :param status: The HTTP status.
    :param code: Roughy's error code, if the reply has one.
    :param details: The other arguments of :class:`RoughyApiError`.
    """
    by_status = _ERRORS_BY_STATUS.get(status, RoughyServerError if status >= 500 else RoughyApiError)
    if _says_later(status, code):
        cls = by_status
    elif code is None and status < 500 and not request.startswith("HEAD "):
        # The reply to a HEAD has no body that could hold an envelope.
        cls = RoughyGatewayError
    else:
        cls = ERRORS_BY_CODE.get(code or "", by_status)
    return cls(request, status=status, code=code, **details)


class RoughyUnreachableError(RoughyError):
    """There was no reply: the connection was refused, reset or timed out.

    :param message: The request, and what happened to it.
    :param sent: Whether a part of the request may have reached Roughy.
    """

    transient = True

    def __init__(self, message: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(message)


class RoughyProtocolError(RoughyError):
    """A reply that breaks the contract: HTML from a proxy, truncated JSON, a redirect, a missing header."""

    transient = True


class RoughyUntrustedUrlError(RoughyProtocolError, AirflowFailException):
    """A URL that the key must not be sent to: another host, or plain http beyond this machine."""

    transient = False


class RoughySourceError(RoughyError):
    """The source could not be read to its end, or changed while it was read. A retry may succeed."""


class RoughyUnusableSourceError(RoughySourceError, AirflowFailException):
    """The source is missing, not a file, unreadable, or not between 64 bytes and 50 GiB. Nothing was created."""


class RoughyLedgerError(RoughyError):
    """The ledger could not be read or written. No bytes are sent for a recording that is not in the ledger."""


class RoughyUnusableLedgerError(RoughyLedgerError, AirflowFailException):
    """The ledger cannot be used until a person corrects it, such as a missing folder or a storage that overwrites."""


class RoughyLedgerEntryError(RoughyLedgerError):
    """One object of the ledger is damaged, such as by a power cut. Remove it to upload its recording."""


class RoughyClaimedError(RoughyLedgerError):
    """Another run holds this recording's claim, or held it until recently; a later try picks up the result."""


class RoughyIngestError(RoughyError):
    """Some recordings of a batch were interrupted. A retry uploads only what is missing.

    :param message: What happened to how many, and to some of them by name.
    :param outcomes: The result of each: the XComs of :class:`~airflow_provider_roughy.operators.RoughyIngestOperator`.
    """

    def __init__(self, message: str, *, outcomes: Mapping[str, Any]) -> None:
        self.outcomes = outcomes
        super().__init__(message)


class RoughyIngestFailedError(RoughyIngestError, AirflowFailException):
    """Some recordings of a batch failed, were rejected, timed out or are not paid for, and no retry helps."""


class RoughyProduceError(RoughyError):
    """Some outputs of recordings were not made. A retry makes only what is missing.

    :param message: What happened to how many recordings, and to some of them by name.
    :param outcomes: The XComs of :class:`~airflow_provider_roughy.operators.RoughyProduceOperator`.
    """

    def __init__(self, message: str, *, outcomes: Mapping[str, Any]) -> None:
        self.outcomes = outcomes
        super().__init__(message)


class RoughyProduceFailedError(RoughyProduceError, AirflowFailException):
    """Some outputs of recordings were not made, and no retry makes them."""


class RoughyTargetError(RoughyError):
    """The target could not be written. A file that existed before is unchanged."""

    #: Whether its storage may not be written at all, such as without a permission.
    is_forbidden = False


class RoughyUnusableTargetError(RoughyTargetError, AirflowFailException):
    """The target is not the name of a file, or may not be written. Nothing was downloaded."""


class RoughyTargetExistsError(RoughyTargetError, AirflowFailException):
    """Another file exists, and ``overwrite="fail"`` forbids to replace it. Nothing was written."""


class RoughyUploadError(RoughyError):
    """The upload failed, and its retries are exhausted.

    :param message: The upload, and what happened to it.
    :param offset: Bytes that Roughy had acknowledged.
    """

    def __init__(self, message: str, *, offset: int) -> None:
        self.offset = offset
        super().__init__(message)


class RoughyUploadClosedError(RoughyUploadError):
    """The asset is ``pending_upload``, but has no upload any more that could take its bytes."""


class RoughyUnconfirmedUploadError(RoughyUploadError):
    """Roughy may have all bytes, but has not confirmed it yet. The asset stays; a retry confirms the upload."""


class RoughyDownloadError(RoughyError):
    """The download failed, and its retries are exhausted. Nothing was written to the target.

    :param message: The download, and what happened to it.
    :param offset: Bytes that had arrived.
    """

    def __init__(self, message: str, *, offset: int) -> None:
        self.offset = offset
        super().__init__(message)


class RoughyInterruptedError(RoughyError):
    """The task was killed, so its requests and pauses were ended."""


class RoughyNotReadyError(RoughyError):
    """The asset is not ready, or the render not completed, so that there is no file to download yet."""


class RoughyFailedError(RoughyError, AirflowFailException):
    """A resource of Roughy is ``failed``, which is final.

    :param id: Its id.
    :param error_code: Roughy's machine-readable reason.
    :param error_message: Roughy's own text.
    :param request_id: The ``X-Request-Id`` of the reply.
    """

    #: The name of its kind.
    kind: ClassVar[str]

    def __init__(
        self,
        id: str,
        *,
        error_code: str | None = None,
        error_message: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.id = id
        self.error_code = shortened(error_code)
        self.error_message = shortened(error_message)
        self.request_id = request_id
        reason = ": ".join(part for part in (self.error_code, self.error_message) if part) or "Roughy gave no reason"
        #: The message without the hint.
        self.summary = f"{self.kind.capitalize()} {id} failed: {reason}{_asked_in(request_id)}"
        super().__init__(f"{self.summary}. {self.hint}" if self.hint else self.summary)


class RoughyAssetFailedError(RoughyFailedError):
    """Roughy could not prepare the asset, which is not charged. The recording has to be uploaded again."""

    hint = (
        "It is not charged. Correct the recording, then clear the task that uploads it; a batch with a `ledger` "
        "uploads the corrected file automatically"
    )
    kind = "asset"

    @property
    def asset_id(self) -> str:
        """The asset."""
        return self.id


class RoughyCutFailedError(RoughyFailedError):
    """Roughy could not cut the asset."""

    hint = "The same request fails again: change it by that reason, or send the request id to Roughy's support"
    kind = "cut"

    @property
    def cut_id(self) -> str:
        """The cut."""
        return self.id


class RoughyRenderFailedError(RoughyFailedError):
    """Roughy could not render the asset, or the render was cancelled."""

    hint = "Unless somebody cancelled it, the same request fails again: change it by that reason"
    kind = "render"

    @property
    def render_id(self) -> str:
        """The render."""
        return self.id


class RoughyPaymentRequiredError(RoughyError, AirflowFailException):
    """The asset is uploaded and measured, but the credits do not cover it: its state is ``pending_payment``.

    :param asset_id: The asset.
    :param request_id: The ``X-Request-Id`` of the reply.
    """

    def __init__(self, asset_id: str, *, request_id: str | None = None) -> None:
        self.asset_id = asset_id
        self.request_id = request_id
        super().__init__(
            f"Asset {asset_id} is not paid for{_asked_in(request_id)}. Top up the credits at Roughy within 30 days: "
            "it then becomes ready automatically, with nothing to upload again"
        )


class RoughyWebhookError(RoughyError):
    """A request is not a webhook of Roughy: its signature is missing, wrong or old, or its body is malformed."""


class RoughyTimeoutError(RoughyError, AirflowSensorTimeout):
    """The resource reached no final state before the deadline.

    :param id: The resource; empty if Airflow has ended the wait and the id is lost.
    :param kind: The name of its kind.
    :param state: Its last state; ``None`` if no poll succeeded.
    :param reason: Why the last poll failed, if it did.
    """

    def __init__(self, id: str, *, kind: str, state: str | None = None, reason: str | None = None) -> None:
        self.id = id
        self.kind = kind
        self.state = state
        what = f"{kind.capitalize()} {id}" if id else f"The {kind}"
        seen = f"it was still {state}" if state else "no poll could read its state"
        said = f"{what} was not done in time: {seen}{f'; last poll: {reason}' if reason else ''}"
        super().__init__(f"{said}{' ' if said.endswith('?') else '. '}{_after_timeout(state)}")

    @property
    def asset_id(self) -> str | None:
        """The asset's id; ``None`` for another kind, or if the id is lost."""
        return (self.id or None) if self.kind == "asset" else None


def _after_timeout(state: str | None) -> str:
    """Say what to do about a resource that was not done in time."""
    if state == "pending_upload":
        return (
            "Its bytes have not all arrived: look at the task that uploads it, then clear this one, which polls again"
        )
    if state == "pending_payment":
        return "Top up the credits at Roughy, then clear the task, which polls again"
    if state is None:
        return "Once Roughy can be reached, clear the task, which polls again"
    return "Clear the task, which polls again, and give it a longer `timeout` if this happens often"


def _says_later(status: int, code: str | None) -> bool:
    # 423 is TUS's "another request holds the upload", unless the code says that the account is locked.
    return status in (408, 425, 429) or status >= 500 or (status == 423 and code != "account_locked")


def without_queries(text: str) -> str:
    """Return a text without the queries of the URLs in it, as they may be signatures.

    :param text: The words of a reply or of a storage.
    """
    return _WORD.sub(_without_query, text)


def _without_query(match: re.Match[str]) -> str:
    word = match[0]
    if (scheme := _SCHEME.search(word)) and (mark := _MARK.search(word, scheme.end())) and mark.end() < len(word):
        word = f"{word[: mark.start()]}?…"
    # A relative URL, or one without a scheme, is told from other text by its values.
    if (mark := _QUERY.search(word)) and re.search("=|%3D", word[mark.end() :], re.IGNORECASE):
        word = f"{word[: mark.start()]}?…"
    return _USER.sub("://", word)


def shortened(words: _Words) -> _Words:
    """Return a text of a reply as messages quote it: it may have any length, and quote a signed URL."""
    if words is None:
        return words
    words = without_queries(words)
    if len(words) <= _MAX_TEXT:
        return words
    # Not longer than the limit, so that an error made again from its own text is the same.
    return f"{words[: _MAX_TEXT - 40]}… ({len(words)} characters)"


def _asked_in(request_id: str | None) -> str:
    return f" (request {request_id})" if request_id else ""
