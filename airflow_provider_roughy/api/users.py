"""Users: the profile of the key's owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.api.calls import Call, Request, Resource, parse_as


@dataclass(frozen=True)
class RoughyUser(Resource):
    """A user, with the API's own field names (API page "Get your profile").

    :param deleted_at: When the account was deleted; it can be restored for 30 days.
    """

    email: str
    name: str | None
    created_at: str
    email_verified_at: str | None = None
    deleted_at: str | None = None

    _decoders: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"id": decode.text}


def get_profile() -> Call[RoughyUser]:
    """Read the profile of the key's owner: ``GET /v1/users/me``."""
    return Call(Request("GET", "/v1/users/me"), parse_as(RoughyUser))
