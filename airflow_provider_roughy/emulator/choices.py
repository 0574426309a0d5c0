"""All behaviour that Roughy's documentation leaves open, as options with defaults.

The text of each field says what is known, how reliably, and why the default is as it is:

* *documented*: a public page says so; it is an option only because tests need the alternative,
* *inferred*: it follows from the documentation, the TUS protocol or an older generation of the API,
* *unknown*: no public page says it; the default is the least surprising reading.

A client that works with only one value of an option relies on undocumented behaviour.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

#: Bounds of numbers: success statuses, all other numbers, and fields with bounds of their own.
_STATUS = (200, 299)
_MAX = 10_000_000_000
_BOUNDS = {
    "min_upload_bytes": (1, 1 << 50),
    "max_upload_bytes": (1, 1 << 60),
    "identify_bytes": (64, 1 << 30),
    "lock_wait_seconds": (0, 1_000_000),
    "webhook_timeout_seconds": (0.001, 1_000_000),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """How the emulator behaves where the documentation is silent."""

    # Assets

    delete_status: int = 204
    """Status of ``DELETE`` of an asset, a project, a webhook endpoint. Inferred: the pages document the
    effect (immediate, irreversible) but not the status; 204 without a body is usual in this stack."""

    over_limit_size_status: Literal[413, 422] = 413
    """Status of ``POST /v1/assets`` for more than ``max_upload_bytes``. Inferred: the error table describes
    413 ``payload_too_large`` as "body or Upload-Length over the cap"; 422 would be possible too."""

    malformed_json_status: Literal[400, 422] = 400
    """Status for a request body that is not JSON. Inferred: 400 is "malformed, nothing more specific" and 422 is
    "well-formed but fields invalid"."""

    archived_project_accepts_assets: bool = True
    """Whether an asset can be created in an archived project. Unknown: no page forbids it."""

    create_sends_tus_headers: bool = True
    """Whether ``POST /v1/assets`` carries ``Tus-Resumable`` and ``Upload-Expires``. Unknown: the older
    generation of the call did, and TUS requires it on a creation reply."""

    refund_on_delete: bool = False
    """Whether deleting a charged asset writes a ``refund`` entry. Unknown: no rule is documented, and one charge
    per asset is."""

    activation_skips_unaffordable: bool = False
    """Whether a top-up that cannot pay the oldest unpaid asset activates younger, cheaper ones. Unknown:
    documented is "oldest first" only, so younger assets wait for older ones."""

    # Uploads

    min_upload_bytes: int = 64
    """Minimum bytes of an upload, and of its first PATCH. Documented in the upload guide; that ``POST /v1/assets``
    already rejects less (422) is inferred."""

    max_upload_bytes: int = 50 * 1024**3
    """Maximum bytes of an upload. Documented as 50 GiB; the byte count is inferred arithmetic."""

    upload_ttl_seconds: float = 24 * 3600
    """How long an upload stays open after its creation. Inferred: the older generation showed 24 hours."""

    expired_upload: Literal["gone", "not_found"] = "gone"
    """Reply for an expired upload. Unknown: TUS allows 404 and 410; ``gone`` exists in the error enum and
    fits no other case."""

    expired_asset: Literal["removed", "kept"] = "removed"
    """Whether the asset of an expired upload is removed. Unknown: cancelling an upload removes the asset
    (documented), and an asset that can never get its bytes is useless."""

    finished_upload: Literal["gone", "not_found", "offset"] = "gone"
    """Reply for an upload whose last byte has arrived: 410, 404, or (``offset``) HEAD still returns the full
    offset and an empty PATCH at the end is 204. Unknown; the asset's ``upload_url`` becomes null then."""

    cancel_status: int = 204
    """Status of ``DELETE /v1/uploads/{id}``. Inferred: TUS requires 204; the page says "Upload cancelled."."""

    cancelled_upload: Literal["not_found", "gone"] = "not_found"
    """Reply for an upload after its cancellation. Inferred: TUS allows 404 and 410; the asset is 404 too."""

    rejected_upload: Literal["removed", "kept", "failed"] = "removed"
    """What happens to the asset if the first chunk is neither audio nor video: removed, as by a cancelled
    upload, kept in ``pending_upload`` with an unusable upload, or ``failed``. Unknown: documented is that the
    upload session is cancelled."""

    unsupported_media_code: str = "conflict"
    """Error code of that rejection. The status 409 is documented; the code is inferred, since no more specific 409
    code fits and ``unsupported_media_type`` is defined for the request's Content-Type (415)."""

    short_first_chunk_status: Literal[400, 409, 422] = 409
    """Status of a first PATCH below ``min_upload_bytes``. Unknown: documented is "rejected"; 409 because the
    media check, which answers 409, is what needs the bytes. The upload stays open."""

    over_length_status: Literal[400, 409, 413] = 413
    """Status of a PATCH that would exceed the declared size. Unknown; nothing of its body is stored."""

    keep_partial: bool = True
    """Whether the bytes of a PATCH that breaks off are kept. Unknown: TUS says a server should keep as
    many as possible; some keep nothing."""

    concurrent_patch: Literal["wait", "locked"] = "wait"
    """What a PATCH (or DELETE) does while another PATCH is writing the same upload: wait for it, up to
    ``lock_wait_seconds``, or fail with 423 immediately. Unknown; both are usual among TUS servers. Either way
    a body is written by one request at a time. HEAD never waits."""

    lock_wait_seconds: float = 20.0
    """How long a PATCH waits for another one before it is 423."""

    locked_code: str = "conflict"
    """Error code of that 423. Unknown: the closed enum has no code for a locked upload."""

    identify_bytes: int = 65536
    """How many bytes are read to detect the media type. Unknown, and not visible."""

    options_status: Literal[200, 204] = 204
    """Status of ``OPTIONS /v1/uploads``. Inferred: TUS allows both."""

    options_needs_key: bool = True
    """Whether ``OPTIONS /v1/uploads`` needs the API key. Inferred: documented is "every operation", but this
    page's own security section was not visible."""

    tus_extension: str = "termination,expiration"
    """Value of ``Tus-Extension``. Inferred: DELETE is termination, Upload-Expires is expiration; creation is
    a REST call and not part of TUS."""

    upload_expires_header: bool = True
    """Whether HEAD and PATCH replies carry ``Upload-Expires``. Unknown; TUS requires it on PATCH replies of
    servers that expire uploads."""

    method_override: bool = False
    """Whether ``X-HTTP-Method-Override`` on a POST to an upload is honoured. Unknown; TUS servers do."""

    # Processing and payment

    failed_error_code: str = "probe_failed"
    """``error_code`` of an asset whose media cannot be read. Unknown: the values are not documented."""

    partial_debit: bool = False
    """Whether an asset is charged although the balance does not cover its price. Inferred from the state model:
    either the debit settles or the asset is ``pending_payment``."""

    unpaid_ttl_seconds: float = 30 * 24 * 3600
    """How long an unpaid asset keeps its bytes. Documented as 30 days, after which it is purged."""

    processing_retry_after: int = 1
    """``Retry-After`` of a 409 ``asset_processing``, in seconds. The header is documented, its value is not. An
    asset in ``pending_upload`` gets the same reply: inferred, since it cannot be cut either."""

    # Cuts and renders

    queued_seconds: float = 0.0
    """How long a cut or render is ``pending``, if the progression is a duration. Unknown."""

    failed_cut_error_code: str = "cut_failed"
    """``error_code`` of a cut that cannot be made. Unknown: the values are not documented."""

    failed_render_error_code: str = "render_failed"
    """``error_code`` of a render that cannot be made. Unknown: the values are not documented."""

    repeat_after_failure: Literal["same", "new"] = "same"
    """What the same request returns after its cut or render has failed: the same one, or a new one. Unknown:
    documented is "same asset and script, same cut"."""

    unknown_filter: Literal["not_found", "empty"] = "not_found"
    """What the lists of cuts and renders return for a project or asset that is not the account's. Inferred: the
    list of assets documents 404 for a project."""

    unfinished_cut_code: str = "conflict"
    """Error code of the 409 for the export of a cut that is not completed. Inferred: ``conflict`` is a "state-machine
    violation without a finer code"; ``cut_not_proposed`` exists in the enum, but is not documented."""

    frame_rate_required_status: Literal[409, 422] = 409
    """Status of ``frame_rate_required``: a timeline in frames, of a recording without video, and no ``frame_rate`` in
    the query. Unknown; that an unknown format is 409 ``unsupported_format`` is inferred."""

    foreign_cut_status: Literal[404, 422] = 404
    """Status of a render whose ``cut_id`` is not a cut of its asset. Unknown: documented is that it must be one."""

    audio_has_video_renders: bool = False
    """Whether an audio recording can be rendered as ``mp4`` or ``mov`` (without video).
    Unknown; otherwise 409 ``unsupported_format``, "not available for the entity"."""

    picture_of_audio_output: Literal["refused", "ignored"] = "refused"
    """Whether ``resolution``, ``video_bitrate`` and ``frame_rate`` of an audio output are 422 or ignored.
    Inferred: they are documented as "video only"."""

    render_filters: Literal["honoured", "ignored"] = "honoured"
    """Whether ``asset_id``, ``project_id`` and ``state`` filter the list of renders. Unknown: the documentation says
    only that there is a list; the list of cuts has these filters."""

    render_cancel: Literal["delete", "post"] = "delete"
    """How a render is cancelled: ``DELETE /v1/renders/{id}`` or ``POST /v1/renders/{id}/cancel``. Unknown: the
    documentation says that it is possible, but not how; uploads are cancelled by DELETE."""

    cancelled_render: Literal["failed", "cancelled", "removed"] = "failed"
    """State of a cancelled render, or that it is removed. Unknown: there is an event ``render.cancelled``, but no
    such state. The same request creates a new render in any case."""

    # Webhooks

    webhook_create_status: int = 201
    """Status of ``POST /v1/webhook-endpoints``. Inferred: that of every other creation. The reply is documented, and
    has no signing secret; how a client gets it is unknown, so the emulator has one for all endpoints
    (``Emulator.webhook_secret``). ``DELETE`` has ``delete_status``, and a second one is 404."""

    webhook_list: Literal["page", "array"] = "page"
    """What ``GET /v1/webhook-endpoints`` returns: a page, as all other lists do, or a bare array. Unknown."""

    webhook_http: Literal["loopback", "refused"] = "loopback"
    """Whether an endpoint on this machine may be plain http; documented is HTTPS only. Elsewhere it never may."""

    unknown_event_type: Literal["refused", "accepted"] = "refused"
    """Whether an undocumented event type is 422, or is accepted and never sent. Unknown. An empty
    list is 422 either way: inferred, since the field is required."""

    asset_event_entity: Literal["asset", "none"] = "asset"
    """``data.entity_id`` of ``asset.*`` events: the asset's id, as ``asset_id``, or null. Inferred: in the other events
    it is the id of the resource that has entered the state."""

    webhook_timeout_seconds: float = 15.0
    """Real seconds within which a receiver has to reply. Inferred, with the retries (``store/webhooks.py``):
    the headers are Svix', and Svix documents this timeout."""

    webhook_off_after_seconds: float = 5 * 24 * 3600
    """How long all attempts at an endpoint may fail before it is disabled. Inferred from Svix, too, which counts
    from the first failure after a success."""

    # Downloads

    download_ttl_seconds: int = 900
    """How long a ``download_url`` is valid. Inferred from the documented example (``X-Amz-Expires=900``); the
    text says "within minutes"."""

    def __post_init__(self) -> None:
        """Reject a value that the field does not allow."""
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            allowed, value = hints[field.name], getattr(self, field.name)
            if get_origin(allowed) is Literal:
                if value not in get_args(allowed):
                    options = ", ".join(str(option) for option in get_args(allowed))
                    raise ValueError(f"{field.name} must be one of {options}, not {value!r}")
            elif allowed is bool:
                if not isinstance(value, bool):
                    raise ValueError(f"{field.name} must be true or false, not {value!r}")
            elif allowed is str:
                if not isinstance(value, str) or not re.fullmatch(r"[!-~]([ -~]{0,254}[!-~])?", value):
                    raise ValueError(f"{field.name} must be a short line of ASCII text, not {value!r}")
            else:
                minimum, maximum = _BOUNDS.get(field.name) or (_STATUS if field.name.endswith("_status") else (0, _MAX))
                whole = isinstance(value, int) and not isinstance(value, bool)
                if not (whole or (allowed is float and isinstance(value, float))) or not minimum <= value <= maximum:
                    number = "a number" if allowed is float else "a whole number"
                    raise ValueError(f"{field.name} must be {number} from {minimum:g} to {maximum:g}, not {value!r}")
        if self.min_upload_bytes > self.max_upload_bytes:
            raise ValueError("min_upload_bytes must not be above max_upload_bytes")

    @classmethod
    def from_text(cls, pairs: list[str], *, against: str | Path | None = None) -> Choices:
        """Read ``name=value`` pairs of the command line.

        :param pairs: For example ``["delete_status=200", "keep_partial=false"]``.
        :param against: The JSON that ``verify`` has written, whose choices apply where ``pairs`` have none.
        :raises ValueError: If a choice does not exist or has another value, or the file cannot be read.
        """
        hints = get_type_hints(cls)
        values: dict[str, Any] = {} if against is None else _recorded(against, hints)
        for pair in pairs:
            name, separator, text = pair.partition("=")
            if not separator or name not in hints:
                raise ValueError(f"unknown choice {pair!r}; known: {', '.join(sorted(hints))}")
            values[name] = _parse(name, hints[name], text)
        return cls(**values)


def _recorded(path: str | Path, hints: dict[str, Any]) -> dict[str, Any]:
    """Return the choices in the JSON that ``verify`` has written."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))["choices"]
        return {name: value for name, value in found.items() if name in hints}
    except (AttributeError, OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of `verify`: {type(error).__name__}: {error}") from None


def _parse(name: str, hint: Any, text: str) -> Any:
    kind = type(get_args(hint)[0]) if get_origin(hint) is Literal else hint
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be of type {kind.__name__}, not {text!r}") from None
