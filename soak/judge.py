"""Checks after a soak: nothing lost, nothing duplicated, no secret leaked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: How many names a failed check lists.
_MAX_NAMES = 5


@dataclass(frozen=True)
class Recording:
    """A file that was put into the folder.

    :param name: Its name.
    :param kind: Whether Roughy can read it, finds only after the upload that it cannot, or rejects its first bytes.
    :param sha256: The SHA-256 of its bytes; no two are the same.
    :param credits: Its price.
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
class SoakResult:
    """The result of a soak.

    :param recordings: The files that were put into the folder.
    :param uploaded_by_others: Assets that were uploaded without Airflow; each costs one credit.
    :param assets: All assets of the account, from the emulator.
    :param cuts: All cuts.
    :param renders: All renders.
    :param spent: The credits that were charged.
    :param ledger: The state of each file in the ledger, by name.
    :param taken: Assets that runs of the watcher's DAG returned, one after another.
    :param captions: Assets with caption files.
    :param downloads: SHA-256 of the downloaded videos by asset; ``None`` if a file cannot be decoded.
    :param unfinished_files: Temporary files of transfers, under hidden names.
    :param failed_runs: Runs that did not succeed.
    :param kills: The number of kills.
    :param lost_creations: Requests for a new asset whose reply was lost.
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
    failed_runs: Collection[str] = ()
    kills: int = 0
    lost_creations: int = 0
    leaks: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    :param what: What was checked.
    :param expected: The expected number.
    :param found: The actual number.
    :param wrong: The names of everything that fails the check.
    """

    what: str
    expected: str
    found: str
    wrong: Sequence[str] = ()

    @property
    def is_good(self) -> bool:
        """Whether the check holds."""
        return not self.wrong

    def __str__(self) -> str:
        named = ", ".join(self.wrong[:_MAX_NAMES]) + (
            f" and {len(self.wrong) - _MAX_NAMES} more" * (len(self.wrong) > _MAX_NAMES)
        )
        return f"{self.what:<44}{self.expected:>14}{self.found:>10}  {f'FAILED: {named}' if self.wrong else 'holds'}"


def judge(result: SoakResult) -> Iterator[Finding]:
    """Compare the result of a soak with what is expected."""
    stored: dict[str, list[Mapping[str, Any]]] = {}
    for asset in result.assets:
        # An asset whose upload is incomplete was not charged and has no content.
        if asset["state"] != "pending_upload":
            stored.setdefault(asset["sha256"], []).append(asset)
    good = [recording for recording in result.recordings if recording.kind == "good"]
    damaged = [recording for recording in result.recordings if recording.kind == "damaged"]
    rejected = [recording for recording in result.recordings if recording.kind == "rejected"]

    yield _each_once("uploaded, and ready", {r.name: _in_state(stored.get(r.sha256), "ready") for r in good})
    yield _each_once(
        "damaged: uploaded, and failed", {r.name: _in_state(stored.get(r.sha256), "failed") for r in damaged}
    )
    yield _each_once(
        "not media: rejected in the ledger", {r.name: result.ledger.get(r.name) == "rejected" for r in rejected}
    )
    ours = {recording.sha256 for recording in result.recordings if recording.kind != "rejected"}
    strange = [
        asset["id"]
        for sha256, assets in stored.items()
        for asset in assets
        if sha256 not in ours and asset["id"] not in result.uploaded_by_others
    ]
    yield Finding("assets of no source file", "0", str(len(strange)), strange)
    ends = {"good": "ready", "damaged": "failed", "rejected": "rejected"}
    wrong = [
        f"{r.name} {result.ledger.get(r.name)}" for r in result.recordings if result.ledger.get(r.name) != ends[r.kind]
    ]
    yield Finding("in the ledger, in the right state", *_count(result.recordings, wrong), wrong)
    price = sum(recording.credits for recording in good) + len(result.uploaded_by_others)
    yield Finding(
        "credits", str(price), str(result.spent), [] if result.spent == price else [f"{result.spent - price:+} credits"]
    )

    videos = {r.name: stored[r.sha256][0]["id"] for r in good if r.is_video and r.sha256 in stored}
    for what, made in (("cut", result.cuts), ("rendered", result.renders)):
        done = Counter(each["asset_id"] for each in made if each["state"] == "completed")
        yield _each_once(what, {name: done[asset_id] for name, asset_id in videos.items()})
    yield _each_once("captions written", {name: asset_id in result.captions for name, asset_id in videos.items()})
    renders = {render["asset_id"]: render["sha256"] for render in result.renders}
    whole = {
        name: result.downloads.get(asset_id) is not None and result.downloads[asset_id] == renders.get(asset_id)
        for name, asset_id in videos.items()
    }
    yield _each_once("downloaded whole", whole)

    taken = Counter(result.taken)
    ready = [asset["id"] for asset in result.assets if asset["state"] == "ready"]
    yield _each_once("taken by the watcher's DAG", {asset_id: taken[asset_id] for asset_id in [*ready, *taken]})
    missing = set(result.uploaded_by_others) - set(ready)
    yield Finding(
        "  of them uploaded by others",
        *_count(result.uploaded_by_others, missing),
        [f"{id} not ready" for id in missing],
    )

    orphans = [asset["id"] for asset in result.assets if asset["state"] == "pending_upload"]
    bound = result.kills + result.lost_creations
    yield Finding(
        "orphans: assets without an upload", f"<= {bound}", str(len(orphans)), orphans if len(orphans) > bound else ()
    )
    unfinished = sorted(result.unfinished_files)
    yield Finding(
        "unfinished files",
        f"<= {result.kills}",
        str(len(unfinished)),
        unfinished if len(unfinished) > result.kills else (),
    )
    yield Finding("runs that did not succeed", "0", str(len(result.failed_runs)), sorted(result.failed_runs))
    for secret, places in result.leaks.items():
        yield Finding(f"places with {secret}", "0", str(len(places)), sorted(places))


def _each_once(what: str, times: Mapping[str, int]) -> Finding:
    wrong = [f"{name} {'lost' if not count else f'{count} times'}" for name, count in times.items() if count != 1]
    return Finding(what, *_count(times, wrong), wrong)


def _count(all: Collection[object], wrong: Collection[object]) -> tuple[str, str]:
    return str(len(all)), str(len(all) - len(wrong))


def _in_state(assets: Sequence[Mapping[str, Any]] | None, state: str) -> int:
    """Return the number of assets of the same bytes; 0 if one of them is in another state."""
    assets = assets or ()
    return len(assets) if all(asset["state"] == state for asset in assets) else 0
