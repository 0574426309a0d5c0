"""The Sphinx extension that puts into pages what the code says: ``{from-code}`` and the name of a table or figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from from_code.figures import FIGURES
from from_code.tables import TABLES

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.util.typing import ExtensionMetadata


class FromCode(SphinxDirective):
    """Draws a figure, or writes a table, from the code as it stands."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Return what the name stands for."""
        (name,) = self.arguments
        # What the page shows may change without the page.
        self.env.note_reread()
        if name in FIGURES:
            return [nodes.raw("", f'<div class="from-code">{FIGURES[name]()}</div>', format="html")]
        if name in TABLES:
            return [nodes.container("", *self.parse_text_to_nodes(TABLES[name]()), classes=["from-code"])]
        raise self.error(f"there is neither a figure nor a table {name!r}: {', '.join([*FIGURES, *TABLES])}")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx of it."""
    app.add_directive("from-code", FromCode)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
