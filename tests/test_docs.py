"""The documentation: it builds, its code runs, its links are valid, and it matches the code."""

from __future__ import annotations

import ast
import gc
import json
import os
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import distribution
from importlib.util import find_spec
from inspect import Parameter, isclass, isfunction, signature, unwrap
from pathlib import Path
from textwrap import dedent
from xml.etree import ElementTree

import pytest

from airflow_provider_roughy import compat, exceptions, operators, sensors
from airflow_provider_roughy.cli.parser import build_parser
from airflow_provider_roughy.compat import DAG, BaseOperator
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.get_provider_info import get_provider_info
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ingest.result import BatchResults
from airflow_provider_roughy.lifecycle import KINDS

needs_sphinx = pytest.mark.skipif(
    find_spec("sphinx") is None, reason="the group docs is installed for the newest Airflow only"
)

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]

#: What `make pages` writes; the code in it is that of the example DAGs, which have tests of their own.
GENERATED = re.compile(r"(?ms)^<!-- begin: .*?^<!-- end -->$")

#: A block of Python, with where it begins.
BLOCKS = [
    pytest.param(dedent(block["code"]), id=f"{path.stem}-{number}")
    for path in PAGES
    for number, block in enumerate(
        re.finditer(r"(?ms)^( *)```python\n(?P<code>.*?)^\1```", GENERATED.sub("", path.read_text()))
    )
]

#: Modules of which users may take any name that does not begin with an underscore.
PUBLIC = (
    *("operators", "sensors", "triggers", "events", "hooks", "api", "ledger", "exceptions", "retry_policy"),
    *("lifecycle", "webhooks", "settings", "emulator"),
)


