"""The throw-away project of a run, and the resources in it. Each is made when a check first uses it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TypeVar

from airflow_provider_roughy.api import Reply
from airflow_provider_roughy.conformance.samples import RECORDING_BYTES, recording, unreadable
from airflow_provider_roughy.conformance.session import (
    CHUNK,
    TUS,
    BreakOff,
    NotTestable,
    Session,
    Unclear,
    answer,
    body_of,
)
from airflow_provider_roughy.exceptions import RoughyError

T = TypeVar("T")

#: The start of the names of all projects, and of the descriptions of all webhook endpoints, that ``verify`` makes.
PREFIX = "airflow-provider-roughy verify"
#: A UUID that no resource has.
NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
#: Seconds until a resource must have been processed.
_PROCESSING_SECONDS = 240.0


def once(make: Callable[..., T]) -> Callable[..., T]:
    """Make a resource on its first use, and remember it, or why it could not be made."""

    @wraps(make)
    def made(self: Workspace, *args: Any) -> T:
        key = (make.__module__, make.__qualname__, *args)
        if key not in self._made:
            try:
                self._made[key] = make(self, *args), None
            except (NotTestable, Unclear) as error:
                self._made[key] = None, error
        value, problem = self._made[key]
        if problem is not None:
            raise problem
        return value  # type: ignore[no-any-return]

    return made


class Workspace:
    """The project of a run.

    :param session: Sends the requests.
    :param max_credits: The credits that may be spent.
    :param public_url: Where webhooks arrive; ``None`` for no webhooks.
    """

    def __init__(self, session: Session, *, max_credits: int, public_url: str | None = None) -> None:
        self.session = session
        self.max_credits = max_credits
        self.public_url = public_url
        self.name = f"{PREFIX} {datetime.now(UTC):%Y%m%dT%H%M%SZ} {secrets.token_hex(4)}"
        self.projects: list[str] = []
        self.endpoints: list[str] = []
        #: The events that arrived at :attr:`public_url`: headers by lower-case name, and the body.
        self.events: list[tuple[dict[str, str], bytes]] = []
        #: The assets that were charged, or may still be.
        self.spent: set[str] = set()
        self._balance = 0
        self._made: dict[Any, tuple[Any, Exception | None]] = {}

    # ---- Projects

    def make_project(self, name: str | None = None) -> Reply:
        """Create a project, which is removed at the end."""
        reply = self.session.send("POST", "/v1/projects", json={"name": name or self.name})
        if (made := body_of(reply)) and isinstance(made, dict) and isinstance(made.get("id"), str):
            self.projects.append(made["id"])
        return reply

    @once
    def project(self) -> tuple[Reply, dict[str, Any]]:
        """Return the reply to the creation of the project of the run, and the project."""
        reply = self.make_project()
        return reply, _object(reply, "The project could not be created")

    @property
    def project_id(self) -> str:
        """The project of the run."""
        return str(self.project()[1]["id"])

    # ---- Assets before processing

    def make_asset(self, size: int, **fields: Any) -> tuple[Reply, dict[str, Any]]:
        """Create an asset, and return the reply and the asset."""
        reply = self.session.send(
            "POST", "/v1/assets", json={"project_id": self.project_id, "size_bytes": size, **fields}
        )
        if reply.status == 402:
            raise NotTestable("the account has no credits, which Roughy needs to create an asset")
        made = _object(reply, "The asset could not be created")
        if not isinstance(made.get("upload_url"), str):
            made["upload_url"] = reply.headers.get("location")
        if not isinstance(made["upload_url"], str):
            raise NotTestable("the new asset has no upload URL")
        return reply, made

    @once
    def asset(self) -> tuple[Reply, dict[str, Any]]:
        """Return an asset that never gets a byte."""
        return self.make_asset(RECORDING_BYTES, language="DE")

    @once
    def detail(self) -> Reply:
        """Return the reply to ``GET`` of that asset."""
        return self.get(self.asset()[1])

    def get(self, asset: dict[str, Any]) -> Reply:
        """Read an asset."""
        return self.session.send("GET", f"/v1/assets/{asset['id']}")

    def head(self, asset: dict[str, Any]) -> Reply:
        """Read the offset of an asset's upload."""
        return self.session.send("HEAD", asset["upload_url"], headers=TUS)

    def patch(self, asset: dict[str, Any], offset: int, content: bytes, **headers: str) -> Reply:
        """Send bytes of an asset's upload, once: what became of a request without a reply is not known."""
        fields = {**CHUNK, "Upload-Offset": str(offset), **headers}
        return self.session.send("PATCH", asset["upload_url"], headers=fields, content=content, again=False)

    def offset(self, asset: dict[str, Any]) -> int | None:
        """Return the offset of an asset's upload; ``None`` if it has none."""
        text = self.head(asset).headers.get("upload-offset", "")
        return int(text) if text.isdecimal() and len(text) < 19 else None

    @once
    def first_chunk(self) -> tuple[Reply, dict[str, Any]]:
        """Return the reply to a first chunk of 100 bytes, and its asset."""
        _, asset = self.make_asset(RECORDING_BYTES)
        return self.patch(asset, 0, recording()[:100]), asset

    @once
    def broken(self) -> tuple[int, int, dict[str, Any]]:
        """Break a request off; return how many bytes were sent, how many are kept, and the asset."""
        _, asset = self.make_asset(RECORDING_BYTES)
        sent = 4000
        self._break(asset, recording()[:sent])
        kept = 0
        for attempt in range(4):
            self.session.pause(0.1 if self.session.is_local else 1.0)
            kept = self.offset(asset) or 0
            if kept and attempt:
                break
        return sent, kept, asset

    def _break(self, asset: dict[str, Any], start: bytes) -> None:
        def content() -> Iterator[bytes]:
            yield start
            self.session.pause(0.1 if self.session.is_local else 1.0)
            raise BreakOff

        fields = {**CHUNK, "Upload-Offset": "0", "Content-Length": str(RECORDING_BYTES)}
        try:
            self.session.send("PATCH", asset["upload_url"], headers=fields, content=content(), again=False)
        except (BreakOff, Unclear):
            return

    @once
    def contested(self) -> tuple[Reply | None, Reply, bool]:
        """Send two requests for one upload at the same time.

        :returns: The reply to ``HEAD`` meanwhile, the reply to the second request, and whether it waited.
        """
        _, asset = self.make_asset(RECORDING_BYTES)
        release, started = threading.Event(), threading.Event()
        slow = 0.3 if self.session.is_local else 2.0

        def content() -> Iterator[bytes]:
            yield recording()[:100]
            started.set()
            release.wait(30)
            raise BreakOff

        def first() -> None:
            from airflow_provider_roughy.api import Request

            fields = {**CHUNK, "Upload-Offset": "0", "Content-Length": str(RECORDING_BYTES)}
            try:
                self.session.client.send(Request("PATCH", asset["upload_url"], headers=fields, content=content()))
            except (BreakOff, RoughyError):
                pass
            finally:
                started.set()

        found: list[Reply | Exception] = []

        def second() -> None:
            try:
                found.append(self.patch(asset, 0, recording()[:200]))
            except Exception as error:
                found.append(error)

        threads = [threading.Thread(target=first, daemon=True), threading.Thread(target=second, daemon=True)]
        head: Reply | None = None
        try:
            self.session.wait_for_turn()
            threads[0].start()
            started.wait(30)
            self.session.pause(slow)
            try:
                head = self.session.send("HEAD", asset["upload_url"], headers=TUS, again=False, within=10 * slow)
            except Unclear:
                head = None
            threads[1].start()
            threads[1].join(2 * slow)
            waited = threads[1].is_alive()
        finally:
            release.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(30)
        if not found or isinstance(found[0], Exception):
            raise Unclear(f"two requests at the same time: {found[0] if found else 'no reply'}")
        return head, found[0], waited

    @once
    def text(self) -> tuple[Reply, dict[str, Any]]:
        """Return the reply to a first chunk of text, and its asset. Its size is larger, so it is never complete."""
        _, asset = self.make_asset(4096)
        text = b"This is a text of sixty-four bytes, and neither audio nor video." * 32
        reply = self.patch(asset, 0, text[:64])
        if reply.status >= 400 and self.head(asset).status < 300:
            # Rejected as too short, and not as text.
            reply = self.patch(asset, 0, text)
        return reply, asset

    @once
    def cancelled(self) -> tuple[Reply, Reply, Reply]:
        """Cancel an upload twice; return the replies, and the one to ``GET`` of the asset afterwards."""
        _, asset = self.make_asset(RECORDING_BYTES)
        first, again = (self.session.send("DELETE", asset["upload_url"], headers=TUS, again=False) for _ in range(2))
        return first, again, self.get(asset)

    @once
    def deleted(self) -> tuple[Reply, Reply, Reply]:
        """Delete an asset twice; return the replies, and the one to ``HEAD`` of its upload afterwards."""
        _, asset = self.make_asset(RECORDING_BYTES)
        first, again = (self.session.send("DELETE", f"/v1/assets/{asset['id']}", again=False) for _ in range(2))
        return first, again, self.head(asset)

    # ---- Assets after processing

    @once
    def finished(self) -> tuple[Reply, dict[str, Any]]:
        """Upload a file that cannot be read; return the reply to its last chunk, and the asset."""
        self.reserve(1)
        content = unreadable()
        _, asset = self.make_asset(len(content))
        self.spent.add(asset["id"])
        reply = self.patch(asset, 0, content)
        if not 200 <= reply.status < 300:
            if 400 <= reply.status < 500:
                self.spent.discard(asset["id"])
            raise NotTestable(f"an MP4 without content was not accepted: {answer(reply)}")
        return reply, asset

    @once
    def failed(self) -> tuple[Reply, dict[str, Any]]:
        """Return that asset once it has been processed."""
        found = self.wait("asset", f"/v1/assets/{self.finished()[1]['id']}", ("processing", "pending_upload"))
        # The history may be too long to find an entry in it; the balance shows any debit, but also those of others.
        if found[1].get("state") == "failed" and not self.entries(found[1]["id"]) and self.balance() >= self._balance:
            self.spent.discard(found[1]["id"])
        return found

    @once
    def ready(self) -> tuple[Reply, dict[str, Any]]:
        """Upload the recording of a second, and return it once it has been processed."""
        if self.spent:
            with suppress(NotTestable, Unclear):
                self.failed()
        # Now that it is known whether the unreadable file was charged.
        self.reserve(1)
        _, asset = self.make_asset(RECORDING_BYTES)
        self.spent.add(asset["id"])
        offset = 0
        for _ in range(4):
            try:
                reply = self.patch(asset, offset, recording()[offset:])
            except Unclear:
                reply = None
            if reply is not None and reply.status < 300:
                break
            now = body_of(self.get(asset))
            if isinstance(now, dict) and now.get("state") != "pending_upload":
                break
            offset = self.offset(asset) or 0
        found = self.wait("asset", f"/v1/assets/{asset['id']}", ("processing", "pending_upload"))
        if found[1].get("state") != "ready":
            raise NotTestable(f"the recording of a second is {found[1].get('state')}, and not ready")
        return found

    def reserve(self, credits: int) -> None:
        """Make certain that so many credits may be spent.

        :raises NotTestable: Otherwise.
        """
        if self.max_credits < credits:
            raise NotTestable("it needs --max-credits 1")
        if len(self.spent) + credits > self.max_credits:
            raise NotTestable("the credits that were allowed are spent, by a file that should have cost nothing")
        self._balance = self.balance()
        if self._balance < credits:
            raise NotTestable("the account has no credits")

    def balance(self) -> int:
        """Read the balance.

        :raises NotTestable: If the reply has none.
        """
        found = body_of(self.session.send("GET", "/v1/credits/balance"))
        balance = found.get("balance") if isinstance(found, dict) else None
        if not isinstance(balance, int):
            raise NotTestable("the balance cannot be read")
        return balance

    def entries(self, asset_id: str) -> list[dict[str, Any]]:
        """Return the entries of the credit history about an asset, of the newest hundred."""
        page = body_of(self.session.send("GET", "/v1/credits/history", params={"limit": 100}))
        items = page.get("items") if isinstance(page, dict) else page
        entries = [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []
        return [each for each in entries if each.get("asset_id") == asset_id]

    def wait(self, kind: str, path: str, unfinished: tuple[str, ...]) -> tuple[Reply, dict[str, Any]]:
        """Poll a resource until it leaves its unfinished states; note the states that were seen.

        :param kind: ``asset``, ``cut`` or ``render``.
        """
        end, pause = self.session.clock() + _PROCESSING_SECONDS, 0.05 if self.session.is_local else 2.0
        while True:
            reply = self.session.send("GET", path)
            found = _object(reply, f"The {kind} could not be read")
            self.session.notes.saw_state(kind, found.get("state"))
            if found.get("state") not in unfinished:
                return reply, found
            if self.session.clock() >= end:
                raise Unclear(f"the {kind} was still {found.get('state')} after {_PROCESSING_SECONDS:.0f} s")
            self.session.pause(pause)

    # ---- Cuts and renders

    @once
    def cut(self, script: str) -> tuple[Reply, dict[str, Any], Reply]:
        """Cut the recording; return the reply, the cut, and the reply to its export right after."""
        reply = self.session.send("POST", "/v1/cuts", json={"asset_id": self.ready()[1]["id"], "script": script})
        made = _object(reply, "The recording could not be cut")
        self.session.notes.saw_state("cut", made.get("state"))
        early = self.export(made, "/export", format="fcpxml", frame_rate="25")
        return reply, made, early

    @once
    def completed_cut(self) -> tuple[Reply, dict[str, Any]]:
        """Return a cut once it is completed."""
        found = self.wait("cut", f"/v1/cuts/{self.cut('one')[1]['id']}", ("pending", "processing"))
        if found[1].get("state") != "completed":
            raise NotTestable(f"the cut is {found[1].get('state')}, and not completed")
        return found

    def export(self, cut: dict[str, Any], path: str, **params: str) -> Reply:
        """Export a cut."""
        return self.session.send("GET", f"/v1/cuts/{cut['id']}{path}", params=params, headers={"Accept": "*/*"})

    def render(self, output: dict[str, Any], **fields: Any) -> Reply:
        """Render the recording."""
        body = {"asset_id": self.ready()[1]["id"], "output": output, **fields}
        return self.session.send("POST", "/v1/renders", json=body)

    @once
    def rendered(self) -> tuple[Reply, dict[str, Any]]:
        """Return the reply to the creation of a render of audio, and the render."""
        reply = self.render({"format": "mp3", "audio_bitrate": 128})
        made = _object(reply, "The recording could not be rendered")
        self.session.notes.saw_state("render", made.get("state"))
        return reply, made

    @once
    def completed_render(self) -> tuple[Reply, dict[str, Any]]:
        """Return that render once it is completed."""
        found = self.wait("render", f"/v1/renders/{self.rendered()[1]['id']}", ("pending", "processing"))
        if found[1].get("state") != "completed":
            raise NotTestable(f"the render is {found[1].get('state')}, and not completed")
        return found

    @once
    def cancelled_render(self) -> tuple[str, Reply, Reply]:
        """Cancel a render; return the method, the reply, and the reply to ``GET`` of the render afterwards."""
        made = _object(self.render({"format": "m4a", "audio_bitrate": 192}), "The recording could not be rendered")
        path = f"/v1/renders/{made['id']}"
        method, reply = "delete", self.session.send("DELETE", path, again=False)
        if reply.status in (404, 405, 501):
            method, reply = "post", self.session.send("POST", f"{path}/cancel", again=False)
        return method, reply, self.session.send("GET", path)


def _object(reply: Reply, problem: str) -> dict[str, Any]:
    """Return the resource of a reply.

    :raises NotTestable: If it has none.
    """
    body = body_of(reply)
    if not 200 <= reply.status < 300 or not isinstance(body, dict) or not isinstance(body.get("id"), str):
        raise NotTestable(f"{problem}: {answer(reply)}")
    return body
