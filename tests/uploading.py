"""Durable uploads in tests: a store like Airflow's, and uploads that are run, interrupted and inspected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyUploadError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from airflow_provider_roughy.transfer.source import find_source
from tests.running import Ended, run_task

MIB = 1024 * 1024


class Store:
    """The task state store of Airflow 3.3, as far as a task sees it: JSON by key.

    Airflow sends the values through msgpack, which takes no text that UTF-8 cannot hold.
    """

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.rows[key]) if key in self.rows else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.rows[key] = json.dumps(value, ensure_ascii=False).encode()


def upload(store: Store | None, source: Path | str, **options: Any) -> Ended:
    """Run the operator as one start of a task."""
    operator = RoughyCreateUploadOperator(task_id="upload", source=source, **options)
    return run_task(operator, context={} if store is None else {"task_state_store": store})


def break_off(roughy: Emulator, store: Store | None, source: Path | str, after: int = MIB, **options: Any) -> str:
    """Run a try that fails after some bytes, and return its asset."""
    roughy.inject(Fault(method="PATCH", cut_after=after))
    roughy.inject(Fault(method="PATCH", nth=2, status=503, times=None))
    ended = upload(store, source, **options)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUploadError)
    roughy.clear_faults()
    roughy.clear_requests()
    return roughy.assets[0]["id"] if roughy.assets else ""


def remember(roughy: Emulator, hook: RoughyHook, store: Store, source: Path) -> dict[str, Any]:
    """Leave word of an upload that was opened and not begun, and return what Roughy says of its asset."""
    found = find_source(source)
    asset = hook.create_asset(None, found.size)
    wanted = {**found.fingerprint, "project_id": roughy.project_id, "language": None}
    store.set("roughy_upload", {"asset_id": asset.id, "wanted": wanted})
    roughy.clear_requests()
    return {**asset.to_dict(), "upload_url": asset.upload_url, "download_url": None, "cuttable": False}


def arrived(roughy: Emulator, asset_id: str, source: Path) -> bool:
    """Whether an asset has the bytes of a file."""
    return bool(roughy.asset(asset_id)["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest())


def sent(roughy: Emulator) -> int:
    """Return the bytes of all ``PATCH`` requests."""
    return sum(request.body_bytes for request in roughy.requests if request.method == "PATCH")


def asked(roughy: Emulator, method: str) -> int:
    """Return how many requests there were of a method."""
    return sum(request.method == method for request in roughy.requests)


def as_it_was(roughy: Emulator, asset_id: str) -> dict[str, Any]:
    """Return what Roughy says of an asset before it has all its bytes: what a replica that lags says later as well."""
    facts = roughy.asset(asset_id)
    names = ("id", "project_id", "type", "extension", "content_type", "duration_seconds", "language", "created_at")
    return {
        **{name: facts[name] for name in names},
        "size_bytes": None,
        "state": "pending_upload",
        "upload_url": f"{roughy.url}/v1/uploads/{facts['upload_id']}",
        "download_url": None,
        "cuttable": False,
    }


class Told:
    """A log that takes note of each asset that was made, and calls somebody with its id."""

    def __init__(self, created: Callable[[str], None]) -> None:
        self._created = created

    def debug(self, message: str, *args: Any) -> None:
        assert message % args

    def info(self, message: str, *args: Any) -> None:
        if message.startswith("Created asset"):
            self._created(args[0])

    def warning(self, message: str, *args: Any, exc_info: Any = None) -> None:
        assert message % args

    def error(self, message: str, *args: Any) -> None:
        assert message % args