def public_names() -> Iterator[str]:
    """Yield what users meet: all of public modules, what Airflow is told of, what pages and examples import."""
    for module in map(import_module, (f"airflow_provider_roughy.{name}" for name in PUBLIC)):
        here = [name for name, each in vars(module).items() if getattr(each, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", here):
            each = getattr(module, name)
            if not name.startswith("_") and (isclass(each) or isfunction(each)):
                yield f"{module.__name__}.{name}"
                # What Airflow calls of a task is nothing to read about.
                if isclass(each) and not issubclass(each, BaseOperator):
                    yield from (f"{module.__name__}.{name}.{method}" for method in methods(each))
    yield from re.findall(r"airflow_provider_roughy(?:\.\w+)+", json.dumps(get_provider_info()))
    yield from (entry.value.replace(":", ".") for entry in distribution("airflow-provider-roughy").entry_points)
    texts = [
        *(str(block.values[0]) for block in BLOCKS),
        *(path.read_text() for path in ROOT.glob("example_dags/*.py")),
    ]
    for node in (node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)):
        # What `compat` holds are Airflow's own names.
        if node.module and node.module.startswith("airflow_provider_roughy.") and not node.module.endswith(".compat"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield "airflow_provider_roughy.emulator.pytest.roughy"


def methods(cls: type) -> Iterator[str]:
    # An emulator is steered by what it inherits.
    classes = cls.__mro__ if cls is Emulator else [cls]
    for name, each in ((name, each) for of_one in classes for name, each in vars(of_one).items()):
        callable_or_read = (cached_property, classmethod, property, staticmethod)
        if not name.startswith("_") and (isfunction(each) or isinstance(each, callable_or_read)):
            yield name


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_python_runs(
    block: str, roughy: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks are put into a DAG, and what asks Roughy asks an emulator."""
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
    roughy.seed_asset("ready", duration_seconds=60.0)
    known = vars(operators) | vars(sensors) if "import " not in block else {}
    with DAG("docs", schedule=None):
        exec(compile(block.replace("/data/", f"{tmp_path}/"), "docs", "exec"), {"__name__": "docs", **known})
    gc.collect()  # What is left open is warned of here, not in the next test.


@pytest.mark.once
@pytest.mark.skipif(compat._LINE < (3, 3), reason="the README's DAG is for Airflow 3, the newest of which are enough")
@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "emulator.md"], ids=lambda path: path.stem)
def test_the_recipe_of_a_test_runs_as_it_is_written(page: Path, tmp_path: Path) -> None:
    """In an empty folder: files are blocks that begin with their name, commands are those of the block after them."""
    text = page.read_text()
    blocks = list(re.finditer(r"(?ms)^```python\n# (?P<file>\S+\.py)\n(?P<code>.*?)^```", text))
    assert [block["file"] for block in blocks] == ["dags/interviews.py", "conftest.py", "tests/test_interviews.py"]
    for block in blocks:
        (tmp_path / block["file"]).parent.mkdir(exist_ok=True)
        (tmp_path / block["file"]).write_text(block["code"])
    commands = re.search(r"(?ms)^```console\n(.*?)^```", text[blocks[-1].end() :])
    assert commands
    ran = subprocess.run(
        ["bash", "-e", "-c", re.sub(r"(?m)^\$ ", "", commands[1])],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"(?ms)^( *)```.*?^\1```", "", page.read_text())
    targets = [target.partition("#")[0] for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text)]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@needs_sphinx
@pytest.mark.timeout(300)
def test_site_builds_and_matches_the_code(tmp_path: Path) -> None:
    """References, includes, markers of examples, anchors: Sphinx looks at all of them."""
    command = [sys.executable, "-m", "sphinx", "--nitpicky", "--fail-on-warning", "--keep-going", "--quiet"]
    built = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"], capture_output=True, text=True, timeout=280
    )
    assert built.returncode == 0, built.stderr
    # Four lines, then an entry a line.
    listed = zlib.decompress((tmp_path / "html" / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    reference = {line.split(" ", 1)[0] for line in listed.splitlines()}
    assert sorted(set(public_names()) - reference) == [], "in the reference, which shows nothing without a docstring"
    pages = {path.stem: path.read_text() for path in (tmp_path / "html").glob("*.html")}
    errors = [
        name for name, each in vars(exceptions).items() if isinstance(each, type) and issubclass(each, RoughyError)
    ]
    assert [name for name in errors if f"exceptions.{name}" not in pages["errors"]] == []
    states = {state for kind in KINDS.values() for state in kind.outcomes}
    assert [state for state in states if f">{state}</span>" not in pages["outcomes"]] == []
    loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)|<link[^>]*\shref="([^"]+)', "".join(pages.values()))
    assert [url for pair in loaded for url in pair if re.match(r"(https?:)?//", url)] == [], "nothing from elsewhere"


@pytest.mark.once
@pytest.mark.parametrize(("title", "at_least"), [("Add a resource", 30), ("Add a field", 9)])
def test_the_guides_to_a_new_resource_and_field_name_files_that_exist(title: str, at_least: int) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    guide = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| ((?:`[^`]+`(?:, )?)+)(?: \(new\))? \|", guide)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) > at_least
    # The new ones stand beside those of cuts.
    existing = [name.replace("transcripts.py", "cuts.py") for name in named]
    folders = (ROOT, ROOT / "airflow_provider_roughy")
    assert [name for name in existing if not any((folder / name).exists() for folder in folders)] == []


def test_every_argument_of_a_task_is_documented() -> None:
    named = [each for module in (operators, sensors) for each in vars(module).values()]
    tasks = [each for each in named if isclass(each) and issubclass(each, BaseOperator)]
    tasks = [each for each in tasks if each.__name__.startswith("Roughy")]
    assert len(tasks) > 10
    for task in tasks:
        ours = [each for each in task.__mro__ if each.__module__.startswith("airflow_provider_roughy.")]
        makers = [unwrap(vars(each)["__init__"]) for each in ours if "__init__" in vars(each)]
        taken = {each for make in makers for each in signature(make).parameters.values()}
        told = {each.name for each in taken if each.name != "self" and each.kind is not Parameter.VAR_KEYWORD}
        text = task.__doc__ or ""
        assert [name for name in told if f":param {name}:" not in text] == [], task.__name__


def test_commands_name_releases_of_airflow_that_are_tested() -> None:
    tested = {
        release
        for path in (ROOT / "tests" / "constraints").glob("airflow-*.txt")
        for release in re.findall(r"^apache-airflow==(\S+)", path.read_text(), re.MULTILINE)
    }
    named = {
        release
        for page in PAGES
        for release in re.findall(r"(?:AIRFLOW=|constraints-)(\d+\.\d+\.\d+)", page.read_text())
    }
    assert named <= tested
    assert named


def test_every_fault_of_the_emulators_page_is_one() -> None:
    faults = re.findall(r"`(Fault\([^`]+\))`", (DOCS / "emulator.md").read_text())
    assert faults
    for fault in faults:
        eval(fault, {"Fault": Fault})


@pytest.mark.once
def test_generated_parts_of_pages_match_the_code() -> None:
    from from_code.pages import generated

    outdated = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    assert [str(path.relative_to(ROOT)) for path in outdated] == [], "`make pages` writes them"


@pytest.mark.once
def test_examples_in_pages_are_the_lines_of_the_example_dags() -> None:
    shown = [
        (ROOT / name, dedent(block))
        for page in PAGES
        for name, block in re.findall(r"(?s)<!-- begin: code (\S+).*?```python\n(.*?)```", page.read_text())
    ]
    assert len(shown) > 5
    for path, block in shown:
        lines = [line.strip() for line in path.read_text().splitlines()]
        assert [line for line in block.splitlines() if line.strip() not in lines] == [], path.name


@pytest.mark.once
def test_generated_parts_are_replaced_and_others_stay() -> None:
    from from_code.pages import fill
    from from_code.tables import TABLES

    page = "# A page\n\n<!-- begin: table settings -->\nold\n<!-- end -->\n\nText.\n"
    filled = fill(page)
    assert filled.startswith("# A page\n")
    assert filled.endswith("\nText.\n")
    assert TABLES["settings"]() in filled
    assert "old" not in filled
    assert fill(filled) == filled
    with pytest.raises(KeyError):
        fill("<!-- begin: table of-nothing -->\n<!-- end -->")
    with pytest.raises(ValueError, match="0 parts"):
        fill("<!-- begin: code example_dags/roughy_rough_cut.py of-nothing -->\n<!-- end -->")


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_reads_the_same_on_a_code_host(page: Path) -> None:
    """Directives, roles and definition lists are Sphinx's: a code host shows them bare."""
    text = page.read_text()
    assert re.findall(r"^ *(?:```|:::)\{[^}]+\}|\{py:\w+\}|^: .*", text, re.MULTILINE) == []
    begun = re.findall(r"<!-- (begin: (?:table|code) \S+|end)", text)
    assert [each == "end" for each in begun] == [False, True] * (len(begun) // 2)


@pytest.mark.once
def test_figures_have_alternative_text() -> None:
    images = [(page, *image) for page in PAGES for image in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", page.read_text())]
    assert {Path(target).name for _, _, target in images} == {path.name for path in DOCS.glob("figures/*")}
    assert [target for page, words, target in images if len(words) < 20 or not (page.parent / target).exists()] == []


def test_the_connections_that_pages_show_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one, as JSON or as a URI, has a key, a project and an address that the package takes."""
    shown = [
        text
        for page in PAGES
        for text in re.findall(r"AIRFLOW_CONN_ROUGHY_DEFAULT='([^']+)'", page.read_text())
        if not text.endswith("…}")  # What the emulator prints.
    ]
    assert len(shown) > 4
    for text in shown:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", text.replace("sk_…", "sk_key"))
        with RoughyHook() as hook:
            assert hook.settings.api_key == "sk_key", text
            assert hook.settings.project_id, text
            address = hook.settings.base_url
        host = next(
            (host for host in ("127.0.0.1:8321", "roughy.example.org") if host in text.replace("%3A", ":")), None
        )
        assert address == (f"http://{host}" if host else "https://api.roughy.ai")


@pytest.mark.once
def test_every_command_that_pages_show_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    parser, shown = build_parser(), set()
    for page in PAGES:
        for words in re.findall(
            r"(?:airflow roughy|python -m airflow_provider_roughy) ([a-z][^\n`|;)]*)", page.read_text()
        ):
            command = shlex.split(words.replace("…", ""))
            # A sentence names a command, a line of a console runs it.
            if "--" in words or f"$ airflow roughy {words}" in page.read_text():
                try:
                    parser.parse_args(command)
                except SystemExit:
                    pytest.fail(f"{page.name}: {words}: {capsys.readouterr().err}")
                shown.add(" ".join(word for word in command[:2] if word.isalpha()))
    assert {"doctor", "plan", "balance", "credits", "ledger list", "ledger retry", "webhooks test"} <= shown


@pytest.mark.once
def test_every_xcom_of_a_batch_is_documented() -> None:
    from from_code.tables import TABLES

    documented = set(re.findall(r"^\| `(\w+)`", TABLES["batch-xcoms"](), re.MULTILINE))
    # The names that 0.2 gave to some of them are in the text.
    assert documented == set(BatchResults().xcoms()) - {"refused", "postponed", "unfinished", "known"}


@pytest.mark.once
def test_every_figure_is_drawn_in_the_colours_of_the_page() -> None:
    from from_code.figures import FIGURES

    for name, draw in FIGURES.items():
        svg = ElementTree.fromstring(draw())
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        parts = list(svg.iter())
        assert not [part.attrib for part in parts if {"fill", "stroke", "style"} & part.attrib.keys()], name
        boxes = [
            {key: float(part.attrib[key]) for key in ("x", "y", "width", "height")}
            for part in parts
            if "rx" in part.attrib
        ]
        assert all(0 <= box["x"] <= box["x"] + box["width"] <= width for box in boxes), name
        assert all(0 <= box["y"] <= box["y"] + box["height"] <= height for box in boxes), name


@pytest.mark.once
def test_advice_is_about_errors_that_exist() -> None:
    from from_code.tables import ADVICE, advice_on, of_the_tree

    errors = [error for _, error in of_the_tree()]
    assert set(ADVICE) <= {error.__name__ for error in errors}
    assert all(advice_on(error).endswith(".") for error in errors)
    assert not [name for name in ADVICE if getattr(exceptions, name).hint], "its message says it already"
