"""The upload of one recording under a claim of the ledger.

``ledger/claims.py`` decides the order of the steps. This module performs them: those of the storage with the ledger,
those of the service with the resumable upload.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_roughy import api
from airflow_provider_roughy.api import decode
from airflow_provider_roughy.exceptions import (
    RoughyClaimedError,
    RoughyNotFoundError,
    RoughyUnusableSourceError,
    RoughyUploadClosedError,
    RoughyUploadError,
)
from airflow_provider_roughy.ingest.content import identify_one
from airflow_provider_roughy.ingest.decide import Action, decide
from airflow_provider_roughy.ledger import claims
from airflow_provider_roughy.ledger.claims import AssetArrival, Done, Held, Uploaded
from airflow_provider_roughy.ledger.entries import WENT_WELL, Progress, Result, Version, utc_now
from airflow_provider_roughy.lifecycle import ASSET, Arrival, Outcome, Verdict
from airflow_provider_roughy.logs import Log
from airflow_provider_roughy.transfer.resumable import DurableUpload, UploadState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_roughy.api import RoughyAsset
    from airflow_provider_roughy.http.client import Client
    from airflow_provider_roughy.ingest.files import SourceFile
    from airflow_provider_roughy.ledger import Ledger, LegacyEntry, LegacyIndex
    from airflow_provider_roughy.ledger.claims import Step, Steps
    from airflow_provider_roughy.ledger.entries import ClaimOwner
    from airflow_provider_roughy.transfer.source import Source

T = TypeVar("T")

#: The fields of a version that releases its claim: a run that finds the recording again starts a new upload. The
#: versions themselves stay, as they are removed only once there is a result.
RELEASED: dict[str, Any] = {
    "state": Progress.CLAIMED,
    "asset_id": None,
    "acknowledged_at": None,
    "since": None,
    "upload": None,
}

#: What the call that forgets a recording needs before it, in messages.
FORGET_IMPORT = "from airflow_provider_roughy.ledger import Ledger"

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class UploadItem:
    """A recording of a batch.

    :param file: The file; ``None`` if it was not found this time.
    :param key: Its key in the ledger.
    :param identity: Its identity, as plain JSON.
    :param name: Its name in messages.
    :param version: Its latest version in the ledger, if it has one.
    :param asset_id: Its asset, once it has one.
    :param credits: Its costs in credits, if they are known.
    :param mine: Whether this run has started it, in this or an earlier try.
    :param legacy_key: Its entry in a ledger of 0.2, if that is open.
    :param seconds: Its length in seconds by its headers, if that was read.
    :param log: Logs events.
    """

    file: SourceFile | None
    key: str
    identity: dict[str, Any]
    name: str
    version: Version | None = None
    asset_id: str | None = None
    credits: int | None = None
    mine: bool = False
    legacy_key: str | None = None
    seconds: float | None = None
    log: Log = _log

    @property
    def size(self) -> int:
        """Bytes."""
        return decode.size(self.identity.get("size")) or 0

    def to_dict(self) -> dict[str, Any]:
        """Return what is needed after a wait in the triggerer; the ledger has the rest."""
        return {"key": self.key, "name": self.name, "size": self.size, "credits": self.credits}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UploadItem:
        """Read what :meth:`to_dict` returned, with its ``asset_id``."""
        return cls(
            None,
            values.get("key", ""),
            {"size": values.get("size", 0)},
            values["name"],
            asset_id=values["asset_id"],
            credits=values.get("credits"),
            mine=True,
        )

    def open(self) -> Source:
        """Return its source, ready to be read.

        :raises RoughySourceError: If it is missing, unreadable, or not between 64 bytes and 50 GiB.
        """
        assert self.file is not None
        return self.file.open()

    def find_legacy(self, legacy: LegacyIndex) -> LegacyEntry | None:
        """Return the entry of 0.2 about it.

        :param legacy: The entries of 0.2.
        :raises RoughyLedgerEntryError: If that entry cannot be read.
        """
        file, identity = self.file, self.identity
        assert file is not None
        places = (file.canonical, file.uri, *file.other_names)
        return legacy.find(places, self.size, file.versions, identity["project_id"], identity["language"])

    def result(self, owner: ClaimOwner, state: str, **fields: Any) -> Result:
        """Return its result, for the ledger.

        :param owner: The run that has finished it.
        :param state: Its state, one of ``ENDED``.
        :param fields: More fields of :class:`Result`.
        """
        fields = {"asset_id": self.asset_id, "size_bytes": self.size, **fields}
        return Result(self.key, self.name, self.identity, str(owner), state, **fields)


class ClaimedUpload(DurableUpload):
    """Uploads one recording under a claim: the steps of :func:`~airflow_provider_roughy.ledger.claims.upload`.

    :param client: Sends the requests.
    :param source: Where the bytes come from.
    :param ledger: The ledger.
    :param owner: The try that claims the recording.
    :param item: The recording.
    :param options: See :class:`DurableUpload`.
    """

    def __init__(
        self, client: Client, source: Source, *, ledger: Ledger, owner: ClaimOwner, item: UploadItem, **options: Any
    ) -> None:
        self._kept = _VersionStore()
        super().__init__(client, source, memory=self._kept, confirm=False, **options)
        self._ledger = ledger
        self._owner = owner
        self._item = item
        #: The asset, as it was created or last read.
        self._found: RoughyAsset | None = None

    @property
    def version(self) -> Version | None:
        """The latest version of the recording that this try knows."""
        return self._item.version

    def claim_and_send(self) -> Uploaded | Done | Held:
        """Claim the recording and send its bytes, unless it is done or another try holds the claim.

        :raises RoughyError: Why it was not sent. The ledger knows how far the upload has come.
        """
        item, identity = self._item, self._item.identity
        adopted = item.asset_id if item.version is None else None
        steps = claims.upload(
            item.key, item.name, identity, self._owner, may_supersede=self._may_supersede, asset_id=adopted
        )
        try:
            ended = self._drive(steps)
        except Exception:
            self._keep_progress()
            raise
        if not isinstance(ended, Uploaded):
            return ended
        item.asset_id = ended.asset_id
        sent = self._drive(claims.checkpoint(ended.version, state=Progress.SENT, acknowledged_at=utc_now()))
        if not isinstance(sent, Version):
            return sent
        # A batch keeps thousands of versions until their assets are ready.
        item.version = replace(sent, upload=None)
        return Uploaded(item.version, ended.asset_id)

    def _may_supersede(self, latest: Version) -> bool:
        """Return whether this try may supersede a version of another one, by :func:`decide`."""
        mine = latest.owner.is_same_run(self._owner)
        action = decide(
            done=False,
            open=True,
            reported=False,
            mine=mine,
            same_task=False,
            owner_alive=not mine and self._ledger.is_alive(latest.owner),
            found=True,
        )
        return action is Action.RESUME

    def confirm(self) -> None:
        """Confirm an upload whose bytes Roughy has acknowledged.

        :raises RoughyUnconfirmedUploadError: If Roughy does not confirm it. A later try confirms it again.
        :raises RoughyError: If the request failed.
        """
        known = self._item.version
        assert known is not None
        version = self._ledger.read_version(known.key, known.n) or known
        assert version.asset_id is not None
        self._confirm, self._fresh, self._recorded = True, False, True
        self._kept.state = version.upload
        asset = self._read(version.asset_id)
        if Arrival.of(asset) is Arrival.ARRIVED:
            # Roughy fails an asset at its first bytes if it is neither audio nor video.
            Verdict.of(ASSET, asset).raise_for_failure("return")
            return
        state = UploadState.read(version.upload)
        self._state = None if state is None else self._completed(state, asset)
        if not self._send_earlier(asset):
            self._drive(claims.checkpoint(version, **RELEASED))
            raise RoughyUploadError(
                f"The upload of {self._item.name} to asset {asset.id} does not exist any more, although Roughy had "
                "acknowledged all its bytes; a retry uploads the recording to a new asset",
                offset=0,
            )

    def _drive(self, steps: Steps[T]) -> T:
        return claims.drive(steps, self._perform)

    def _perform(self, step: Step) -> Any:
        match step:
            case claims.CreateVersion(version):
                if version.asset_id is not None:
                    version = replace(version, upload=self._kept.state)
                if not self._ledger.perform(claims.CreateVersion(version)):
                    return False
                self._item.version = version
                self._recorded = version.asset_id is not None
                return True
            case claims.FindLatest():
                latest: Version | None = self._ledger.perform(step)
                if latest is not None:
                    self._item.version = latest
                    self._kept.state = latest.upload
                return latest
            case claims.ReadAsset(asset_id):
                return self._arrival(asset_id)
            case claims.CreateAsset():
                identity = self._item.identity
                self._found = self._create(identity["project_id"], identity["language"], identity)
                assert self._state is not None
                self._kept.state = self._state.to_dict()
                return self._found.id
            case claims.SendBytes():
                return self._send_bytes()
            case claims.CancelAsset():
                assert self._found is not None
                self._discard(self._client, self._found)
                return None
            case _:
                return self._ledger.perform(step)

    def _arrival(self, asset_id: str) -> AssetArrival:
        if self._kept.state is None or self._kept.state.get("asset_id") != asset_id:
            self._kept.state = UploadState(asset_id, self._item.identity).to_dict()
        self._fresh, self._recorded = False, True
        self._found = self._find_earlier(self._item.identity)
        if self._found is None:
            return AssetArrival.GONE
        return AssetArrival.ARRIVED if Arrival.of(self._found) is Arrival.ARRIVED else AssetArrival.OPEN

    def _send_bytes(self) -> bool:
        assert self._found is not None
        if not self._fresh:
            return self._send_earlier(self._found)
        try:
            with self._cleaning_up(self._found):
                self._send(self._found)
        except (RoughyNotFoundError, RoughyUploadClosedError) as error:
            self._log.info(
                "Uploading %s to a new asset, as the upload to asset %s does not exist any more: %s",
                self._item.name,
                self._found.id,
                error,
            )
            return False
        return True

    def _keep_progress(self) -> None:
        """Store what Roughy has acknowledged, for the next try."""
        version = self._item.version
        if version is None or version.owner != self._owner or version.upload == self._kept.state:
            return
        try:
            self._drive(claims.checkpoint(version))
        except Exception as err:  # The error of the upload matters more, and is about to be raised.
            self._log.warning(
                "Storing the progress of the upload of %s to asset %s in ledger %s failed; the next try asks Roughy "
                "for it: %s",
                self._item.name,
                version.asset_id,
                self._ledger.uri,
                err,
            )


class _VersionStore:
    """The memory of an upload: its state for the next try, which is stored in the next version of the recording."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        return self.state if key == "roughy_upload" else None

    def set(self, key: str, value: Any) -> None:
        if key == "roughy_upload":
            self.state = value


