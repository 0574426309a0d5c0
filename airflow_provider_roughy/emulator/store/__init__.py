"""The emulator's state: rows in SQLite, and media as files beside the database.

There is one module for each resource, in layers. ``database``, ``clock``, ``files``, ``background`` and ``history``
know no resource. ``projects``, ``credits`` and ``uploads`` build on them, ``assets`` on those; ``cuts`` and
``renders``, derived from assets, build on ``assets``. ``webhooks`` is notified of all of them. The HTTP routes and the
Python API share one :class:`Store`, from any thread. The store has no timer: before each read, :meth:`Store.sweep`
applies every change that is due by then. While there are webhook endpoints, ``delivery.py`` calls it continually, since
webhooks are sent without a request.

Killing the process at any moment loses nothing that was acknowledged: a change is one SQLite transaction, and the
offset of an upload is the size of its file. There is no ``fsync``: the store does not survive a power cut.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from airflow_provider_roughy.emulator.choices import Choices

from .assets import Asset, Assets
from .clock import Clock, Progression
from .credits import Credits, LedgerEntry
from .cuts import Cut, Cuts
from .database import Database, UnknownId
from .files import Files
from .history import History
from .jobs import Job, Jobs
from .projects import Project, Projects, well_known_id
from .renders import Render, Renders
from .uploads import Upload, Uploads
from .webhooks import Delivery, WebhookEndpoint, Webhooks

__all__ = [
    "Asset",
    "Cut",
    "Delivery",
    "Job",
    "Jobs",
    "LedgerEntry",
    "Progression",
    "Project",
    "Render",
    "Store",
    "UnknownId",
    "Upload",
    "WebhookEndpoint",
    "well_known_id",
]

#: How long :meth:`Store.refresh` waits for work on media whose result is due.
WORK_WAIT_SECONDS = 20.0

#: The tables that :meth:`Store.reset` empties.
_TABLES = (
    "projects",
    "assets",
    "states",
    "uploads",
    "ledger",
    "balances",
    "cuts",
    "renders",
    "webhook_endpoints",
    "deliveries",
)


class Store:
    """All state of one emulator.

    :param folder: Where the state is stored; created if need be, and resumed if it was used before.
    :param accounts: Number of accounts (API keys).
    :param balance: Credits each account starts with.
    :param progression: See :class:`Progression`.
    :param choices: The behaviour where Roughy's documentation is silent.
    """

    def __init__(self, folder: Path, *, accounts: int, balance: int, progression: str, choices: Choices) -> None:
        self.choices = choices
        self._accounts = accounts
        self._start_balance = balance
        self.files = Files(folder / "bytes")
        self._database = Database(folder / "roughy.sqlite")
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._database.close)
            self.clock = Clock(self._database, progression)
            self.history = History(self._database)
            self.projects = Projects(self._database, self.clock)
            self.credits = Credits(self._database, self.clock)
            self.uploads = Uploads(self._database, self.clock, self.files, choices)
            below = (self._database, self.clock, self.files, self.history)
            self.assets = Assets(*below, self.projects, self.credits, self.uploads, choices)
            self.cuts = Cuts(*below, self.assets, choices)
            self.renders = Renders(*below, self.assets, choices, cuts=self.cuts)
            #: The resources that Roughy processes.
            self.collections: tuple[Assets | Jobs[Any], ...] = (self.assets, self.cuts, self.renders)
            kinds: dict[str, Assets | Jobs[Any]] = {"asset": self.assets, "cut": self.cuts, "render": self.renders}
            self.webhooks = Webhooks(self._database, self.clock, self.history, choices, kinds)
            self._open()
            on_error.pop_all()

    def _open(self) -> None:
        with self._database.change():
            self.clock.restart()
            self.secret = bytes.fromhex(self._database.meta("secret", secrets.token_hex(32)))
            for account in range(1, self._accounts + 1):
                self._open_account(account)
            for collection in self.collections:
                collection.resume()

    def _open_account(self, account: int) -> None:
        """Give a new account its first project and credits; change nothing of an account that exists."""
        if self.opened_at(account):
            return
        self._database.set_meta(f"account_{account}", str(self.clock.now()))
        name = "Emulator" if account == 1 else f"Emulator {account}"
        self.projects.create(account, name, well_known_id(account))
        if self._start_balance:
            self.credits.grant(account, self._start_balance)

    def opened_at(self, account: int) -> int:
        """Return when an account was created; 0 if it does not exist."""
        return int(self._database.meta(f"account_{account}", "") or 0)

    @property
    def webhook_secret(self) -> str:
        """The signing secret of webhooks, unless another one is given: constant for each folder."""
        return "whsec_" + base64.b64encode(hashlib.sha256(b"webhooks" + self.secret).digest()).decode()

    def close(self) -> None:
        """Stop all work and close the database."""
        for collection in self.collections:
            collection.close()
        self._database.close()

    def reset(self, *, progression: str) -> None:
        """Empty everything but the first project of each account, and set balance and clock as at the start."""
        with self._database.change():
            for table in _TABLES:
                self._database.execute(f"DELETE FROM {table}")
            self._database.execute("DELETE FROM meta WHERE name != 'secret'")
            for collection in self.collections:
                collection.clear()
            self.files.clear()
            self.clock.progression = Progression.parse(progression)
            self._open()

    # Time

    def refresh(self) -> None:
        """Apply every change that is due by now. Wait a while for work on media whose result is due."""
        # Collected before the sweep, which settles work that ends in between.
        work = [future for collection in self.collections for future in collection.due_work()]
        self.sweep()
        if work:
            wait(work, timeout=WORK_WAIT_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Move every resource to the state that is due by now."""
        with self._database.change():
            for collection in self.collections:
                collection.sweep()

    def advance(self, seconds: float) -> None:
        """Move emulator time on, and apply what is due by then.

        :param seconds: How far; a negative number moves it back.
        """
        self.clock.advance(seconds)
        self.refresh()

    # Changes of several resources

    def delete_project(self, account: int, project_id: str) -> None:
        """Remove a project with all its assets and their bytes, at once and for good (project page)."""
        with self._database.change():
            self.projects.get(account, project_id)
            self.assets.delete_of_project(project_id)
            self.projects.remove(project_id)

    def top_up(self, credits: int, account: int = 1) -> None:
        """Add credits as a paid top-up, and activate unpaid assets."""
        if credits <= 0:
            raise ValueError("a top-up must be positive")
        self.sweep()
        with self._database.change():
            self.credits.top_up(account, credits)
            self.assets.activate(account)

    def settle(self, resource_id: str | None = None) -> list[str]:
        """Finish Roughy's work now, whatever the progression.

        :param resource_id: The asset, cut or render; ``None`` for all.
        :returns: The ids that were being processed.
        :raises UnknownId: If there is no resource of that id.
        """
        chosen = self.collections if resource_id is None else (self.collection_of(resource_id),)
        with self._database.change():
            released = [each for collection in chosen for each in collection.release(resource_id)]
        self.refresh()
        return released

    def collection_of(self, resource_id: str) -> Assets | Jobs[Any]:
        """Return the collection that an asset, cut or render belongs to.

        :raises UnknownId: If there is no resource of that id.
        """
        for collection in self.collections:
            if collection.find(resource_id) is not None:
                return collection
        raise UnknownId(resource_id)
