"""The protocol by which a recording is uploaded once, however many tries work on it and wherever they die.

It is a conditional put (put-if-absent), as in the commit log of Delta Lake. A recording that is not done has versions
1, 2, …; the highest counts. A recording that is done has a result, created once.

Four rules make this safe:

1. *Each step creates the next version, only if there is none of that number.* A version is never changed. A try that
   fails to create the next one has lost the claim, and gives up the recording.
2. *No bytes before the asset's id is stored.* Every later try then finds the asset, and resumes its upload: each next
   version keeps the id, unless the asset is gone.
3. *After each create that succeeded, and before acting on it, the recording's result is read by name.* Versions are
   removed once the result exists, and a try that was suspended meanwhile creates a low number again. Only the result
   shows that the recording is done.
4. *Versions are removed only after the result exists.* Otherwise rule 3 finds nothing.

A try that loses the claim cancels the asset that it has just created. This only tidies up: the asset is empty, no other
try knows its id, and it would expire.

A lease only decides which try may supersede another. If it is wrong, nothing is uploaded twice; a try only gives up a
recording early.

The functions are generators. They yield steps and are sent the replies, so that this module has no clock, reads and
writes nothing, and ``tests/test_claims.py`` can drive the very code that production runs through every interleaving.
:func:`drive` runs them. What performing a step raises is raised at its ``yield``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from airflow_provider_roughy.ledger.entries import ClaimOwner, Progress, Result, Version

T = TypeVar("T")


class AssetArrival(StrEnum):
    """How far the upload of an asset is."""

    #: It waits for bytes, and its upload is open.
    OPEN = "open"
    #: All bytes have arrived.
    ARRIVED = "arrived"
    #: The asset does not exist, or waits for bytes and its upload is closed.
    GONE = "gone"


# ---- Steps of the storage


@dataclass(frozen=True, slots=True)
class FindResult:
    """Read the result by its name; the reply is a ``Result`` or ``None``.

    :param key: The recording.
    :param may_be_stale: Whether a stale reply is safe, such as one from a list of names.
    """

    key: str
    may_be_stale: bool = False


@dataclass(frozen=True, slots=True)
class FindLatest:
    """Read the highest version; the reply is a ``Version`` or ``None``. A stale reply is safe."""

    key: str


@dataclass(frozen=True, slots=True)
class CreateVersion:
    """Create a version if there is none of its number; the reply is whether this step created it."""

    version: Version


@dataclass(frozen=True, slots=True)
class CreateResult:
    """Create a result if there is none; the reply is whether this step created it."""

    result: Result


@dataclass(frozen=True, slots=True)
class RemoveVersions:
    """Remove versions of a recording whose result exists.

    :param key: The recording.
    :param first: The lowest number to remove.
    :param last: The highest number to remove.
    """

    key: str
    first: int
    last: int


# ---- Steps of the service


@dataclass(frozen=True, slots=True)
class ReadAsset:
    """Read an asset; the reply is an :class:`AssetArrival`."""

    asset_id: str


@dataclass(frozen=True, slots=True)
class CreateAsset:
    """Create an asset; the reply is its id."""


@dataclass(frozen=True, slots=True)
class SendBytes:
    """Send what is missing of an asset's bytes; the reply is ``False`` if its upload is gone."""

    asset_id: str


@dataclass(frozen=True, slots=True)
class CancelAsset:
    """Cancel an asset, but only if it is still empty."""

    asset_id: str


StorageStep: TypeAlias = FindResult | FindLatest | CreateVersion | CreateResult | RemoveVersions
ServiceStep: TypeAlias = ReadAsset | CreateAsset | SendBytes | CancelAsset
Step: TypeAlias = StorageStep | ServiceStep
Steps: TypeAlias = Generator[Step, Any, T]