def upload_once(
    client: Client,
    ledger: Ledger,
    owner: ClaimOwner,
    file: SourceFile,
    *,
    project_id: str,
    language: str | None = None,
    on_start: Callable[[DurableUpload], None] = lambda upload: None,
    on_arrival: Callable[[str], None] = lambda asset_id: None,
    log: Log = _log,
) -> str:
    """Upload one file, unless the ledger has it already.

    :param client: Sends the requests.
    :param ledger: The ledger.
    :param owner: The try that uploads it.
    :param file: The file.
    :param project_id: The project of a new asset.
    :param language: The language spoken.
    :param on_start: Called with the upload before it starts.
    :param on_arrival: Called with the asset's id when all bytes have arrived.
    :param log: Logs events.
    :returns: The asset's id.
    :raises RoughyClaimedError: If another run, which is active, is uploading it.
    :raises RoughyUnusableSourceError: If it was rejected before.
    :raises RoughyLedgerError: If the ledger cannot be used.
    :raises RoughyError: Why it was not uploaded.
    """
    identity = file.identity(project_id=project_id, language=language)
    item = UploadItem(file, identity.key, identity.to_dict(), file.uri, log=log)
    source = item.open()

    ledger.check()
    with ledger.lease(owner):
        done = _known_to_0_2(ledger, owner, item)
        if done is None and item.legacy_key is None and ledger.identifies_by_content():
            identify_one(ledger, item)
        while True:
            if done is not None:
                if done.state not in WENT_WELL:
                    # A batch may have ingested it again, because its `retry` names it.
                    done = ledger.find_success(item.key) or done
                asset_id = _usable_asset(client, ledger, done, log)
                if asset_id is not None:
                    return asset_id
                # A result never changes. The next upload of the same file has a key of its own, the same for all tries.
                item.key, item.version, item.asset_id = _key_after(item.key, done), None, None
            upload = ClaimedUpload(client, source, ledger=ledger, owner=owner, item=item, log=log)
            on_start(upload)
            ended = upload.claim_and_send()
            if isinstance(ended, Held):
                raise _claimed(ledger, item, None if ended.version is None else ended.version.owner)
            if isinstance(ended, Done):
                done = ended.result
                continue
            upload.confirm()
            stored = claims.drive(claims.complete(item.result(owner, "uploaded")), ledger.perform)
            if item.legacy_key is not None:
                ledger.finish_legacy(item.legacy_key)
            if item.version is not None:
                ledger.remove_versions([(item.key, item.version.n)])
            assert stored.asset_id is not None
            on_arrival(stored.asset_id)
            return stored.asset_id


