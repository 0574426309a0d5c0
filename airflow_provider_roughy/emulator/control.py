"""Steering the emulator over HTTP, below ``/_emulator/``: what the Python API does, by the same functions."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .faults import Fault
from .gate import CONTROL

if TYPE_CHECKING:
    from .server import Emulator

Action = Callable[[dict[str, Any]], Any]


class Control:
    """The control routes of one emulator. Every action runs in a thread, since it may wait for media.

    :param emulator: what is steered.
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._table: list[tuple[str, str, str, Action]] = [
            ("GET", "/", "this index", self._index),
            ("GET", "/state", "settings, clock, balance, faults", lambda _: emulator.state),
            ("GET", "/assets", "every asset with its internal facts", lambda _: emulator.assets),
            ("POST", "/assets", "seed an asset: {state, ...fields}", self._seed),
            ("GET", "/assets/{asset_id}", "one asset", lambda v: emulator.asset(v["asset_id"])),
            ("POST", "/assets/{asset_id}/state", "{state, error_code?, error_message?, ...}", self._set_state),
            ("GET", "/requests", "the request log, oldest first", self._requests),
            ("DELETE", "/requests", "forget the request log", lambda _: emulator.clear_requests()),
            ("GET", "/faults", "the faults in force", lambda _: emulator.state["faults"]),
            ("POST", "/faults", "inject a fault: the fields of Fault", self._inject),
            ("DELETE", "/faults", "forget all faults", lambda _: emulator.clear_faults()),
            ("POST", "/clock", "{advance: seconds}", lambda v: emulator.advance(float(v["advance"]))),
            ("PUT", "/progression", "{progression: immediate|manual|seconds=2|polls=3}", self._progression),
            ("POST", "/settle", "{asset_id?}: let processing assets finish now", self._settle),
            ("POST", "/credits/top-up", "{credits}", lambda v: emulator.top_up(v["credits"])),
            ("PUT", "/credits/balance", "{balance}: by an adjustment entry", self._balance),
            ("POST", "/reset", "back to the start", lambda _: emulator.reset()),
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

    def _seed(self, values: dict[str, Any]) -> Any:
        return self._emulator.asset(self._emulator.seed_asset(**values))

    def _set_state(self, values: dict[str, Any]) -> Any:
        asset_id = values.pop("asset_id")
        self._emulator.set_state(asset_id, values.pop("state"), **values)
        return self._emulator.asset(asset_id)

    def _requests(self, values: dict[str, Any]) -> Any:
        return [request.to_dict() for request in self._emulator.requests]

    def _inject(self, values: dict[str, Any]) -> Any:
        fault = Fault.from_dict(values)
        self._emulator.inject(fault)
        return fault.to_dict()

    def _progression(self, values: dict[str, Any]) -> Any:
        self._emulator.progression = values["progression"]

    def _settle(self, values: dict[str, Any]) -> Any:
        return {"settled": self._emulator.settle(values.get("asset_id"))}

    def _balance(self, values: dict[str, Any]) -> Any:
        self._emulator.balance = values["balance"]


class _Actions:
    """The actions on one path, as an ASGI application."""

    def __init__(self, actions: dict[str, Action]) -> None:
        self._actions = actions

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> JSONResponse:
        action = self._actions.get(request.method)
        if action is None:
            return _problem(405, f"Use {', '.join(self._actions)}.")
        raw = await request.body()
        try:
            values = json.loads(raw) if raw else {}
            if not isinstance(values, dict):
                return _problem(422, "The body must be a JSON object.")
            values |= request.path_params
            result = await run_in_threadpool(action, values)
        except KeyError as error:
            # The store raises it with the id it does not know, an action with the field it misses.
            if error.args[0] in request.path_params.values() or error.args[0] == values.get("asset_id"):
                return _problem(404, f"Unknown asset {error}")
            return _problem(422, f"Missing field {error}")
        except (ValueError, TypeError) as error:
            return _problem(422, str(error))
        return JSONResponse({"ok": True} if result is None else result)


def _problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"problem": message}, status)
