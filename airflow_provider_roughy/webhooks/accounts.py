"""The connections whose webhooks the receiver accepts."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_roughy.compat import AirflowNotFoundException, conf
from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyError, RoughyMissingConnectionError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.webhooks.messages import signing_secrets

if TYPE_CHECKING:
    from airflow_provider_roughy.settings import Settings
    from airflow_provider_roughy.webhooks.throttle import LogThrottle

#: Seconds for which the connections are cached, and for which an error of reading them is.
_CACHE_SECONDS, _ERROR_CACHE_SECONDS = 30.0, 5.0


@dataclass(frozen=True)
class Account:
    """An account at Roughy whose webhooks are accepted.

    :param conn_id: The Airflow connection.
    :param settings: The settings of the connection.
    :param hook: A hook for the connection.
    """

    conn_id: str
    settings: Settings
    hook: RoughyHook

    @property
    def secrets(self) -> str:
        """The secrets that may sign its webhooks."""
        return self.settings.webhook_secret or ""


def webhook_conn_ids() -> list[str]:
    """Return the ids of the connections in ``[roughy] webhook_conn_ids``."""
    named = conf.get("roughy", "webhook_conn_ids", fallback=RoughyHook.default_conn_name)
    return [conn_id for each in named.split(",") if (conn_id := each.strip())]


class Accounts:
    """Reads the accounts from Airflow's connections at a request, at most every 30 seconds.

    :param log: Logs connections that cannot be used.
    """

    def __init__(self, log: LogThrottle) -> None:
        self._log = log
        self._known: tuple[Account, ...] = ()
        self._error: RoughyError | None = None
        self._expires_at = float("-inf")
        self._lock = asyncio.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="roughy-webhooks-read")

    async def current(self) -> tuple[Account, ...]:
        """Return the accounts; none if no connection accepts webhooks.

        :raises RoughyError: If a connection cannot be read now, so that the signer of a request cannot be determined.
        """
        async with self._lock:
            if time.monotonic() >= self._expires_at:
                read = asyncio.get_running_loop().run_in_executor(self._reader, self._read)
                try:
                    self._known, self._error = await read, None
                except RoughyError as error:
                    self._error = error
                seconds = _ERROR_CACHE_SECONDS if self._error else _CACHE_SECONDS
                self._expires_at = time.monotonic() + seconds
        if self._error is not None:
            raise self._error
        return self._known

    def asset_names(self) -> set[str]:
        """Return the names of the Airflow assets that get events from webhooks. Blocks; call it in a thread.

        :raises RoughyError: If a connection cannot be read now.
        """
        names = set()
        for conn_id in webhook_conn_ids():
            # Requests log what is wrong with a connection.
            with suppress(RoughyConfigurationError, RoughyMissingConnectionError):
                settings = RoughyHook(conn_id).settings
                if signing_secrets(settings.webhook_secret or ""):
                    names.add(settings.webhook_asset)
        return names

    def close(self) -> None:
        """End the thread, and close the network connections of all accounts."""
        self._reader.shutdown()
        for account in self._known:
            account.hook.close()

    def _read(self) -> tuple[Account, ...]:
        before = {account.conn_id: account for account in self._known}
        found = []
        for conn_id in webhook_conn_ids():
            account = self._account(conn_id, before)
            if account is not None:
                found.append(account)
        for account in before.values():
            if account not in found:
                account.hook.close()
        return tuple(found)

    def _account(self, conn_id: str, before: dict[str, Account]) -> Account | None:
        hook = RoughyHook(conn_id)
        try:
            settings = hook.settings
            if not signing_secrets(settings.webhook_secret or ""):
                return None
        except RoughyMissingConnectionError as error:
            if not isinstance(error.__cause__, AirflowNotFoundException):
                raise
            # Airflow raises the same if its secrets backends do not answer; Roughy delivers again in both cases.
            if conn_id in before:
                self._log(conn_id, logging.WARNING, "Stopped accepting webhooks of connection %r: %s", conn_id, error)
            return None
        except RoughyConfigurationError as error:
            self._log(conn_id, logging.WARNING, "Accepting no webhooks of connection %r: %s", conn_id, error)
            return None
        known = before.get(conn_id)
        if known is not None and known.settings == settings:
            return known
        # Create the client here, once, and not in several threads that need it.
        hook.get_conn()
        return Account(conn_id, settings, hook)
