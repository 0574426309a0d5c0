"""The release: the built archives, and the package as its wheel installs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://example.org/somebody/roughy"

#: Run in the environment that the wheel is installed in.
LOOK = """
import importlib, json, tempfile
from importlib.metadata import entry_points
modules = ["api", "client", "compat", "emulator", "exceptions", "hooks", "operators", "sensors", "triggers", "tus"]
files = [importlib.import_module(f"airflow_provider_roughy.{module}").__file__ for module in modules]
(found,) = entry_points(group="apache_airflow_provider", name="provider_info").select(module=
    "airflow_provider_roughy.get_provider_info")
from airflow_provider_roughy.observability.report import write_report
write_report(tempfile.mkdtemp(), [])
print(json.dumps({"files": files, "name": found.load()()["package-name"]}))
"""


def run(*command: str | Path, **environment: str) -> str:
    """Run a program, which nothing leads to the source tree, and return what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        list(map(str, command)), env={**env, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built as a release is."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, REPOSITORY=REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.mark.once
def test_an_index_would_take_it(built: Path) -> None:
    archives = sorted(built.iterdir())
    assert [path.suffix for path in archives] == [".whl", ".gz"]
    assert run(sys.executable, "-m", "twine", "check", "--strict", *archives).count("PASSED") == 2


@pytest.mark.once
def test_its_links_lead_somewhere(wheel: Path) -> None:
    told = metadata(wheel)
    links = dict(url.split(", ") for url in told.get_all("Project-URL", []))
    assert set(links) == {"Documentation", "Source", "Changelog", "Issues"}
    assert all(link.startswith(REPOSITORY) for link in links.values())
    readme = str(told.get_payload())
    tree = f"{REPOSITORY}/blob/v{told['Version']}/"
    assert f"]({tree}docs/guides/archive.md)" in readme
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert [target for target in targets if not target.startswith("https://")] == []
    images = f"{REPOSITORY}/raw/v{told['Version']}/"
    assert f"]({images}docs/figures/grid.svg)" in readme
    ours = [
        target.removeprefix(tree).removeprefix(images).partition("#")[0]
        for target in targets
        if target.startswith((tree, images))
    ]
    assert [path for path in ours if not (ROOT / path).exists()] == []


@pytest.mark.once
def test_without_a_repository_nothing_leads_into_it(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, REPOSITORY="")
    told = metadata(next(tmp_path.glob("*.whl")))
    assert told.get_all("Project-URL") == ["Documentation, https://docs.roughy.ai"]
    assert "](example_dags" not in str(told.get_payload())
    assert "grid of the DAG" not in str(told.get_payload()), "an image that no index could show"


@pytest.mark.once
def test_the_wheel_builds_from_the_source_archive(built: Path, tmp_path: Path, wheel: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    run("tar", "-xf", archive, "-C", tmp_path)
    (tree,) = tmp_path.iterdir()
    build = "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_wheel; build_wheel('..')"
    run(sys.executable, "-c", build, tree, REPOSITORY=REPOSITORY)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.once
def test_the_wheel_alone_is_the_package(wheel: Path, tmp_path: Path) -> None:
    """It is installed into a new environment, which has only Airflow and libraries from the one that tests run in."""
    env = tmp_path / "env"
    run(sys.executable, "-m", "venv", env)
    python = env / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel)
    (site,) = env.glob("lib/python*/site-packages")
    # Of a folder that is added so, its own .pth files are not read: those that lead to a source tree.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    seen = json.loads(run(python, "-I", "-c", LOOK, AIRFLOW_HOME=str(tmp_path)).splitlines()[-1])
    assert seen["name"] == "airflow-provider-roughy"
    assert [path for path in seen["files"] if not path.startswith(str(site))] == []
    assert "--balance" in run(python, "-I", "-m", "airflow_provider_roughy.emulator", "--help")
    assert sorted(path.name for path in site.iterdir() if path.name.startswith(("airflow_p", "test", "demo"))) == [
        "airflow_provider_roughy",
        wheel.name.replace("-py3-none-any.whl", ".dist-info"),
    ]
    assert (site / "airflow_provider_roughy" / "py.typed").exists()
