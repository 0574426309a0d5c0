"""What the metadata of a release says of where the project lives.

The repository is named when a release is built, by ``REPOSITORY=https://…``: metadata and the README, which package
indexes show, link into it then. Without it they link nowhere rather than to a place that may not be.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: A link of Markdown to a file of the repository.
RELATIVE_LINK = re.compile(r"\[([^]]+)\]\((?!https?://|#)([^)]+)\)")
#: The same of an image, alone in its paragraph.
RELATIVE_IMAGE = re.compile(r"^!\[([^]]+)\]\((?!https?://)([^)]+)\)$\n*", re.MULTILINE)


class RepositoryLinks(MetadataHookInterface):
    """Fills in ``urls`` and ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Change the metadata, in which the version is known."""
        repository = os.environ.get("REPOSITORY", "").rstrip("/")
        files = f"{repository}/blob/v{metadata['version']}"
        metadata["urls"] = {"Documentation": "https://docs.roughy.ai"}
        if repository:
            metadata["urls"] = {
                "Documentation": f"{files}/README.md",
                "Source": repository,
                "Changelog": f"{files}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        # A package index shows the file itself, not a page about it; without a repository there is none to show.
        raw = f"{repository}/raw/v{metadata['version']}"
        text = RELATIVE_IMAGE.sub(rf"![\1]({raw}/\2)\n\n" if repository else "", readme)
        text = RELATIVE_LINK.sub(rf"[\1]({files}/\2)" if repository else r"\1", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
