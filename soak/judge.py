"""Checks after a soak: nothing lost, nothing doubled, no secret leaked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: Names that are written out, where something is not as it should be.
_NAMED = 5


@dataclass(frozen=True)
class Recording:
    """A file that somebody put into the folder.

    :param name: Its name.
    :param kind: Whether Roughy can read it, can tell only after the upload that it cannot, or rejects its first bytes.
    :param sha256: Of its bytes; no two are the same.
    :param credits: What it costs.
    """

    name: str
    kind: Literal["good", "damaged", "rejected"]
    sha256: str
    credits: int

    @property
    def is_video(self) -> bool:
        """Whether a rough cut is made of it."""
        return self.kind == "good" and self.name.endswith(".mp4")


@dataclass
class Night:
    """What is left of a night.

    :param recordings: What was put into the folder.
    :param uploaded_by_others: Assets that came another way; each costs a credit.
    :param assets: All of the account, as the emulator knows them.
    :param cuts: Likewise.
    :param renders: Likewise.
    :param spent: Credits that are gone.
    :param ledger: The state of each file in the ledger, by name.
    :param taken: Assets that runs of the watcher's DAG returned, one after another.
    :param captions: Assets of which there are captions.
    :param downloads: Of the videos that were downloaded, SHA-256 by asset; ``None`` of what does not open.
    :param unfinished_files: What a transfer left behind, under hidden names.
    :param runs_not_well: Runs that did not succeed.
    :param kills: How often something was killed.
    :param lost_creations: Requests for a new asset whose reply did not arrive.
    :param leaks: Where secrets were found, by the kind of secret.
    """

    recordings: Sequence[Recording] = ()
    uploaded_by_others: Collection[str] = ()
    assets: Sequence[Mapping[str, Any]] = ()
    cuts: Sequence[Mapping[str, Any]] = ()
    renders: Sequence[Mapping[str, Any]] = ()
    spent: int = 0
    ledger: Mapping[str, str] = field(default_factory=dict)
    taken: Sequence[str] = ()
    captions: Collection[str] = ()
    downloads: Mapping[str, str | None] = field(default_factory=dict)
    unfinished_files: Collection[str] = ()
    runs_not_well: Collection[str] = ()
    kills: int = 0
    lost_creations: int = 0
    leaks: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    :param what: What was looked at.
    :param expected: What should be, in figures.
    :param found: What is.
    :param wrong: What is not as it should be, by name.
    """

    what: str
    expected: str
    found: str
    wrong: Sequence[str] = ()

    @property
    def is_good(self) -> bool:
        """Whether all is as it should be."""
        return not self.wrong

    def __str__(self) -> str:
        named = ", ".join(self.wrong[:_NAMED]) + (f" and {len(self.wrong) - _NAMED} more" * (len(self.wrong) > _NAMED))
        return f"{self.what:<44}{self.expected:>14}{self.found:>10}  {f'FAILED: {named}' if self.wrong else 'holds'}"


def judge(night: Night) -> Iterator[Finding]:
    """Compare what is with what should be."""
    stored: dict[str, list[Mapping[str, Any]]] = {}
    for asset in night.assets:
        # An asset that got no byte, or not all, cost nothing and holds nothing.
        if asset["state"] != "pending_upload":
            stored.setdefault(asset["sha256"], []).append(asset)
    good = [recording for recording in night.recordings if recording.kind == "good"]
    damaged = [recording for recording in night.recordings if recording.kind == "damaged"]
    rejected = [recording for recording in night.recordings if recording.kind == "rejected"]

    yield _each_once("uploaded, and ready", {r.name: _in_state(stored.get(r.sha256), "ready") for r in good})
    yield _each_once(
        "damaged: uploaded, and failed", {r.name: _in_state(stored.get(r.sha256), "failed") for r in damaged}
    )
    yield _each_once(
        "not media: rejected in the ledger", {r.name: night.ledger.get(r.name) == "rejected" for r in rejected}
    )
    ours = {recording.sha256 for recording in night.recordings if recording.kind != "rejected"}
    strange = [
        asset["id"]
        for sha256, assets in stored.items()
        for asset in assets
        if sha256 not in ours and asset["id"] not in night.uploaded_by_others
    ]
    yield Finding("assets of no source file", "0", str(len(strange)), strange)
    ends = {"good": "ready", "damaged": "failed", "rejected": "rejected"}
    wrong = [
        f"{r.name} {night.ledger.get(r.name)}" for r in night.recordings if night.ledger.get(r.name) != ends[r.kind]
    ]
    yield Finding("in the ledger, in the right state", *_count(night.recordings, wrong), wrong)
    price = sum(recording.credits for recording in good) + len(night.uploaded_by_others)
    yield Finding(
        "credits", str(price), str(night.spent), [] if night.spent == price else [f"{night.spent - price:+} credits"]
    )

    videos = {r.name: stored[r.sha256][0]["id"] for r in good if r.is_video and r.sha256 in stored}
    for what, made in (("cut", night.cuts), ("rendered", night.renders)):
        done = Counter(each["asset_id"] for each in made if each["state"] == "completed")
        yield _each_once(what, {name: done[asset_id] for name, asset_id in videos.items()})
    yield _each_once("captions written", {name: asset_id in night.captions for name, asset_id in videos.items()})
    renders = {render["asset_id"]: render["sha256"] for render in night.renders}
    whole = {
        name: night.downloads.get(asset_id) is not None and night.downloads[asset_id] == renders.get(asset_id)
        for name, asset_id in videos.items()
    }
    yield _each_once("downloaded whole", whole)

    taken = Counter(night.taken)
    ready = [asset["id"] for asset in night.assets if asset["state"] == "ready"]
    yield _each_once("taken by the watcher's DAG", {asset_id: taken[asset_id] for asset_id in [*ready, *taken]})
    missing = set(night.uploaded_by_others) - set(ready)
    yield Finding(
        "  of them uploaded by others",
        *_count(night.uploaded_by_others, missing),
        [f"{id} not ready" for id in missing],
    )

    orphans = [asset["id"] for asset in night.assets if asset["state"] == "pending_upload"]
    bound = night.kills + night.lost_creations
    yield Finding(
        "orphans: assets without an upload", f"<= {bound}", str(len(orphans)), orphans if len(orphans) > bound else ()
    )
    unfinished = sorted(night.unfinished_files)
    yield Finding(
        "unfinished files",
        f"<= {night.kills}",
        str(len(unfinished)),
        unfinished if len(unfinished) > night.kills else (),
    )
    yield Finding("runs that did not succeed", "0", str(len(night.runs_not_well)), sorted(night.runs_not_well))
    for secret, places in night.leaks.items():
        yield Finding(f"places with {secret}", "0", str(len(places)), sorted(places))


def _each_once(what: str, times: Mapping[str, int]) -> Finding:
    wrong = [f"{name} {'lost' if not count else f'{count} times'}" for name, count in times.items() if count != 1]
    return Finding(what, *_count(times, wrong), wrong)


def _count(all: Collection[object], wrong: Collection[object]) -> tuple[str, str]:
    return str(len(all)), str(len(all) - len(wrong))


def _in_state(assets: Sequence[Mapping[str, Any]] | None, state: str) -> int:
    """Count the assets of the same bytes; none counts if one is in another state."""
    assets = assets or ()
    return len(assets) if all(asset["state"] == state for asset in assets) else 0
