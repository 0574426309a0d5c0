"""Shared parts of the tests of what is made of many recordings: seeded assets, and a task that makes their outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.operators import RoughyProduceOperator
from tests.running import Ended, TaskInstance, run_task

#: What is asked for by default.
OUTPUTS: dict[str, Any] = {
    "captions": ["srt", "vtt"],
    "timeline": "otio",
    "render": {"video": {"format": "mp4"}, "audio": {"format": "m4a"}},
}


class Production:
    """Runs of one task.

    :param roughy: Where the assets are.
    :param place: A folder for the target ``out`` and the ledger.
    :param recordings: Real media, by type.
    """

    def __init__(self, roughy: Emulator, place: Path, recordings: Mapping[str, Path]) -> None:
        self.roughy = roughy
        self.out = place / "out"
        self.ledger = place / "ledger"
        self._media = {type: path.read_bytes() for type, path in recordings.items()}
        self.sources: dict[str, str] = {}
        self.options: dict[str, Any] = {
            **OUTPUTS,
            "target": f"{self.out}/{{source_dir}}/{{source_name}}/",
            "source_root": "/in",
            "ledger": str(self.ledger),
            "poll_interval": 0.05,
            "timeout": 60,
        }
        self.number = 0
        self.xcoms: dict[str, Any] = {}

    def add(self, source: str, *, state: str = "ready") -> str:
        """Seed the asset of a recording, with real media by its extension."""
        type = "audio" if source.endswith((".mp3", ".m4a", ".wav")) else "video"
        asset_id = self.roughy.seed_asset(
            state, type=type, extension={"audio": "mp3", "video": "mp4"}[type], content=self._media[type]
        )
        self.sources[asset_id] = source
        return asset_id

    def run(self, *, again: bool = False, **options: Any) -> Ended:
        """Run the task, or another try of the same run; what it pushed is in ``xcoms``."""
        self.number += not again
        self.roughy.clear_requests()
        ti = TaskInstance(run_id=f"night {self.number}")
        steps = {name: options.pop(name) for name in ("before_resuming", "kill_once", "context") if name in options}
        options = {**self.options, **options}
        if "from_report" not in options:
            options = {"asset_ids": list(self.sources), "sources": self.sources, **options}
        context = {"ti": ti, **steps.pop("context", {})}
        ended = run_task(RoughyProduceOperator(task_id="produce", **options), context=context, **steps)
        self.xcoms = {name: json.loads(value) for name, value in ti.xcoms.items()}
        return ended

    def files(self) -> dict[str, int]:
        """Return the size of each file in the target, by its path."""
        return {str(path.relative_to(self.out)): path.stat().st_size for path in self.out.rglob("*") if path.is_file()}

    def asked(self) -> dict[str, int]:
        """Count the requests of the last run."""
        counts: dict[str, int] = {}
        for request in self.roughy.requests:
            path = "/".join(part for part in request.path.split("/")[:3] if part)
            rest = [] if path.startswith("storage") else request.path.split("/")[4:]
            name = " ".join([request.method, path, *rest[-1:]])
            counts[name] = counts.get(name, 0) + 1
        return counts
