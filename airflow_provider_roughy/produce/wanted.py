"""Which outputs are wanted, and which of them apply to a recording. Nothing here reads or writes anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

#: What a render is made of.
RenderOf = Literal["cut", "asset"]

#: The formats of renders with a picture.
_WITH_PICTURE = {"mp4", "mov"}
#: A format, as it can be a part of a file name.
_FORMAT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,31}")


@dataclass(frozen=True)
class Output:
    """An output of a recording.

    :param kind: ``captions``, ``timeline``, ``render`` or ``original``.
    :param format: Its format, which is the extension of its file.
    :param request: What it is made with, besides the asset, as plain JSON.
    """

    kind: str
    format: str
    request: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """Its name in results, and of its file in a folder: ``captions.srt``."""
        return f"{self.kind}.{self.format}"


@dataclass(frozen=True)
class Wanted:
    """The outputs that are wanted of each recording.

    :param captions: The formats of the captions.
    :param timelines: The formats of the timelines.
    :param frame_rate: Frames a second of the timeline of a recording that has no frame rate.
    :param render: An output of Roughy's API; or such outputs by the type of the asset, ``video`` or ``audio``.
    :param render_of: Whether to render the cut or the whole recording.
    :param original: Whether to write the original.
    """

    captions: Sequence[str] = ()
    timelines: Sequence[str] = ()
    frame_rate: float | str | None = None
    render: Mapping[str, Any] | None = None
    render_of: RenderOf = "cut"
    original: bool = False

    @property
    def needs_cut(self) -> bool:
        """Whether recordings are cut."""
        return bool(self.captions or self.timelines or (self.render and self.render_of == "cut"))

    def of(self, type: str | None, *, extension: str) -> tuple[list[Output], dict[str, str]]:
        """Return the outputs of a recording, and why others are left out, by their names.

        :param type: The type of its asset: ``video`` or ``audio``.
        :param extension: The extension of its original, without a dot.
        """
        outputs = [Output("captions", format) for format in self.captions]
        left_out: dict[str, str] = {}
        for format in self.timelines:
            output = Output(
                "timeline", format, {"frame_rate": None if self.frame_rate is None else str(self.frame_rate)}
            )
            if type == "audio" and self.frame_rate is None:
                left_out[output.name] = "audio has no frame rate; set `frame_rate` to get a timeline"
            else:
                outputs.append(output)
        render, why_not = self._render_of(type)
        if render is not None:
            format = str(render.get("format"))
            output = Output("render", format, {"output": dict(render), "of": self.render_of})
            if type == "audio" and format in _WITH_PICTURE:
                left_out[output.name] = "audio has no picture; give `render` by type to get an audio file"
            else:
                outputs.append(output)
        elif why_not:
            left_out["render"] = why_not
        if self.original:
            outputs.append(Output("original", extension))
        return outputs, left_out

    def _render_of(self, type: str | None) -> tuple[Mapping[str, Any] | None, str]:
        if self.render is None or "format" in self.render:
            return self.render, ""
        if type is not None and type in self.render:
            return self.render[type], ""
        return None, f"`render` names no output for {type or 'a recording of unknown type'}"


def formats_of(name: str, value: object) -> tuple[str, ...]:
    """Return formats as a tuple.

    :param name: The parameter.
    :param value: One format, a list of them, or ``None``.
    :raises ValueError: If one cannot be a format.
    """
    values = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(each, str) for each in values):
        raise ValueError(f"{name} must be a format or a list of formats, not {value!r}")
    for each in values:
        if "{" not in each and not _FORMAT.fullmatch(each):
            raise ValueError(f"{name} has {each!r}, which is not the name of a format")
    return tuple(dict.fromkeys(values))


def check_frame_rate(value: object) -> None:
    """Refuse what is no frame rate.

    :param value: Frames a second: a number, or a text such as ``"25"`` or ``"30000/1001"``; ``None`` for none.
    :raises ValueError: If it is not above zero.
    """
    try:
        is_rate = value is None or (not isinstance(value, bool) and Fraction(str(value)) > 0)
    except (ValueError, ZeroDivisionError):
        is_rate = False
    if not is_rate:
        raise ValueError(f"frame_rate must be a number above zero, such as 25 or '30000/1001', not {value!r}")


def check_scripts(value: object) -> None:
    """Refuse what is neither a script nor scripts by recording.

    :param value: A text, a mapping of recordings to texts, or ``None``.
    :raises ValueError: If it is something else.
    """
    scripts = value if isinstance(value, Mapping) else {None: value}
    for name, script in scripts.items():
        if script is not None and not isinstance(script, str):
            of = "script" if name is None else f"script of {name!r}"
            raise ValueError(f"{of} must be a text, not {type(script).__name__}")


def check_render(render: object) -> None:
    """Refuse an output that names no format.

    :param render: An output of Roughy's API, or outputs by type; ``None`` for no render.
    :raises ValueError: If it is neither.
    """
    if render is None:
        return
    if isinstance(render, Mapping) and render:
        outputs = {"render": render} if "format" in render else render
        if ("format" in render or set(render) <= {"video", "audio"}) and all(
            isinstance(each, Mapping) and each.get("format") for each in outputs.values()
        ):
            for each in outputs.values():
                formats_of("render", str(each["format"]))
            try:
                json.dumps(render, allow_nan=False)
            except (TypeError, ValueError) as err:
                raise ValueError(f"render cannot be sent to Roughy: {err}") from None
            return
    raise ValueError(
        "render must be an output such as {'format': 'mp4'}, or outputs by the asset's type such as "
        f"{{'video': {{'format': 'mp4'}}, 'audio': {{'format': 'm4a'}}}}, not {render!r}"
    )
