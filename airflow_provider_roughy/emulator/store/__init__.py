"""The truth: what there is, in SQLite; the media as files beside it.

A room a resource, one above the other: ``database``, ``clock``, ``files``, ``background`` and ``history`` know no
resource; ``projects``, ``credits`` and ``uploads`` stand on them, ``assets`` on those, and what is derived from
assets above; ``webhooks`` hear of all of them. Both the HTTP routes and the Python API use the one :class:`Store`, from
any thread. Nothing here runs on a timer: what time has brought about is worked out by :meth:`Store.sweep` before each
look. As long as there are webhook endpoints, ``delivery.py`` looks all the time: they are told without asking.

Killing the process at any moment loses nothing that was replied to: a change is one SQLite transaction, and the
offset of an upload is the size of its file. (No ``fsync``: a power cut is not what this is for.)
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

#: How long a look at something that is due waits for the work on its media.
WORK_WAIT_SECONDS = 20.0

#: All that :meth:`Store.reset` empties.
_TABLES = ("projects", "assets", "states", "uploads", "ledger", "cuts", "renders", "webhook_endpoints", "deliveries")


class Store:
    """All state of one emulator.

    :param folder: where it lives; made if need be, and taken up again if it was used before.
    :param accounts: number of accounts (API keys).
    :param balance: credits each account starts with.
    :param progression: see :class:`Progression`.
    :param choices: answers where the documentation is silent.
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
            #: Everything that Roughy works on.
            self.worked_on: tuple[Assets | Jobs[Any], ...] = (self.assets, self.cuts, self.renders)
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
            for each in self.worked_on:
                each.take_up()

    def _open_account(self, account: int) -> None:
        """Give a new account its first project and credits; an account that is known keeps what it has."""
        if self.opened_at(account):
            return
        self._database.set_meta(f"account_{account}", str(self.clock.now()))
        name = "Emulator" if account == 1 else f"Emulator {account}"
        self.projects.create(account, name, well_known_id(account))
        if self._start_balance:
            self.credits.grant(account, self._start_balance)

    def opened_at(self, account: int) -> int:
        """Return when an account was made; 0 if it was not."""
        return int(self._database.meta(f"account_{account}", "") or 0)

    @property
    def webhook_secret(self) -> str:
        """The signing secret of webhooks, unless another one is given: the same as long as the folder is."""
        return "whsec_" + base64.b64encode(hashlib.sha256(b"webhooks" + self.secret).digest()).decode()

    def close(self) -> None:
        """Stop all work and close the database."""
        for each in self.worked_on:
            each.close()
        self._database.close()

    def reset(self, *, progression: str) -> None:
        """Empty everything but the first project of each account, and set balance and clock as at the start."""
        with self._database.change():
            for table in _TABLES:
                self._database.execute(f"DELETE FROM {table}")
            self._database.execute("DELETE FROM meta WHERE name != 'secret'")
            for each in self.worked_on:
                each.clear()
            self.files.clear()
            self.clock.progression = Progression.parse(progression)
            self._open()

    # Time

    def look(self) -> None:
        """Bring everything up to now; waits a while for work on media whose result is due."""
        # Before the sweep, which then settles work that ends in between.
        work = [future for each in self.worked_on for future in each.due_work()]
        self.sweep()
        if work:
            wait(work, timeout=WORK_WAIT_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Let time pass: everything gets into the state that it has by now."""
        with self._database.change():
            for each in self.worked_on:
                each.sweep()

    def advance(self, seconds: float) -> None:
        """Move emulator time on, and let happen what is due by then.

        :param seconds: how far; negative moves it back.
        """
        self.clock.advance(seconds)
        self.look()

    # What concerns several resources

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
        """Let Roughy's work finish now, whatever the progression.

        :param resource_id: the asset, cut or render it is about, or ``None`` for all.
        :returns: the ids that were being worked on.
        :raises UnknownId: when there is nothing of that id.
        """
        rooms = self.worked_on if resource_id is None else (self.room_of(resource_id),)
        with self._database.change():
            released = [each for room in rooms for each in room.release(resource_id)]
        self.look()
        return released

    def room_of(self, resource_id: str) -> Assets | Jobs[Any]:
        """Return who has an asset, cut or render.

        :raises UnknownId: when nobody has.
        """
        for each in self.worked_on:
            if each.find(resource_id) is not None:
                return each
        raise UnknownId(resource_id)
