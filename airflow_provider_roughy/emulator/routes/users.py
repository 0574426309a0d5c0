"""``/v1/users``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import Store, well_known_id
from airflow_provider_roughy.emulator.wire import timestamp

from .endpoint import Endpoint


class Users:
    """``/v1/users``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        return [
            Endpoint("/v1/users/me", {"GET": self.me}),
        ]

    async def me(self, request: Request, account: int) -> Response:
        """Read the profile of the key's account."""
        since = timestamp(self._store.opened_at(account))
        return JSONResponse(
            {
                "id": well_known_id(account, user=True),
                "email": f"user{account}@emulator.invalid",
                "name": f"Emulator User {account}",
                "email_verified_at": since,
                "deleted_at": None,
                "created_at": since,
            }
        )
