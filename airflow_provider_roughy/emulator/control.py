"""Control of the emulator over HTTP, below ``/_emulator/``: the functions of the Python API."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .faults import Fault
from .gate import CONTROL
from .routes.endpoint import require_json
from .steering import Steering
from .store import UnknownId
from .wire import ApiError, Reader, as_number, as_text, parse_object

#: Gets the fields of the body, and the id in the path as ``id``; returns the content of the reply.
Action = Callable[[dict[str, Any]], Any]

#: Beyond the range by which the clock can be moved, in both directions.
_SECONDS = as_number(-1e12, 1e12)
_WORD = as_text(1, 256)


class Control:
    """The control routes of one emulator. Every action runs in a thread, since it may wait for work on media.

    :param steering: The emulator to control.
    """

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._table: list[tuple[str, str, str, Action]] = [
            ("GET", "/", "list these requests", self._index),
            ("GET", "/state", "show settings, clock, balance and faults", lambda _: steering.state),
            *self._about("asset", lambda: steering.assets, steering.asset, steering.seed_asset),
            *self._about("cut", lambda: steering.cuts, steering.cut, steering.seed_cut),
            *self._about("render", lambda: steering.renders, steering.render, steering.seed_render),
            ("GET", "/requests", "show the log of requests, the oldest first", self._requests),
            ("DELETE", "/requests", "empty the log of requests", lambda _: steering.clear_requests()),
            ("GET", "/faults", "show the faults that are set", lambda _: steering.state["faults"]),
            ("POST", "/faults", "inject a fault: the fields of Fault", self._inject),
            ("DELETE", "/faults", "remove all faults", lambda _: steering.clear_faults()),
            (
                "POST",
                "/clock",
                "{advance: seconds}: move the clock",
                lambda v: steering.advance(_take(v, "advance", _SECONDS)),
            ),
            (
                "PUT",
                "/progression",
                "{progression: …}: immediate, manual, seconds=2 or polls=3",
                self._progression,
            ),
            ("POST", "/settle", "{id?}: finish the work on one resource, or on all, now", self._settle),
            ("POST", "/credits/top-up", "{credits}: add credits", lambda v: steering.top_up(_take(v, "credits"))),
            ("PUT", "/credits/balance", "{balance}: set the balance, with an entry for the difference", self._balance),
            ("GET", "/webhooks", "show the signing secret and all endpoints", self._webhooks),
            (
                "GET",
                "/webhooks/deliveries",
                "show all events and their deliveries",
                lambda _: steering.webhook_deliveries,
            ),
            (
                "POST",
                "/webhooks/flush",
                "wait until each due delivery was tried",
                lambda _: steering.flush_webhooks(),
            ),
            ("POST", "/webhooks/{id}/resend", "send a message again, by its svix-id", self._resend),
            (
                "POST",
                "/reset",
                "remove all resources, faults and requests",
                lambda _: steering.reset(),
            ),
        ]

    def routes(self) -> list[Route]:
        """Return one route for each path."""
        by_path: dict[str, dict[str, Action]] = {}
        for method, path, _, action in self._table:
            by_path.setdefault(path, {})[method] = action
        return [Route(CONTROL + path, _Actions(actions)) for path, actions in by_path.items()]

    def _index(self, values: dict[str, Any]) -> Any:
        return {
            "what": "Steering of the Roughy emulator. Bodies and replies are JSON; no key is needed.",
            "routes": [
                {"method": method, "path": CONTROL + path, "does": text} for method, path, text, _ in self._table
            ],
            "fault_fields": Fault().to_dict(),
        }

    def _about(
        self,
        kind: str,
        read_all: Callable[[], Any],
        read: Callable[[str], Any],
        seed: Callable[..., str],
    ) -> list[tuple[str, str, str, Action]]:
        def set_state(values: dict[str, Any]) -> Any:
            resource_id = read(values.pop("id"))["id"]
            self._steering.set_state(resource_id, _take(values, "state"), **values)
            return read(resource_id)

        return [
            ("GET", f"/{kind}s", f"show all {kind}s, with facts that the API does not show", lambda _: read_all()),
            ("POST", f"/{kind}s", "create one in a state: {state, ...fields}", lambda values: read(seed(**values))),
            ("GET", f"/{kind}s/{{id}}", "show one of them", lambda values: read(values["id"])),
            ("POST", f"/{kind}s/{{id}}/state", "{state, error_code?, error_message?, ...}: set its state", set_state),
        ]

    def _requests(self, values: dict[str, Any]) -> Any:
        return [request.to_dict() for request in self._steering.requests]

    def _inject(self, values: dict[str, Any]) -> Any:
        fault = Fault.from_dict(values)
        self._steering.inject(fault)
        return fault.to_dict()

    def _progression(self, values: dict[str, Any]) -> Any:
        self._steering.progression = _take(values, "progression", _WORD)

    def _settle(self, values: dict[str, Any]) -> Any:
        # 0.1 had assets only, as `asset_id`.
        given = next((name for name in ("id", "asset_id") if name in values), None)
        chosen = _take(values, given, _WORD) if given else None
        return {"settled": self._steering.settle(chosen)}

    def _webhooks(self, values: dict[str, Any]) -> Any:
        return {"secret": self._steering.webhook_secret, "endpoints": self._steering.webhook_endpoints}

    def _resend(self, values: dict[str, Any]) -> Any:
        return {"endpoints": self._steering.resend_webhook(values["id"])}

    def _balance(self, values: dict[str, Any]) -> Any:
        self._steering.balance = _take(values, "balance")


def _take(values: dict[str, Any], name: str, reader: Reader[Any] = lambda value: value) -> Any:
    """Remove a required field from a body and return its value."""
    if name not in values:
        raise ValueError(f"Missing field {name!r}.")
    try:
        return reader(values.pop(name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


class _Actions:
    """The actions on one path, as an ASGI application."""

    def __init__(self, actions: dict[str, Action]) -> None:
        self._actions = actions

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        action = self._actions.get(request.method)
        if action is None:
            return _problem(405, f"Use {', '.join(self._actions)}.")
        try:
            if request.method in ("POST", "PUT"):
                # A browser sends JSON to another origin only after a preflight request, so no web page can control it.
                require_json(request)
            raw = await request.body()
            values = parse_object(raw, malformed_status=422) if raw else {}
            result = await run_in_threadpool(action, values | request.path_params)
        except ApiError as error:
            return _problem(error.status, error.message)
        except UnknownId as error:
            return _problem(404, str(error))
        except ValueError as error:
            return _problem(422, str(error))
        return _reply({"ok": True} if result is None else result)


def _problem(status: int, message: str) -> Response:
    return _reply({"problem": message}, status)


def _reply(content: Any, status: int = 200) -> Response:
    # Escaped: a fault may contain text that UTF-8 cannot encode, and JSON has no word for some numbers.
    return Response(json.dumps(content), status, media_type="application/json")
