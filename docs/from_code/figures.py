"""Figures in SVG, drawn from what the code holds, in the colours of the page, light or dark; they load nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial
from html import escape
from pathlib import Path
from types import ModuleType

from airflow_provider_roughy import operators, sensors, triggers
from airflow_provider_roughy.api import PAGE_SIZE
from airflow_provider_roughy.asset_events.payload import take_assets
from airflow_provider_roughy.compat import AirflowFailException, AirflowSensorTimeout
from airflow_provider_roughy.exceptions import api_error
from airflow_provider_roughy.http.retry import Backoff, TransferTries
from airflow_provider_roughy.lifecycle import ASSET, KINDS, Arrival, Kind, Outcome
from airflow_provider_roughy.logs import SILENT
from airflow_provider_roughy.settings import DEFAULT_WEBHOOK_ASSET
from airflow_provider_roughy.webhooks.plugin import RoughyPlugin
from from_code.tables import of_the_tree, what_the_task_does

EXAMPLES = Path(__file__).parent.parent.parent / "example_dags"

#: The looks of a figure that is shown as a file, on a light and on a dark page; `site.css` has those of the site.
STYLE = """
svg { font-family: system-ui, sans-serif; font-size: 14px; background: #fff; }
rect { fill: #f6f8fa; stroke: #afb8c1; stroke-width: 1.5; }
rect.waiting { fill: #fff; stroke: #0969da; }
rect.good { fill: #fff; stroke: #1a7f37; stroke-width: 2.5; }
rect.bad { fill: #fff; stroke: #cf222e; stroke-width: 2.5; }
rect.unpaid { fill: #fff; stroke: #bf8700; stroke-width: 2.5; }
text { fill: #1f2328; }
text.heading { font-weight: 600; }
text.code { font-family: ui-monospace, monospace; font-size: 12.5px; }
path.line { fill: none; stroke: #59636e; stroke-width: 1.5; }
polygon.head { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; }
  rect { fill: #151b23; stroke: #656c76; }
  rect.waiting, rect.good, rect.bad, rect.unpaid { fill: #0d1117; }
  text { fill: #f0f6fc; }
  path.line { stroke: #9198a1; }
  polygon.head { fill: #9198a1; }
}
"""

#: Pixels of a line of text, of a character and one of a heading (about), and between a box and its text.
LINE, CHARACTER, BOLD, PAD = 20, 7.6, 8.6, 12

_ID = "00000000-0000-7000-8000-000000000000"

#: How an outcome looks; a colour is never all that tells it.
LOOKS = {
    Outcome.WAITING: "waiting",
    Outcome.SUCCEEDED: "good",
    Outcome.FAILED: "bad",
    Outcome.PAYMENT_REQUIRED: "unpaid",
}

#: What a later start of the task does about an upload, by what its asset says.
GOES_ON = {
    Arrival.OPEN: "sends what Roughy does not have yet",
    Arrival.CLOSED: "starts a new upload",
    Arrival.ARRIVED: "sends nothing",
}


class Drawing:
    """An SVG that grows with what is drawn into it.

    :param title: What a screen reader says of it.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self._width = self._height = 0.0

    def box(
        self, x: float, y: float, lines: Iterable[str], *, look: str = "plain", width: float = 0, height: float = 0
    ) -> tuple[float, float]:
        """Draw a box around lines of text, as big as they need; return its width and height.

        :param x: Its left side.
        :param y: Its top.
        :param lines: The text; a line that begins with ``#`` is a heading, one with a backtick is code.
        :param look: A class of ``site.css``.
        :param width: The least width.
        :param height: The least height.
        """
        lines = list(lines)
        width = max(width, max(map(_width_of, lines)) + 2 * PAD)
        height = max(height, len(lines) * LINE + PAD)
        self._parts.append(f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')
        for number, line in enumerate(lines):
            self.text(x + PAD, y + (number + 1) * LINE, line)
        self._seen(x + width, y + height)
        return width, height

    def square(self, x: float, y: float, look: str) -> None:
        """Draw a small square, as Airflow's grid has one for each task of a run."""
        self._parts.append(f'<rect class="{look}" x="{x:g}" y="{y:g}" width="16" height="16" rx="3"/>')
        self._seen(x + 16, y + 16)

    def text(self, x: float, y: float, line: str, *, anchor: str = "start") -> None:
        """Write a line of text, its base line at ``y``."""
        look = {"#": "heading", "`": "code"}.get(line[:1], "words")
        words = line.lstrip("#` ")
        self._parts.append(f'<text class="{look}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>')
        if anchor == "start":
            self._seen(x + _width_of(line), y + 6)

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw a line through points, with a head at the last."""
        path = " ".join(f"{'L' if number else 'M'}{x:g} {y:g}" for number, (x, y) in enumerate(points))
        self._parts.append(f'<path class="line" d="{path}"/>')
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        if abs(x1 - x0) > abs(y1 - y0):
            dy = 0
        else:
            dx = 0
        left = (x1 - 8 * dx - 4 * dy, y1 - 8 * dy - 4 * dx)
        right = (x1 - 8 * dx + 4 * dy, y1 - 8 * dy + 4 * dx)
        corners = " ".join(f"{x:g},{y:g}" for x, y in ((x1, y1), left, right))
        self._parts.append(f'<polygon class="head" points="{corners}"/>')
        for x, y in points:
            self._seen(x, y)

    def _seen(self, x: float, y: float) -> None:
        self._width, self._height = max(self._width, x), max(self._height, y)

    def __str__(self) -> str:
        width, height = round(self._width + 4), round(self._height + 4)
        return (
            f'<svg class="figure" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'role="img"><title>{escape(self._title)}</title>{"".join(self._parts)}</svg>'
        )


def _width_of(line: str) -> float:
    return len(line.lstrip("#` ")) * (BOLD if line.startswith("#") else CHARACTER)


def life_of(kind: Kind) -> str:
    """Draw the states of a kind: those in which a task waits, in their order, and the ends, with what it does there."""
    drawing = Drawing(f"The states of {kind.name}s, and what a task makes of each")
    waiting = [state for state, outcome in kind.outcomes.items() if outcome is Outcome.WAITING]
    # What is paid for later stands under what it becomes then.
    order = [Outcome.SUCCEEDED, Outcome.PAYMENT_REQUIRED, Outcome.FAILED]
    ends = sorted(kind.ends, key=lambda state: order.index(kind.outcomes[state]))
    gap, row = 34, 62
    top = (len(ends) - 1) * row / 2 + 22
    # The frame first: what is drawn later lies above it.
    inside = sum(len(state) * CHARACTER + 2 * PAD for state in waiting) + gap * (len(waiting) - 1)
    right, _ = drawing.box(2, top - 36, ["# the task waits"], width=inside + 28, height=82)
    x = 16.0
    for number, state in enumerate(waiting):
        if number:
            drawing.arrow((x - gap, top + 16), (x, top + 16))
        x += drawing.box(x, top, [f"`{state}"], look=LOOKS[Outcome.WAITING])[0] + gap
    far = right + 60
    width = max(len(state) for state in ends) * CHARACTER + 2 * PAD
    tops = {state: 14 + number * row for number, state in enumerate(ends)}
    for state, y in tops.items():
        drawing.box(far, y, [f"`{state}"], look=LOOKS[kind.outcomes[state]], width=width)
        drawing.arrow((right + 2, top + 8), (right + 26, top + 8), (right + 26, y + 16), (far, y + 16))
        for line, words in enumerate(what_the_task_does(kind, state)):
            drawing.text(far + width + 16, y + 20 + line * LINE, words)
        if kind.outcomes[state] is Outcome.PAYMENT_REQUIRED:
            middle = far + width / 2
            drawing.arrow((middle, y), (middle, tops[ends[0]] + 32))
            drawing.text(middle + 10, y - 10, "after a top-up")
    return str(drawing)


def what_a_retry_does() -> str:
    """Draw which errors are tried again, by whom, and what a new try of the task finds."""
    drawing = Drawing("What is retried after an error, and by whom")
    requests, transfers = Backoff(), TransferTries("", None, SILENT)._backoff
    told = [status for status in range(400, 500) if api_error("HEAD /", status=status).transient]
    final = [
        error.__name__
        for _, error in of_the_tree()
        if _ends(error) and not any(_ends(parent) for parent in error.__bases__ if parent.__name__.startswith("Roughy"))
    ]
    passing = [
        "# A retry may help",
        f"no reply; {', '.join(map(str, told))}, 5xx",
        "a proxy's page, a reply that cannot be read",
    ]
    again = [
        "# The same request is sent again",
        f"{requests.tries} tries, {requests.first:g} s apart, doubling to {requests.longest:g} s;",
        f"a transfer: {transfers.tries} tries without progress,",
        f"up to {transfers.longest:g} s apart.",
        f"Retry-After is obeyed for up to {requests.patience / 60:g} minutes.",
    ]
    retried = [
        "# Airflow retries the task",
        "An upload (Airflow 3.3, or with a ledger), if its asset is",
        *(f"· {arrival.value}: {GOES_ON[arrival]}" for arrival in Arrival),
        "A batch uploads only what is missing.",
        "A cut or render: the same request finds the existing one.",
        "A download starts again; the old file stays until then.",
    ]
    width, height = drawing.box(2, 2, ["# An error"], width=470)
    y = 2 + height
    for lines in (passing, again, retried):
        drawing.arrow((235, y), (235, y + 28))
        _, height = drawing.box(2, y + 28, lines, width=width)
        y += 28 + height
    x = 2 + width + 60
    drawing.arrow((2 + width, 18), (x + 130, 18), (x + 130, 62))
    drawing.box(
        x, 62, ["# No retry can help: the task", "# fails and uses no retries", *(f"`{name}" for name in final)]
    )
    return str(drawing)


def _ends(error: type) -> bool:
    return issubclass(error, (AirflowFailException, AirflowSensorTimeout))


def where_waiting_happens() -> str:
    """Draw who waits where, and what is asked of Roughy."""
    drawing = Drawing("Where tasks wait, and what they request")
    waiting = [*_that_wait(operators), *_that_wait(sensors)]
    of_ours = [
        name
        for name, each in vars(triggers).items()
        if inspect.isclass(each) and issubclass(each, triggers._WaitingTrigger) and name.startswith("Roughy")
    ]
    asked = []
    for kind in KINDS.values():
        asked.append(f"`{str(kind.get(_ID).request).replace(_ID, '{id}')}")
        if kind.list:
            listed = kind.list(state=kind.working, offset=0).request
            asked.append(f"`{listed}?state={listed.params['state']}")
    worker = ["# On a worker", *(f"`{name}" for name in waiting)]
    width, height = drawing.box(2, 2, worker)
    triggerer = ["# In the triggerer", *(f"`{name}" for name in of_ours)]
    x = 2 + width + 150
    middle, inner = drawing.box(x, 2, triggerer)
    drawing.arrow((2 + width, 40), (x, 40))
    drawing.text(2 + width + 8, 32, "deferrable=True")
    poll = ["# SharedPoll", "one for each connection and kind", "of resource, for all waiters"]
    middle = max(middle, drawing.box(x, inner + 42, poll, width=middle)[0])
    drawing.arrow((x + middle / 2, 2 + inner), (x + middle / 2, inner + 42))
    drawing.text(x + middle / 2 + 8, inner + 28, "no worker slot")
    far = x + middle + 220
    _, deep = drawing.box(far, 2, ["# Roughy", *asked])
    drawing.arrow((x + middle, inner + 74), (far + 60, inner + 74), (far + 60, 2 + deep))
    drawing.text(x + middle + 8, inner + 66, f"one each, or a list of {PAGE_SIZE} a page:")
    drawing.text(x + middle + 8, inner + 94, "whichever are fewer requests")
    bottom = max(2 + height, inner + 130) + 40
    drawing.arrow((60, 2 + height), (60, bottom), (far + 120, bottom), (far + 120, 2 + deep))
    drawing.text(
        72,
        bottom - 10,
        'deferrable=False: one request each. mode="reschedule" frees the worker slot between polls.',
    )
    return str(drawing)


def what_starts_a_dag() -> str:
    """Draw the two ways by which media of others starts a DAG, and where they meet."""
    drawing = Drawing("How media that becomes ready starts a DAG")
    # Not from its signature, in which Sphinx keeps the words of a default.
    interval = triggers.RoughyAssetsReadyTrigger(ledger="/data/taken").poll_interval
    states = ["# At Roughy, an asset becomes", *(f"`{state}" for state in ASSET.ends)]
    (app,) = RoughyPlugin.fastapi_apps
    width, height = drawing.box(2, 60, states)
    x = 2 + width + 70
    watcher = [
        "# In a triggerer: an AssetWatcher",
        f"`{triggers.RoughyAssetsReadyTrigger.__name__}",
        f"polls every {interval:g} s, by default,",
        "and repeats until all assets are taken",
    ]
    webhook = [
        "# In the API server: a webhook",
        f"`POST {app['url_prefix']}/webhooks",
        "checks the signature, reads the",
        "state from the API; within seconds",
    ]
    inner = drawing.box(x, 2, watcher)[0]
    drawing.box(x, 142, webhook, width=inner)
    middle = 60 + height / 2
    for y in (50.0, 190.0):
        drawing.arrow((2 + width, middle), (2 + width + 34, middle), (2 + width + 34, y), (x, y))
    far = x + inner + 70
    event = [
        "# An event of an Airflow asset",
        f"`Asset({DEFAULT_WEBHOOK_ASSET!r})",
        '`{"ready": [ids]}',
    ]
    last, tall = drawing.box(far, 30, event)
    for y in (50.0, 190.0):
        drawing.arrow((x + inner, y), (x + inner + 34, y), (x + inner + 34, 66), (far, 66))
    run = ["# A run of your DAG", f"`{take_assets.__name__}(context, ledger=…)", "gives each asset to one run"]
    drawing.box(far, 142, run, width=last)
    drawing.arrow((far + last / 2, 30 + tall), (far + last / 2, 142))
    return str(drawing)


def grid() -> str:
    """Draw Airflow's grid of the example DAG that makes rough cuts, and the recordings of its tasks."""
    drawing = Drawing("Airflow's grid: the tasks of each night; the recordings are in logs and XComs")
    nights = ("1 Mar", "2 Mar", "3 Mar")
    names = re.findall(r'task_id="(\w+)"', (EXAMPLES / "roughy_rough_cut.py").read_text(encoding="utf-8"))
    drawing.text(2, 20, "# roughy_rough_cut")
    for number, night in enumerate(nights):
        drawing.text(200 + 56 * number, 20, night)
    for row, name in enumerate(names):
        y = 32 + 28 * row
        drawing.text(2, y + 13, f"`{name}")
        for number in range(len(nights)):
            waits = number == 2 and name == names[-1]
            drawing.square(208 + 56 * number, y, "waiting" if waits else "good")
    drawing.text(2, 32 + 28 * len(names) + 20, "3 Mar: deferred, takes no worker slot")
    x = 420
    drawing.text(x, 20, f"# XComs of {names[-1]}, 2 Mar")
    for row, (xcom, name, why) in enumerate(
        (
            ("outputs", "statement.mp4", "captions.srt, timeline.fcpxml, render.mp4"),
            ("outputs", "interview.mp3", "captions.srt, render.m4a"),
            ("left_out", "interview.mp3", "timeline.fcpxml: audio has no frame rate"),
        )
    ):
        y = 44 + 24 * row
        drawing.text(x, y, f"`{xcom}")
        drawing.text(x + 170, y, f"`{name}")
        drawing.text(x + 300, y, why)
    y = 32 + 28 * 4
    drawing.text(x, y, "# XComs of ingest, 3 Mar: the other recordings")
    for row, (xcom, name, why) in enumerate(
        (
            ("pending_payment", "panel.mp4", "8 credits are missing"),
            ("rejected", "notes.mp3", "neither audio nor video"),
            ("already_ingested", "12", "of earlier nights"),
        )
    ):
        drawing.text(x, y + 24 + 24 * row, f"`{xcom}")
        drawing.text(x + 170, y + 24 + 24 * row, f"`{name}")
        drawing.text(x + 270, y + 24 + 24 * row, why)
    return str(drawing)


def standalone(figure: str) -> str:
    """Return a figure as a file of its own, with the colours that the site's style sheet gives it otherwise."""
    return figure.replace("</title>", f"</title><style>{STYLE}</style>", 1) + "\n"


def _that_wait(module: ModuleType) -> list[str]:
    named = [name for name in dir(module) if name.startswith("Roughy")]
    return [name for name in named if "deferrable" in _parameters(getattr(module, name))]


def _parameters(cls: type) -> set[str]:
    makers = [vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)]
    return {name for make in makers for name in inspect.signature(make).parameters}


#: By the names that pages know.
FIGURES: dict[str, Callable[[], str]] = {
    **{f"life-of-{kind.name}": partial(life_of, kind) for kind in KINDS.values()},
    "what-a-retry-does": what_a_retry_does,
    "where-waiting-happens": where_waiting_happens,
    "what-starts-a-dag": what_starts_a_dag,
    "grid": grid,
}
