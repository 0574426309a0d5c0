"""Media files, each named by the id of its asset or render."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


class Files:
    """A folder of media files.

    :param folder: Its path; created if need be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._hashes: dict[tuple[str, int, int], str] = {}

    def path(self, file_id: str) -> Path:
        """Return the path of a file, whether or not it exists."""
        return self._folder / file_id

    def size(self, file_id: str) -> int:
        """Return the size of a file in bytes; 0 if it does not exist."""
        try:
            return self.path(file_id).stat().st_size
        except FileNotFoundError:
            return 0

    def sha256(self, file_id: str) -> str:
        """Return the SHA-256 hex digest of a file, cached until the file changes. A missing file counts as empty."""
        digest = hashlib.sha256()
        try:
            with self.path(file_id).open("rb") as file:
                facts = os.fstat(file.fileno())
                key = (file_id, facts.st_size, facts.st_mtime_ns)
                if key not in self._hashes:
                    while block := file.read(1 << 20):
                        digest.update(block)
                    self._hashes[key] = digest.hexdigest()
                return self._hashes[key]
        except FileNotFoundError:
            return digest.hexdigest()

    def remove(self, file_id: str) -> None:
        """Remove a file, if it exists."""
        self.path(file_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()
