"""The protocol of claims: every interleaving of its tries, driven through the very generators that production runs.

A *world* is what storage and service hold. An *actor* is one try; it is at a *node*, which is a paused generator. As a
generator cannot be copied, a node is reached by replaying the replies that led there; nodes whose frames are alike are
one node. At every state each actor may take its next step, with each reply that is possible, or die; storage and
service may do what they do by themselves: an unfinished asset expires, and once the result exists any version may be
removed. Leases say whatever they like, so that it does not matter which run a try belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import GeneratorType
from typing import Any, NamedTuple

import pytest

from airflow_provider_roughy.ledger import claims
from airflow_provider_roughy.ledger.claims import (
    AssetArrival,
    CancelAsset,
    CreateAsset,
    CreateResult,
    CreateVersion,
    Done,
    FindLatest,
    FindResult,
    Held,
    ReadAsset,
    RemoveVersions,
    SendBytes,
    Step,
    Steps,
    Uploaded,
    drive,
)
from airflow_provider_roughy.ledger.entries import ClaimOwner, Result, Version

KEY = "a" * 40
ME = ClaimOwner("dag.task", "night 1", "try 1")
RESULT = Result(KEY, "/in/a.wav", {}, str(ME), "ready", "0")

#: An asset: without bytes, with some, with all of them, and no longer there.
EMPTY, PARTIAL, FULL, GONE = range(4)
#: The place of an actor that has ended or died.
ENDED = -1

#: What must not be: the recording is uploaded twice, or nobody finds the asset that has its bytes.
TWO_UPLOADS = "two assets with bytes"
LOST = "an uploaded recording that is neither done nor open"


class World(NamedTuple):
    """What storage and service hold.

    :ivar versions: The stored versions: number, asset and state, by number.
    :ivar done: Whether the result is stored.
    :ivar assets: The state of each asset.
    """

    versions: tuple[tuple[int, int | None, str], ...] = ()
    done: bool = False
    assets: tuple[int, ...] = ()

    def with_asset(self, asset: int, state: int) -> World:
        return self._replace(assets=(*self.assets[:asset], state, *self.assets[asset + 1 :]))

    def without_version(self, n: int) -> World:
        return self._replace(versions=tuple(version for version in self.versions if version[0] != n))


class Reply(NamedTuple):
    """A reply to a step, or an error raised at it.

    :ivar value: What is sent to the generator, in a form that can be compared.
    :ivar may_supersede: What the lease says, truly or not, where that is asked.
    :ivar fails: Whether an error is raised instead.
    """

    value: Any = None
    may_supersede: bool = True
    fails: bool = False


class LedgerDownError(Exception):
    """The storage did not answer. It may have done what it was asked for."""


def upload_and_complete(may_supersede: Callable[[Version], bool]) -> Steps[Any]:
    """One try as a batch makes it."""
    ended = yield from claims.upload(KEY, "/in/a.wav", {}, ME, may_supersede=may_supersede)
    if isinstance(ended, Uploaded):
        yield from claims.complete(RESULT)


def upload_and_checkpoint(may_supersede: Callable[[Version], bool]) -> Steps[Any]:
    """One try that stores when all bytes are sent; what is found sent is not uploaded, but waited for."""
    latest = yield FindLatest(KEY)
    ended: Any
    if latest is not None and latest.state == "sent":
        ended = yield from claims.supersede(latest, ME)
    else:
        ended = yield from claims.upload(KEY, "/in/a.wav", {}, ME, may_supersede=may_supersede)
        if isinstance(ended, Uploaded):
            ended = yield from claims.checkpoint(ended.version, state="sent")
    if isinstance(ended, Version):
        yield from claims.complete(RESULT)


@dataclass
class Found:
    """What an exploration came to.

    :param states: How many states were seen.
    :param ends: How many of them have no actor that is alive.
    :param violation: What is wrong, if something is, and the steps that lead there.
    """

    states: int
    ends: int
    violation: str | None = None
    trace: tuple[str, ...] = ()


class Explorer:
    """Explores every interleaving.

    :param attempt: One try.
    :param tries: How many there are.
    :param max_assets: After so many, a try that wants another one is stuck.
    :param overwrites: Whether the storage ignores "only if absent".
    :param removes_early: Whether versions may be removed before there is a result.
    :param looks_for: The violation to stop at; by default, any.
    """

    def __init__(
        self,
        attempt: Callable[[Callable[[Version], bool]], Steps[Any]] = upload_and_complete,
        *,
        tries: int = 3,
        max_assets: int = 3,
        overwrites: bool = False,
        removes_early: bool = False,
        looks_for: str | None = None,
    ) -> None:
        self._attempt = attempt
        self._tries = tries
        self._max_assets = max_assets
        self._overwrites = overwrites
        self._removes_early = removes_early
        self._looks_for = looks_for
        #: The step at which each node is paused, and replies that lead there.
        self._steps: list[Step] = []
        self._replies: list[tuple[Reply, ...]] = []
        self._ids: dict[Any, int] = {}
        self._after: dict[tuple[int, Reply], int] = {}
        self.start = self._node(())

    def explore(self) -> Found:
        """Visit every state, and stop at the first that must not be, or at the first with the violation looked for."""
        first = ((self.start,) * self._tries, World())
        seen: dict[Any, Any] = {first: None}
        stack = [first]
        ends = 0
        while stack:
            state = stack.pop()
            actors, world = state
            violation = self._violation(world)
            if actors[0] == actors[-1] == ENDED:
                ends += 1
                violation = violation or self._later_violation(world)
            if violation is not None and self._looks_for in (None, violation):
                return Found(len(seen), ends, violation, self._trace(seen, state))
            for label, after in self._moves(actors, world):
                if after not in seen:
                    seen[after] = (state, label)
                    stack.append(after)
        return Found(len(seen), ends)

    # ---- What must not be

    @staticmethod
    def _violation(world: World) -> str | None:
        full = [asset for asset, state in enumerate(world.assets) if state == FULL]
        if len(full) > 1:
            return TWO_UPLOADS
        if full and not world.done and (not world.versions or world.versions[-1][1] != full[0]):
            return LOST
        if world.done and not full:
            return "a result without an upload"
        return None

    @cache  # noqa: B019 - explorers are few.
    def _later_violation(self, world: World) -> str | None:
        """Let a later try come alone, for whom the leases of all others have expired."""
        place, steps = self.start, 0
        while place != ENDED:
            steps += 1
            if steps > 60:
                return "a later try never ends"
            honest = [move for move in self._outcomes(place, world) if not move[1].fails and move[1].may_supersede]
            if not honest:
                return None  # No more assets in this model.
            # Of what a list may show, the latest version comes first.
            _, reply, world = honest[0]
            place = self._follow(place, reply)
        if not world.done or world.assets.count(FULL) != 1:
            return "a later try alone does not come to exactly one upload and its result"
        return self._violation(world)

    # ---- What may happen next

    def _moves(self, actors: tuple[int, ...], world: World) -> Iterator[tuple[str, Any]]:
        for i, place in enumerate(actors):
            if place == ENDED or place in actors[:i]:
                continue  # Tries at the same node are alike.
            others = actors[:i] + actors[i + 1 :]
            for label, after, then in self._ways(place, world):
                yield label, (tuple(sorted((*others, after))), then)
        for label, then in self._changes(world):
            yield label, (actors, then)

    @cache  # noqa: B019
    def _ways(self, place: int, world: World) -> tuple[tuple[str, int, World], ...]:
        """Return what one actor may do: in words, where it is then, and the world after it."""
        name = f"try at {place} ({type(self._steps[place]).__name__})"
        outcomes = [
            (f"{name}: {label}", self._follow(place, reply), then)
            for label, reply, then in self._outcomes(place, world)
        ]
        return ((f"{name}: dies", ENDED, world), *outcomes)

    @cache  # noqa: B019
    def _changes(self, world: World) -> tuple[tuple[str, World], ...]:
        """Return what storage and service may do by themselves."""
        expired = [
            (f"asset {asset} expires", world.with_asset(asset, GONE))
            for asset, state in enumerate(world.assets)
            if state in (EMPTY, PARTIAL)
        ]
        may_remove = world.done or self._removes_early
        removed = [(f"version {n} is removed", world.without_version(n)) for n, *_ in world.versions if may_remove]
        return (*expired, *removed)

    def _outcomes(self, place: int, world: World) -> Iterator[tuple[str, Reply, World]]:
        """Yield what may come of a step: in words, the reply, and the world after it. An honest outcome comes first."""
        step = self._steps[place]
        match step:
            case FindResult(may_be_stale=may_be_stale):
                yield f"looks for a result: {world.done}", Reply(world.done), world
                if world.done and may_be_stale:
                    yield "looks for a result on an old list", Reply(False), world
                yield "looks for a result: error", Reply(fails=True), world
            case FindLatest():
                for version in [*reversed(world.versions), None]:
                    yield f"reads {version}", Reply(version), world
                    if version is not None:
                        yield f"reads {version}, held", Reply(version, may_supersede=False), world
            case CreateVersion(version=version):
                stored = (version.n, None if version.asset_id is None else int(version.asset_id), str(version.state))
                there = [each for each in world.versions if each[0] == version.n]
                is_mine = not there or self._overwrites
                kept = world.without_version(version.n) if is_mine else world
                after = kept._replace(versions=tuple(sorted((*kept.versions, stored)))) if is_mine else world
                yield f"creates {stored}: {is_mine}", Reply(is_mine), after
                yield f"creates {stored}: reply lost", Reply(fails=True), after
                yield f"creates {stored}: request lost", Reply(fails=True), world
            case CreateResult():
                yield "creates the result", Reply(not world.done), world._replace(done=True)
                yield "creates the result: reply lost", Reply(fails=True), world._replace(done=True)
            case RemoveVersions(first=first, last=last):
                after = world
                for n in range(first, last + 1):
                    after = after.without_version(n)
                yield f"removes versions {first} to {last}", Reply(), after
            case CreateAsset():
                if len(world.assets) < self._max_assets:
                    asset = len(world.assets)
                    yield f"creates asset {asset}", Reply(str(asset)), world._replace(assets=(*world.assets, EMPTY))
            case ReadAsset(asset_id=asset_id):
                arrival = (AssetArrival.OPEN, AssetArrival.OPEN, AssetArrival.ARRIVED, AssetArrival.GONE)
                said = arrival[world.assets[int(asset_id)]]
                yield f"reads asset {asset_id}: {said}", Reply(said), world
            case CancelAsset(asset_id=asset_id):
                asset = int(asset_id)
                after = world.with_asset(asset, GONE) if world.assets[asset] == EMPTY else world
                yield f"cancels asset {asset}", Reply(), after
                yield f"cancels asset {asset}: error", Reply(fails=True), world
            case SendBytes(asset_id=asset_id):
                yield from self._sends(int(asset_id), world)

    def _sends(self, asset: int, world: World) -> Iterator[tuple[str, Reply, World]]:
        state = world.assets[asset]
        if state == GONE:
            yield f"sends to asset {asset}: gone", Reply(False), world
            return
        yield f"sends all to asset {asset}", Reply(True), world.with_asset(asset, FULL)
        if state != FULL:
            # And dies, or goes on after others have done whatever they do.
            yield f"sends a part to asset {asset}", Reply("part"), world.with_asset(asset, PARTIAL)

    # ---- Nodes

    def _follow(self, place: int, reply: Reply) -> int:
        if reply.value == "part":
            return place
        after = self._after.get((place, reply))
        if after is None:
            after = self._after[place, reply] = self._node((*self._replies[place], reply))
        return after

    def _node(self, replies: tuple[Reply, ...]) -> int:
        """Replay an actor, and return the node at which it pauses."""
        lease = [True]
        steps = self._attempt(lambda version: lease[0])
        try:
            step = next(steps)
            for reply in replies:
                lease[0] = reply.may_supersede
                step = steps.throw(LedgerDownError()) if reply.fails else steps.send(_value(step, reply))
        except (StopIteration, LedgerDownError):
            return ENDED
        frames = (step.__class__, repr(step), *_frames(steps))
        if frames not in self._ids:
            self._ids[frames] = len(self._steps)
            self._steps.append(step)
            self._replies.append(replies)
        return self._ids[frames]

    @staticmethod
    def _trace(seen: dict[Any, Any], state: Any) -> tuple[str, ...]:
        trace: list[str] = []
        while seen[state] is not None:
            state, label = seen[state]
            trace.append(label)
        return tuple(reversed(trace))


def _value(step: Step, reply: Reply) -> Any:
    """Return a reply as production has it."""
    match step:
        case FindResult():
            return RESULT if reply.value else None
        case FindLatest() if reply.value is not None:
            n, asset, state = reply.value
            return Version(KEY, n, ME, "/in/a.wav", {}, state=state, asset_id=None if asset is None else str(asset))
    return reply.value


def _frames(steps: Any) -> Iterator[Any]:
    """Yield all that decides how a paused generator goes on: where it is, and its variables."""
    while isinstance(steps, GeneratorType):
        frame = steps.gi_frame
        assert frame is not None
        yield (
            steps.gi_code.co_name,
            frame.f_lasti,
            repr({name: value for name, value in frame.f_locals.items() if name != "may_supersede"}),
        )
        steps = steps.gi_yieldfrom


# ---- What holds


@pytest.mark.parametrize(
    ("attempt", "tries", "max_assets"),
    [(upload_and_complete, 3, 3), (upload_and_checkpoint, 2, 3)],
    ids=["three tries", "two tries that store when all bytes are sent"],
)
def test_no_interleaving_uploads_twice_or_loses_a_recording(
    attempt: Any, tries: int, max_assets: int, record_property: Callable[[str, object], None]
) -> None:
    began = time.perf_counter()
    found = Explorer(attempt, tries=tries, max_assets=max_assets).explore()
    seconds = time.perf_counter() - began
    record_property("explored", f"{found.states:,} states, {found.ends:,} ends, {seconds:.1f} s")
    print(f"{found.states:,} states, {found.ends:,} ends without anybody alive, {seconds:.1f} s")
    assert found.violation is None, "\n".join((found.violation or "", *found.trace))
    assert found.states > 10_000


# ---- What the protocol needs: without it, the exploration finds what goes wrong


def without_any_look(version: Version) -> Steps[Version | Done | Held]:
    return version if (yield CreateVersion(version)) else Held()


def without_a_look_after_the_asset(claim: Version, me: ClaimOwner) -> Steps[Version | Done | Held]:
    asset_id = yield CreateAsset()
    version = claim.next(me, asset_id=asset_id, state="uploading")
    if (yield CreateVersion(version)):
        return version
    yield CancelAsset(asset_id)
    return Held()


def sending_before_the_id_is_stored(claim: Version, me: ClaimOwner) -> Steps[Version | Done | Held]:
    asset_id = yield CreateAsset()
    yield SendBytes(asset_id)
    return (yield from claims._advance(claim.next(me, asset_id=asset_id, state="uploading")))


def going_on_without_the_claim(version: Version) -> Steps[Version | Done | Held]:
    yield CreateVersion(version)
    done = yield FindResult(version.key)
    return version if done is None else Done(done)


def forgetting_the_asset(self: Version, owner: ClaimOwner, **changes: Any) -> Version:
    return replace(self, n=self.n + 1, owner=owner, **{"asset_id": None, **changes})


def removing_all_versions(version: Version) -> Steps[Version | Done | Held]:
    if not (yield CreateVersion(version)):
        return Held()
    yield RemoveVersions(version.key, 1, version.n - 1)
    done = yield FindResult(version.key)
    return version if done is None else Done(done)


@pytest.mark.parametrize(
    ("place", "mutant", "violation"),
    [
        ("claims._advance", without_any_look, TWO_UPLOADS),
        ("claims._create_asset", without_a_look_after_the_asset, TWO_UPLOADS),
        ("claims._create_asset", sending_before_the_id_is_stored, LOST),
        ("claims._advance", going_on_without_the_claim, TWO_UPLOADS),
        ("claims._advance", removing_all_versions, TWO_UPLOADS),
        ("entries.Version.next", forgetting_the_asset, LOST),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_rule_of_the_protocol_is_needed(
    place: str, mutant: Any, violation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"airflow_provider_roughy.ledger.{place}", mutant)
    found = Explorer(looks_for=violation).explore()
    print(found.states, found.violation, *found.trace, sep="\n")
    assert found.violation == violation


@pytest.mark.parametrize(
    "options",
    [{"overwrites": True}, {"removes_early": True}],
    ids=["a storage that overwrites", "versions removed before the result"],
)
def test_storage_and_clean_up_must_keep_their_part(options: dict[str, Any]) -> None:
    found = Explorer(looks_for=TWO_UPLOADS, **options).explore()
    print(found.states, found.violation, *found.trace, sep="\n")
    assert found.violation == TWO_UPLOADS


# ---- How steps are performed


def test_an_error_at_a_create_cancels_the_asset_and_is_raised() -> None:
    performed: list[Step] = []

    def perform(step: Step) -> Any:
        performed.append(step)
        match step:
            case CreateVersion(version=version) if version.asset_id is not None:
                raise LedgerDownError
            case CreateVersion():
                return True
            case CreateAsset():
                return "asset"
            case CancelAsset():
                raise OSError("Roughy is down as well")
        return None

    with pytest.raises(LedgerDownError):
        drive(claims.upload(KEY, "/in/a.wav", {}, ME, may_supersede=lambda version: True), perform)
    assert performed[-1] == CancelAsset("asset")


def test_a_held_recording_is_left_to_its_owner() -> None:
    version = Version(KEY, 3, ClaimOwner("dag.task", "night 0", "x"), "/in/a.wav", {}, asset_id="asset")
    replies: dict[type, Any] = {FindResult: None, FindLatest: version}
    ended = drive(
        claims.upload(KEY, "/in/a.wav", {}, ME, may_supersede=lambda found: found != version),
        lambda step: replies[type(step)],
    )
    assert ended == Held(version)


def test_a_result_that_is_there_already_is_returned() -> None:
    there = replace(RESULT, state="failed")
    replies: dict[type, Any] = {CreateResult: False, FindResult: there}
    assert drive(claims.complete(RESULT), lambda step: replies[type(step)]) == there
