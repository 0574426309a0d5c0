"""One fact of Roughy's API, and the pages that document the API."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_roughy.emulator.choices import Choices

#: ``documented``: a public page says it. ``inferred``: it follows from pages, from TUS or from an older API.
#: ``unknown``: no page says it.
Mark = Literal["documented", "inferred", "unknown"]
#: What a check needs: nothing that can cost anything; a finished upload, which costs nothing if it is unreadable; a
#: recording that is processed and paid for; a URL that receives webhooks.
Needs = Literal["free", "finished", "paid", "webhook"]

DOCUMENTED: Mark = "documented"
INFERRED: Mark = "inferred"
UNKNOWN: Mark = "unknown"

_DOCS = "https://docs.roughy.ai/"
#: The pages, by the name that the tables use.
PAGES: dict[str, str] = {
    "list-assets": f"{_DOCS}api-reference/assets/list-assets",
    "get-asset": f"{_DOCS}api-reference/assets/get-an-asset",
    "create-asset": f"{_DOCS}api-reference/assets/create-an-asset",
    "delete-asset": f"{_DOCS}api-reference/assets/delete-an-asset",
    "upload-chunk": f"{_DOCS}api-reference/uploads/upload-a-chunk",
    "cancel-upload": f"{_DOCS}api-reference/uploads/cancel-an-upload",
    "tus-capabilities": f"{_DOCS}api-reference/uploads/tus-protocol-capabilities",
    "upload-guide": f"{_DOCS}guides/upload-asset",
    "quickstart": f"{_DOCS}quickstart",
    "asset": f"{_DOCS}concepts/asset",
    "project": f"{_DOCS}concepts/project",
    "cut": f"{_DOCS}concepts/cut",
    "render": f"{_DOCS}concepts/render",
    "webhooks": f"{_DOCS}concepts/webhooks",
    "errors": f"{_DOCS}concepts/errors",
    "credit-ledger": f"{_DOCS}concepts/credit-ledger",
    "create-project": f"{_DOCS}api-reference/projects/create-a-project",
    "list-projects": f"{_DOCS}api-reference/projects/list-projects",
    "update-project": f"{_DOCS}api-reference/projects/update-a-project",
    "cut-asset": f"{_DOCS}api-reference/cuts/cut-an-asset",
    "list-cuts": f"{_DOCS}api-reference/cuts/list-cuts",
    "get-cut": f"{_DOCS}api-reference/cuts/get-a-cut",
    "export-subtitle": f"{_DOCS}api-reference/cuts/export-a-cuts-subtitle-as-srt-or-vtt",
    "render-asset": f"{_DOCS}api-reference/renders/render-an-asset",
    "read-render": f"{_DOCS}api-reference/renders/read-a-render",
    "create-endpoint": f"{_DOCS}api-reference/webhooks/create-a-webhook-endpoint",
    "balance": f"{_DOCS}api-reference/credits/read-the-current-credit-balance",
    "history": f"{_DOCS}api-reference/credits/list-ledger-entries",
    "profile": f"{_DOCS}api-reference/users/get-your-profile",
    "tus": "https://tus.io/protocols/resumable-upload",
    "svix": "https://docs.svix.com/receiving/introduction",
    "": "",
}


@dataclass(frozen=True)
class Fact:
    """One fact.

    :param id: Its name: the resource and the fact.
    :param mark: How reliably it is known.
    :param page: The page that documents it, or from which it is inferred; a key of :data:`PAGES`.
    :param text: The fact as a sentence.
    :param expected: What its check observes if it holds; of a choice, the value of the emulator's option.
    :param choice: The emulator's option, if it is one.
    :param promise: What this package builds on it; empty if nothing.
    :param unchecked: Why no check exists; empty if one does.
    :param needs: What its check needs.
    """

    id: str
    mark: Mark
    page: str
    text: str
    expected: str = ""
    choice: str | None = None
    promise: str = ""
    unchecked: str = ""
    needs: Needs = "free"

    @property
    def url(self) -> str:
        """The address of its page."""
        return PAGES[self.page]


def fact(id: str, mark: Mark, page: str, text: str, expected: str = "", **more: Any) -> Fact:
    """Return a fact that is no choice of the emulator."""
    return Fact(id, mark, page, text, expected, **more)


def choice(name: str, id: str, mark: Mark, page: str, text: str, **more: Any) -> Fact:
    """Return a fact that is an option of the emulator.

    :param name: The option.
    """
    return Fact(id, mark, page, text, shown(DEFAULTS[name]), choice=name, **more)


def shown(value: object) -> str:
    """Return a value of an option as the emulator's command line takes it."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


#: The emulator's options, and their defaults.
DEFAULTS: dict[str, Any] = dataclasses.asdict(Choices())
