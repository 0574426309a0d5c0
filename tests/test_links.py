"""The link from a task to its asset, if ``[roughy] asset_link`` is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from airflow_provider_roughy.compat import BaseOperator
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.get_provider_info import get_provider_info
from airflow_provider_roughy.observability.links import asset_links
from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyCutOperator, RoughyRenderOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor
from tests.running import TaskInstance, run_task

pytestmark = [pytest.mark.usefixtures("patient")]

PAGE = "https://media.example.org/assets/{asset_id}?tab=1"
TASKS: dict[str, Any] = {
    # Its bytes have arrived, so that nothing is read of the file.
    "upload": lambda **options: RoughyCreateUploadOperator(
        source=__file__, wait_for_completion=True, poll_interval=0.05, **options
    ),
    "sensor": lambda **options: RoughyAssetSensor(poke_interval=0.05, **options),
    "cut": lambda **options: RoughyCutOperator(poll_interval=0.05, **options),
    "render": lambda **options: RoughyRenderOperator(poll_interval=0.05, output={"format": "mp3"}, **options),
}


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    """An emulator in which no state changes by itself."""
    with Emulator(progression="manual") as emulator:
        yield emulator


def links_while_it_waits(make: Any, roughy: Emulator) -> tuple[str, list[Any]]:
    """Return an asset, and the link of its task each time that the task began to wait."""
    asset_id, ti = roughy.seed_asset("processing"), TaskInstance()
    task: BaseOperator = make(task_id="task", asset_id=asset_id, timeout=30, deferrable=True)
    seen: list[Any] = []

    def go_on() -> None:
        seen.append(json.loads(ti.xcoms.get("roughy_asset_link", "null")))
        roughy.settle()

    run_task(task, before_resuming=go_on, context={"ti": ti})
    return asset_id, seen


@pytest.mark.parametrize("name", TASKS)
def test_link_exists_while_the_task_waits(name: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ROUGHY__ASSET_LINK", PAGE)
    asset_id, seen = links_while_it_waits(TASKS[name], roughy)
    assert set(seen) == {f"https://media.example.org/assets/{asset_id}?tab=1"}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "upload"])
def test_invalid_asset_id_fails_the_task_without_retry(
    name: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ROUGHY__ASSET_LINK", PAGE)
    ended = run_task(TASKS[name](task_id="task", asset_id=None))
    assert ended.state == "failed", "and not tried again"
    assert "asset_id must be a UUID, not None" in str(ended.error)


@pytest.mark.parametrize(
    "page", [None, "", "javascript:{asset_id}", "https://media.example.org/", "/assets/{asset_id}"]
)
def test_no_link_without_a_valid_setting(page: str | None, roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    if page is not None:
        monkeypatch.setenv("AIRFLOW__ROUGHY__ASSET_LINK", page)
    assert asset_links() == ()
    assert links_while_it_waits(TASKS["sensor"], roughy)[1] == [None]


@pytest.mark.once
def test_stored_dags_find_the_link_under_its_old_path() -> None:
    listed = get_provider_info()["extra-links"]
    links = {getattr(import_module(module), name) for module, _, name in (path.rpartition(".") for path in listed)}
    assert {link.name for link in links} == {"Roughy asset", "Roughy report"}
    # By its own path, a DAG that is serialized now names it.
    own = {f"{link.__module__}.{link.__name__}" for link in links}
    assert set(listed) == {*own, "airflow_provider_roughy.links.RoughyAssetLink"}


@pytest.mark.once
def test_tasks_about_an_asset_or_with_a_report_have_a_link() -> None:
    program = """
from airflow_provider_roughy import operators, sensors
found = vars(operators) | vars(sensors)
for button in ("Roughy asset", "Roughy report"):
    print(*sorted(name for name in found if any(link.name == button for link in
        getattr(found[name], "operator_extra_links", ()) or ()) and name.startswith("Roughy")))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "AIRFLOW__ROUGHY__ASSET_LINK": PAGE,
            "AIRFLOW__ROUGHY__REPORT_LINK": "https://x.org/{path}",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    wanted = ["RoughyAssetSensor", "RoughyCreateUploadOperator", "RoughyCutOperator", "RoughyRenderOperator"]
    assert [line.split() for line in run.stdout.splitlines()[-2:]] == [
        wanted,
        ["RoughyIngestOperator", "RoughyProduceOperator"],
    ]
