"""The Sphinx extension of the site: what a page has there beyond its plain Markdown.

The pages contain no directive, so that a code host shows them whole. The site adds the contents, links each public name
to the reference, and draws figures in the colours of its theme.
"""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx import addnodes

from from_code.figures import FIGURES

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.util.typing import ExtensionMetadata

#: The contents of the site, by the page that has them: a caption and its pages.
CONTENTS: dict[str, dict[str, str]] = {
    "index": {
        "Start": "quickstart installing connection",
        "Guides": "guides/index",
        "Know": "outcomes errors cli how-it-works ledger storages metrics scale emulator facts security compatibility "
        "glossary",
        "Look up": "api/index changelog architecture contributing",
    },
    "guides/index": {
        "": "first-hour nightly-folder archive operate one-task-or-many produce cut-and-render react-to-media announce "
        "report credits resume"
    },
    "api/index": {
        "": "operators sensors triggers events hooks resources ledger report exceptions retry-policy lifecycle "
        "webhooks airflow compat emulator modules"
    },
}

#: Pages whose text is a file beside ``docs/``, to which the page only leads on a code host.
FILES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "security": "SECURITY.md"}

#: Modules whose public names become links where a page has them as code.
LINKED = ("operators", "sensors", "triggers", "events", "hooks", "ledger", "exceptions", "retry_policy", "emulator")


def public_names() -> dict[str, str]:
    """Return where each public class and function is documented."""
    found = {}
    for module in (import_module(f"airflow_provider_roughy.{name}") for name in LINKED):
        own = [name for name, each in vars(module).items() if getattr(each, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", own):
            if not name.startswith("_") and (isclass(getattr(module, name)) or isfunction(getattr(module, name))):
                found[name] = f"{module.__name__}.{name}"
    return found


def complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the contents to a page, or put a file in its place."""
    if page in FILES:
        source[0] = f"```{{include}} ../{FILES[page]}\n:relative-docs: docs/\n```\n"
    for caption, names in CONTENTS.get(page, {}).items():
        listed = "\n".join(names.split())
        options = ":maxdepth: 1" if page == "api/index" else ":hidden:"
        options += f"\n:caption: {caption}" if caption else ""
        source[0] += f"\n```{{toctree}}\n{options}\n\n{listed}\n```\n"


def enrich(app: Sphinx, tree: nodes.document) -> None:
    """Make links of public names, inline drawings of figures, and mark generated tables for the style sheet."""
    if app.env.docname.startswith("api/") and app.env.docname != "api/index":
        return
    for comment in [each for each in tree.findall(nodes.raw) if each.astext().lstrip().startswith("<!--")]:
        after = comment.next_node(descend=False, siblings=True)
        if re.match(r"\s*<!-- begin: table", comment.astext()) and isinstance(after, nodes.table):
            after.replace_self(nodes.container("", after.deepcopy(), classes=["from-code"]))
        comment.parent.remove(comment)
    for image in list(tree.findall(nodes.image)):
        name = PurePosixPath(image["uri"])
        if name.parent.name == "figures" and name.stem in FIGURES:
            drawing = f'<div class="from-code">{FIGURES[name.stem]()}</div>'
            image.replace_self(nodes.raw("", drawing, format="html"))
    names = public_names()
    for literal in list(tree.findall(nodes.literal)):
        text = literal.astext()
        target = text if text.startswith("airflow_provider_roughy.") else names.get(text.removesuffix("()"))
        if target and not _within(literal, nodes.reference, addnodes.pending_xref, nodes.title):
            link = addnodes.pending_xref(
                "", literal.deepcopy(), refdomain="py", reftype="obj", reftarget=target, refdoc=app.env.docname
            )
            link["refwarn"] = text in names
            literal.replace_self(link)


def _within(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    parent = node.parent
    while parent is not None:
        if isinstance(parent, kinds):
            return True
        parent = parent.parent
    return False


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect to Sphinx; pictures must be drawn before it collects the files of images."""
    app.connect("source-read", complete)
    app.connect("doctree-read", enrich, priority=100)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
