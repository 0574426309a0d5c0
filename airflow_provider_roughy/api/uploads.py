"""Uploads: TUS 1.0.0 (tus.io/protocols/resumable-upload), at the upload URL of a new asset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.api.calls import Call, Request, parse_nothing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_roughy.api.calls import Reply


TUS_HEADERS = {"Tus-Resumable": "1.0.0"}


def read_offset(upload_url: str, *, headers: Mapping[str, str] = TUS_HEADERS) -> Call[tuple[int, int | None]]:
    """Read how many bytes of an upload have arrived: ``HEAD {upload_url}``.

    :returns: The offset in bytes, and the length in bytes if the reply has it.
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
    :param offset: Their offset, in bytes from the start.
    :param length: Their number.
    :returns: The new offset of the upload, in bytes.
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
    return Call(Request("DELETE", upload_url, headers=TUS_HEADERS), parse_nothing)


def _byte_count(reply: Reply, name: str) -> int:
    value = reply.headers[name]
    count = decode.size(value)
    if count is None:
        raise ValueError(f"{name} is {value!r}")
    return count