# ---- Outcomes


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Roughy has acknowledged all bytes.

    :param version: The claim.
    :param asset_id: The asset.
    """

    version: Version
    asset_id: str


@dataclass(frozen=True, slots=True)
class Done:
    """The recording is done.

    :param result: Its result.
    """

    result: Result


@dataclass(frozen=True, slots=True)
class Held:
    """Another try holds the claim.

    :param version: Its version; ``None`` if it created one at the same time.
    """

    version: Version | None = None


def drive(steps: Steps[T], perform: Callable[[Step], Any]) -> T:
    """Perform the steps of a generator, and return what it returns.

    :param steps: One of the functions below, called.
    :param perform: Performs a step and returns the reply. What it raises is raised in the generator, which may clean
        up by further steps before it raises that itself.
    """
    try:
        step = next(steps)
        while True:
            try:
                reply = perform(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as stop:
        value: T = stop.value
        return value


def upload(
    key: str,
    source: str,
    identity: dict[str, Any],
    me: ClaimOwner,
    *,
    may_supersede: Callable[[Version], bool],
    asset_id: str | None = None,
) -> Steps[Uploaded | Done | Held]:
    """Claim a recording and upload it, or resume the upload of an earlier try.

    :param key: The recording.
    :param source: Where it is, for messages.
    :param identity: Its identity.
    :param me: The try that claims it.
    :param may_supersede: Returns whether a version of another try may be superseded.
    :param asset_id: The asset to which 0.2 has started to send, if there is no version yet.
    """
    done = yield FindResult(key, may_be_stale=True)
    if done is not None:
        return Done(done)
    latest = yield FindLatest(key)
    if latest is not None and not may_supersede(latest):
        return Held(latest)
    before = latest or Version(key, 0, me, source, identity, asset_id=asset_id)
    claim = yield from _advance(before.next(me, source=source, identity=identity))
    if not isinstance(claim, Version):
        return claim
    if claim.asset_id is not None:
        arrival = yield ReadAsset(claim.asset_id)
        if arrival is AssetArrival.ARRIVED:
            return Uploaded(claim, claim.asset_id)
        if arrival is AssetArrival.OPEN and (yield SendBytes(claim.asset_id)):
            return Uploaded(claim, claim.asset_id)
    while True:
        claim = yield from _create_asset(claim, me)
        if not isinstance(claim, Version):
            return claim
        assert claim.asset_id is not None
        if (yield SendBytes(claim.asset_id)):
            return Uploaded(claim, claim.asset_id)


def supersede(latest: Version, me: ClaimOwner, **changes: Any) -> Steps[Version | Done | Held]:
    """Supersede the claim on a recording whose bytes are sent, and which is waited for or unpaid.

    :param latest: Its latest version, which another run or an earlier try of this run has created.
    :param me: The try that claims it now.
    :param changes: The fields of the new version that differ.
    """
    return (yield from _advance(latest.next(me, **changes)))


def checkpoint(version: Version, **changes: Any) -> Steps[Version | Done | Held]:
    """Store how far a recording has come.

    :param version: The claim, which is the caller's.
    :param changes: The fields of the new version that differ.
    """
    return (yield from _advance(version.next(version.owner, **changes)))


def complete(result: Result) -> Steps[Result]:
    """Store the result of a recording, and return the stored one: another try may have been faster.

    This needs no claim, as there is one asset with bytes at most. The versions stay until the result has been reported.

    :param result: The result.
    """
    if (yield CreateResult(result)):
        return result
    # Only a person removes a result; one that was removed between these two steps is stored again.
    there = yield FindResult(result.key)
    return result if there is None else there


def _advance(version: Version) -> Steps[Version | Done | Held]:
    """Create a version, then check whether the recording has been done meanwhile."""
    if not (yield CreateVersion(version)):
        return Held()
    done = yield FindResult(version.key)
    if done is not None:
        yield RemoveVersions(version.key, version.n, version.n)
        return Done(done)
    return version


def _create_asset(claim: Version, me: ClaimOwner) -> Steps[Version | Done | Held]:
    """Create an asset, and store its id before any bytes are sent to it. If that fails, cancel the asset."""
    asset_id = yield CreateAsset()
    with_asset = claim.next(me, asset_id=asset_id, state=Progress.UPLOADING, acknowledged_at=None, since=None)
    try:
        ended = yield from _advance(with_asset)
    except Exception:
        # The version may be stored all the same; a later try that finds it reads that the asset is gone.
        yield from _cancel(asset_id)
        raise
    if not isinstance(ended, Version):
        yield from _cancel(asset_id)
    return ended


def _cancel(asset_id: str) -> Steps[None]:
    # An empty asset that stays costs nothing, and expires.
    with suppress(Exception):
        yield CancelAsset(asset_id)