def _known_to_0_2(ledger: Ledger, owner: ClaimOwner, item: UploadItem) -> Result | None:
    """Return the result of a recording that is done in 0.2; resume one that 0.2 has started."""
    old = item.find_legacy(ledger.legacy())
    if old is None or ledger.find_result(item.key) is not None:
        return None
    if not old.done and old.owner != str(owner) and ledger.is_alive(old.owner):
        raise _claimed(ledger, item, old.owner)
    if old.done:
        return Result(old.key, old.source, old.wanted, old.owner, old.state, old.asset_id, old.reason, item.size)
    item.asset_id, item.legacy_key = old.asset_id, old.key
    return None


def _claimed(ledger: Ledger, item: UploadItem, owner: ClaimOwner | str | None) -> RoughyClaimedError:
    """Return the error about a recording that another run has claimed.

    :param owner: That run; ``None`` if it created its claim at the same time as this one.
    """
    who = "another run claimed it at the same time" if owner is None else ledger.describe_claim(owner)
    return RoughyClaimedError(
        f"{item.name} was not uploaded: {who} (ledger {ledger.uri}). A retry of this task returns that run's asset, or "
        "supersedes the claim"
    )


def _usable_asset(client: Client, ledger: Ledger, done: Result, log: Log) -> str | None:
    """Return the asset of a done recording; ``None`` if it failed or is gone, so that it is uploaded again."""
    if done.asset_id is None:
        raise RoughyUnusableSourceError(
            f"Source {done.source} was rejected by {done.owner}: {done.reason}. Replace the file; or, to upload it as "
            f"it is, forget it and clear the task: {FORGET_IMPORT}; {ledger.forget_call(done.key)}"
        )
    try:
        asset = client.run(api.get_asset(done.asset_id))
    except RoughyNotFoundError:
        log.info("Uploading again: asset %s of %s is gone", done.asset_id, done.source)
        return None
    if Verdict.of(ASSET, asset).outcome is Outcome.FAILED:
        log.info("Uploading again: asset %s of %s failed at Roughy", done.asset_id, done.source)
        return None
    log.info("Skipped %s: it is asset %s already, uploaded by %s", done.source, done.asset_id, done.owner)
    return done.asset_id


def _key_after(key: str, done: Result) -> str:
    """Return the key of the upload that follows one that is done."""
    return hashlib.sha256(f"{key} after {done.asset_id}".encode()).hexdigest()[:40]
