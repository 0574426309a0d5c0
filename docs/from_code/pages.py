"""The generated parts of the pages, which are committed so that the pages read the same on a code host.

A part stands between two comments. The first one names it::

    <!-- begin: table outcomes -->
    <!-- begin: code example_dags/roughy_nightly_batch.py ingest -->
    <!-- end -->

A table is one of :data:`from_code.tables.TABLES`. Code is a file, or the lines between ``# [START name]`` and
``# [END name]`` in it. A figure is an image of a file in ``docs/figures/``, which is generated as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

from from_code.dashboard import dashboard, statsd_mapping
from from_code.figures import FIGURES, standalone
from from_code.tables import TABLES

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
#: Files that the pages offer.
FILES = DOCS / "files"

_PART = re.compile(
    r"(?ms)^(?P<begin><!-- begin: (?P<kind>table|code) (?P<name>\S+)(?: (?P<part>\S+))? -->)\n"
    r".*?^(?P<end><!-- end -->)$"
)


def pages() -> list[Path]:
    """Return the pages that may have generated parts: the README and those of ``docs/``."""
    return [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


def generated() -> dict[Path, str]:
    """Return what each page and each figure has to contain."""
    texts = {path: fill(path.read_text(encoding="utf-8")) for path in pages()}
    texts |= {FILES / "grafana-roughy.json": dashboard(), FILES / "statsd-mapping-roughy.yml": statsd_mapping()}
    return texts | {DOCS / "figures" / f"{name}.svg": standalone(draw()) for name, draw in FIGURES.items()}


def fill(page: str) -> str:
    """Return a page with its generated parts as the code has them now.

    :raises KeyError: If the page names a table that does not exist.
    """
    return _PART.sub(lambda found: f"{found['begin']}\n\n{_part(found)}\n\n{found['end']}", page)


def without_generated(page: str) -> str:
    """Return a page without its generated parts."""
    return _PART.sub("", page)


def _part(found: re.Match[str]) -> str:
    if found["kind"] == "table":
        return TABLES[found["name"]]()
    # A part of a DAG file is indented less here than there, where it is formatted.
    return f"<!-- fmt: off -->\n```python\n{code(ROOT / found['name'], found['part'])}```\n<!-- fmt: on -->"


def code(path: Path, part: str | None) -> str:
    """Return the code of a file without its docstring, or a part of it.

    :param path: The file.
    :param part: The name between ``[START …]`` and ``[END …]``; all of the file by default.
    :raises ValueError: If the file has not exactly one such part.
    """
    text = path.read_text(encoding="utf-8")
    if part is None:
        return re.sub(r'\A""".*?"""\n+', "", text, flags=re.DOTALL)
    parts = re.findall(rf"(?ms)^ *# \[START {part}\]\n(.*?)^ *# \[END {part}\]$", text)
    if len(parts) != 1:
        raise ValueError(f"{path.name} has {len(parts)} parts {part!r}")
    return dedent(parts[0])
