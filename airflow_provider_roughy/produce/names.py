"""The names of outputs: a template with placeholders such as ``{source_stem}``.

A value comes from outside (the name of a recording, a reply of Roughy's), so it can name nothing outside of the target:
characters of control and path separators are replaced, and no part of a path is ``.`` or ``..``. Nothing here reads or
writes anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.transfer.storage import as_text, local_path, without_secrets

#: The placeholders, and what each stands for.
PLACEHOLDERS = {
    "source_name": "the recording's file name: interview.mp4",
    "source_stem": "its file name without the extension: interview",
    "source_dir": "its folder, relative to `source_root`; empty for a recording in that folder itself",
    "asset_id": "the id of its asset",
    "project_id": "the id of the asset's project",
    "cut_id": "the id of the cut; empty without a cut",
    "kind": "captions, timeline, render or original",
    "format": "srt, vtt, otio, mp4, …: the format by the name that you gave, or the original's extension",
}
#: The name of an output in a folder.
FILE_NAME = "{kind}.{format}"
#: How the value of ``{cut_id}`` begins before the cut is made. No id begins like this.
_UNKNOWN_CUT = "{cut of "

#: Parts of Jinja, which Airflow replaces before the task starts.
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
#: Control characters, those of text direction, and the separators of paths.
_REPLACED = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069/\\]")


def unknown_cut(asset_id: str) -> str:
    """Return what stands for the id of a cut before the cut is made.

    :param asset_id: The asset that is cut.
    """
    return f"{_UNKNOWN_CUT}{asset_id}}}"


@dataclass(frozen=True)
class SourceName:
    """The parts of a recording's location.

    :param name: Its file name.
    :param folder: Its folder, relative to the root.
    """

    name: str
    folder: str = ""

    @classmethod
    def of(cls, source: str, root: str | None = None) -> SourceName:
        """Split the location of a recording.

        :param source: Its path or URI.
        :param root: A folder to which the recording's folder is relative. A recording elsewhere keeps its whole path.
        """
        path, base = _path_of(source), _path_of(root or "")
        if re.search(r"[*?\[]", base) and not f"{path}/".startswith(f"{base.rstrip('/')}/"):
            # A glob: the folder before its first wildcard.
            base = re.split(r"[*?\[]", base, maxsplit=1)[0].rpartition("/")[0]
        folder, _, name = path.rpartition("/")
        base = base.rstrip("/")
        if base == path:
            # The source is the recording itself.
            base = folder
        if base and f"{folder}/".startswith(f"{base}/"):
            folder = folder[len(base) :]
        return cls(name, folder.strip("/"))

    @property
    def stem(self) -> str:
        """Its file name without the extension."""
        stem, dot, _ = self.name.rpartition(".")
        return stem if dot and stem else self.name

    @property
    def extension(self) -> str:
        """The extension, without the dot; empty if it has none."""
        return self.name.rpartition(".")[2] if self.stem != self.name else ""


def _path_of(location: str) -> str:
    """Return the path of a location, with ``/`` between its parts, and without a scheme."""
    path = local_path(location)
    return path if path is not None else re.sub(r"\A[^:]*://(?:[^/@]*@)?", "", location)


def length_problem(location: str) -> str | None:
    """Return why a location is too long for its storage; ``None`` if it is not.

    File systems allow 255 bytes for each part of a path; S3, Google Cloud Storage and Azure allow 1,024 bytes in all.

    :param location: A path or a URI.
    """
    scheme, _, rest = location.rpartition("://")
    if scheme in ("", "file", "sftp"):
        longest, most = max(len(os.fsencode(part)) for part in rest.split("/")), 255
        what = "a part of its name"
    else:
        longest, most, what = len(rest.partition("/")[2].encode(errors="replace")), 1024, "its name"
    return f"{what} has {longest:,} bytes, and the storage allows {most:,}" if longest > most else None


def check_template(template: str) -> None:
    """Refuse a template with unknown placeholders. Parts that Airflow renders later are left out.

    :param template: The target.
    :raises ValueError: If a placeholder is unknown or malformed.
    """
    for name in _fields(_JINJA.sub("", template)):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
            raise ValueError(
                f"target {without_secrets(template)!r} has an unknown placeholder {{{name}}}; known are {known}"
            )


def _fields(template: str) -> list[str]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as err:
        raise ValueError(f"target {without_secrets(template)!r} cannot be read: {err}") from None
    for _, name, spec, conversion in parsed:
        if name is not None and (spec or conversion):
            raise ValueError(
                f"target {without_secrets(template)!r} has a placeholder {{{name}}} with a format or conversion"
            )
    return [name for _, name, _, _ in parsed if name is not None]


def _check_place(text: str) -> None:
    """Refuse a target whose place depends on the worker's directory, or on a value from outside.

    :param text: The rendered target.
    :raises RoughyConfigurationError: If it is a relative path, or a URI with a placeholder in its scheme or bucket.
    """
    path = local_path(text)
    if path is not None and not path.startswith("/"):
        # Without a value, its first placeholder would also turn `{source_dir}/x` into `/x`.
        raise RoughyConfigurationError(
            f"`target` must be an absolute path or a URI, not {text!r}: a relative path is another folder in each "
            "worker's working directory. Nothing was made"
        )
    if path is None and "{" in text.partition("://")[2].partition("/")[0]:
        raise RoughyConfigurationError(
            f"`target` {without_secrets(text)!r} has a placeholder in the name of the bucket or host: name it "
            "in full. Nothing was made"
        )


class TargetTemplate:
    """A rendered target.

    :param text: Its text. If it ends with a slash, it is a folder, in which a file is named ``{kind}.{format}``.
    :raises RoughyConfigurationError: If a placeholder is unknown or names the bucket, or if it is a relative path.
    """

    def __init__(self, text: str) -> None:
        try:
            check_template(text)
        except ValueError as err:
            raise RoughyConfigurationError(f"{err}; nothing was made") from None
        _check_place(text)
        self._text = text + FILE_NAME if text.endswith("/") else text
        self._is_local = local_path(text) is not None
        #: The placeholders that it has.
        self.fields = set(_fields(self._text))
        #: The folder that all outputs are in: what stands before the first placeholder.
        self.root = re.split(r"(?<!\{)\{(?!\{)", text, maxsplit=1)[0].rpartition("/")[0]

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the location of an output.

        :param values: The values of all placeholders.
        """
        scheme, separator, rest = self._text.partition("://")
        if not separator:
            scheme, rest = "", self._text
        cleaned = {name: self._clean(name, value) for name, value in values.items()}
        parts: list[str] = []
        for number, part in enumerate(rest.split("/")):
            filled = part.format_map(cleaned)
            # A placeholder without a value leaves no empty part.
            if filled or not part or number == 0:
                parts.append(filled)
        return f"{scheme}{separator}{'/'.join(parts)}"

    def _clean(self, name: str, value: str) -> str:
        if name == "cut_id" and value.startswith(_UNKNOWN_CUT):
            return value
        if name == "source_dir":
            return "/".join(filter(None, (self._clean_part(part) for part in value.split("/") if part)))
        return self._clean_part(value)

    def _clean_part(self, value: str) -> str:
        cleaned = _REPLACED.sub("_", as_text(value))
        if not self._is_local:
            # fsspec takes them for the end of a URI.
            cleaned = cleaned.replace("::", "__")
        stripped = cleaned.strip()
        return "_" if value and (not stripped or stripped in (".", "..")) else cleaned
