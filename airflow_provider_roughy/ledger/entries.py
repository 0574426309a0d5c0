"""The values that the ledger stores, and their JSON. Nothing here reads or writes anything.

A :class:`Version` describes a recording that is not done, a :class:`Result` one that is. Both are stored as one line of
JSON in an object that is created once and never changed. Unknown fields are ignored, so that a later release may add
some.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.transfer.storage import local_path

#: States in which a recording is done. 0.2 wrote ``refused`` for ``rejected``.
ENDED = frozenset({"ready", "failed", "rejected", "refused", "gone", "uploaded"})
#: The successful ones. The others are listed under ``problems/``.
WENT_WELL = frozenset({"ready", "uploaded"})

#: The key of a recording.
KEY = re.compile(r"[0-9a-f]{40}")
#: A result: ``<key>.json``.
RESULT_NAME = re.compile(r"([0-9a-f]{40})\.json")
#: A version, under ``open/``: ``<key>.<n>.json``.
VERSION_NAME = re.compile(r"([0-9a-f]{40})\.([1-9][0-9]{0,8})\.json")
#: The state of a result that is not successful, under ``problems/``: ``<key>.<state>``.
PROBLEM_NAME = re.compile(r"([0-9a-f]{40})\.([a-z_]+)")
#: A later result of a recording that was ingested again, under ``problems/``: ``<key>.again-<key of that result>``.
AGAIN_NAME = re.compile(r"([0-9a-f]{40})\.again-([0-9a-f]{40})")
#: The SHA-256 of a file's bytes, under ``contents/``: ``<key>.<digest>``.
CONTENT_NAME = re.compile(r"([0-9a-f]{40})\.([0-9a-f]{64})")
#: An object of 0.2: ``<key>.json``, ``<key>.<generation>.json`` or ``<key>.open``. Those of announced assets are new.
LEGACY_NAME = re.compile(r"([0-9a-f]{32})(?:\.([1-9][0-9]{0,8}))?\.(json|open)")


@dataclass(frozen=True, slots=True)
class ClaimOwner:
    """The holder of a claim: one try of one run of a task.

    :param task_key: The task, such as ``dag.task``.
    :param run_key: The run of it.
    :param try_token: The try: random, to distinguish two live tries of one run.
    """

    task_key: str
    run_key: str
    try_token: str = ""

    def __str__(self) -> str:
        """Name the run: the same for all of its tries. A lease belongs to this name."""
        return f"{self.task_key}, run {self.run_key}"

    def is_same_run(self, other: ClaimOwner) -> bool:
        """Return whether another owner is a try of the same run.

        :param other: The other owner.
        """
        return (self.task_key, self.run_key) == (other.task_key, other.run_key)

    @classmethod
    def of(cls, ti: Any) -> ClaimOwner:
        """Return the owner for a new try of a task.

        :param ti: The task instance.
        """
        mapped = "" if ti.map_index in (None, -1) else f"[{ti.map_index}]"
        return cls(f"{ti.dag_id}.{ti.task_id}", f"{ti.run_id}{mapped}", uuid4().hex)


class Progress(StrEnum):
    """How far a recording that is not done has come. The values are stored."""

    #: A try is about to upload it.
    CLAIMED = "claimed"
    #: It has an asset, to which bytes may have been sent.
    UPLOADING = "uploading"
    #: Roughy has all bytes.
    SENT = "sent"
    #: Roughy has all bytes, and the credits do not cover it.
    PENDING_PAYMENT = "pending_payment"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a recording that is not done. The highest ``n`` counts.

    :param key: The recording.
    :param n: The number of this version, from 1.
    :param owner: The try that created it.
    :param source: Where the recording is, for messages.
    :param identity: The identity of the recording. ``key`` is its hash.
    :param state: A :class:`Progress`.
    :param asset_id: The asset, once it has one.
    :param acknowledged_at: When Roughy had first acknowledged all bytes, in UTC (ISO 8601); ``None`` if not yet.
    :param since: Since when it is unpaid, in UTC (ISO 8601).
    :param upload: The state of the upload for the next try, such as how many bytes Roughy has acknowledged.
    :param at: When this version was created, in UTC (ISO 8601).
    """

    key: str
    n: int
    owner: ClaimOwner
    source: str
    identity: dict[str, Any]
    state: str = Progress.CLAIMED
    asset_id: str | None = None
    acknowledged_at: str | None = None
    since: str | None = None
    upload: dict[str, Any] | None = None
    at: str = ""

    def next(self, owner: ClaimOwner, **changes: Any) -> Version:
        """Return the version after this one.

        :param owner: The try that creates it.
        :param changes: The fields that differ.
        """
        return replace(self, n=self.n + 1, owner=owner, at="", **changes)

    def encode(self) -> bytes:
        """Return the stored bytes."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return _to_json(without=("key", "n", "owner"), **values, **asdict(self.owner))

    @classmethod
    def decode(cls, key: str, n: int, content: bytes) -> Version:
        """Read a version.

        :param key: The recording.
        :param n: The number of the version.
        :param content: The stored bytes.
        :raises ValueError: If they are not a version.
        """
        fields = _Fields(content)
        return cls(
            key=key,
            n=n,
            owner=ClaimOwner(**fields.texts("task_key", "run_key", "try_token")),
            identity=fields.mapping("identity"),
            upload=fields.mapping("upload") if fields.values.get("upload") is not None else None,
            at=fields.text_or_none("at") or "",
            **fields.texts("source", "state"),
            since=fields.moment_or_none("since"),
            **fields.texts("asset_id", "acknowledged_at", required=False),
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a recording that is done.

    :param key: The recording.
    :param source: Where it was, for messages.
    :param identity: The identity of the recording. ``key`` is its hash.
    :param owner: The run that finished it.
    :param state: One of ``ENDED``.
    :param asset_id: Its asset, if it has one.
    :param reason: Why it failed, was rejected or is gone.
    :param size_bytes: Its size in bytes.
    :param seconds: Its length in seconds.
    :param credits: Its costs in credits.
    :param request_id: The ``X-Request-Id`` of Roughy's reply.
    :param at: When this was written, in UTC (ISO 8601).
    """

    key: str
    source: str
    identity: dict[str, Any]
    owner: str
    state: str
    asset_id: str | None = None
    reason: str | None = None
    size_bytes: int = 0
    seconds: float | None = None
    credits: int | None = None
    request_id: str | None = None
    at: str = ""

    def encode(self) -> bytes:
        """Return the stored bytes."""
        return _to_json(without=("key",), **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def decode(cls, key: str, content: bytes) -> Result:
        """Read a result.

        :param key: The recording.
        :param content: The stored bytes.
        :raises ValueError: If they are not a result.
        """
        fields = _Fields(content)
        return cls(
            key=key,
            identity=fields.mapping("identity"),
            size_bytes=decode.integer(fields.values.get("size_bytes")) or 0,
            seconds=decode.number(fields.values.get("seconds")),
            credits=decode.integer(fields.values.get("credits")),
            at=fields.text_or_none("at") or "",
            **fields.texts("source", "owner", "state"),
            **fields.texts("asset_id", "reason", "request_id", required=False),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger has about one recording, as :meth:`Ledger.entries` returns it.

    :param key: Its key, for :meth:`Ledger.forget`.
    :param source: Where the recording is, for messages.
    :param identity: Its identity, such as its URI, size and version, project and language.
    :param owner: The run that claimed or finished it.
    :param task_key: The task of that run.
    :param state: A :class:`Progress`; or for a recording that is done, ``uploaded``, ``rejected``, ``gone``, or the
        asset's state in Roughy's words. ``taken`` for an announced asset that a run has taken.
    :param asset_id: The asset, once there is one.
    :param reason: Why it failed, was rejected or is gone.
    :param all_sent: Whether Roughy may have all bytes.
    :param at: When this was written, in UTC (ISO 8601).
    :param generation: How often it was claimed.
    :param size_bytes: Its size in bytes, if a result has it.
    :param credits: Its costs in credits, if a result has them.
    :param since: Since when it is unpaid, in UTC (ISO 8601).
    """

    key: str
    source: str
    identity: dict[str, Any]
    owner: str
    task_key: str = ""
    state: str = "claimed"
    asset_id: str | None = None
    reason: str | None = None
    all_sent: bool = False
    at: str = ""
    generation: int = field(default=1, compare=False)
    size_bytes: int | None = None
    credits: int | None = None
    since: str | None = None

    @property
    def name(self) -> str:
        """The name of its object, if it is about an announced asset."""
        return f"{self.key}.json"

    @property
    def wanted(self) -> dict[str, Any]:
        """The name of ``identity`` in 0.2, also in stored entries."""
        return self.identity

    @property
    def series(self) -> str:
        """The name of ``task_key`` in 0.2, also in stored entries."""
        return self.task_key

    @property
    def is_done(self) -> bool:
        """Whether it is finished."""
        return self.state in ENDED or self.state == "taken"

    @classmethod
    def of_result(cls, result: Result) -> Entry:
        """Show a result."""
        return cls(
            key=result.key,
            source=result.source,
            identity=result.identity,
            owner=result.owner,
            task_key=result.owner.partition(", run ")[0],
            state=result.state,
            asset_id=result.asset_id,
            reason=result.reason,
            all_sent=result.asset_id is not None,
            at=result.at,
            size_bytes=result.size_bytes,
            credits=result.credits,
        )

    @classmethod
    def of_version(cls, version: Version) -> Entry:
        """Show a version."""
        return cls(
            key=version.key,
            source=version.source,
            identity=version.identity,
            owner=str(version.owner),
            task_key=version.owner.task_key,
            state=version.state,
            asset_id=version.asset_id,
            all_sent=version.acknowledged_at is not None,
            at=version.at,
            generation=version.n,
            since=version.since,
        )

    def encode(self) -> bytes:
        """Return the stored bytes, in the format of 0.2, which announced assets still use."""
        names = ("source", "wanted", "owner", "series", "state", "asset_id", "reason", "all_sent", "at")
        return _to_json(**{name: getattr(self, name) for name in names})

    @classmethod
    def decode(cls, key: str, generation: int, content: bytes) -> Entry:
        """Read an entry in the format of 0.2: of several lines, the last complete one counts.

        :param key: Its key.
        :param generation: How often it was claimed.
        :param content: The stored bytes.
        :raises ValueError: If no line is an entry.
        """
        for line in reversed(content.splitlines()):
            try:
                fields = _Fields(line)
                return cls(
                    key=key,
                    identity=fields.mapping("wanted"),
                    task_key=fields.text_or_none("series") or "",
                    state=fields.text_or_none("state") or Progress.CLAIMED,
                    all_sent=fields.values.get("all_sent") is True,
                    at=fields.text_or_none("at") or "",
                    generation=generation,
                    **fields.texts("source", "owner"),
                    **fields.texts("asset_id", "reason", required=False),
                )
            except ValueError:
                continue
        raise ValueError("no line of it is an entry")


def entry_key(identity: Mapping[str, Any]) -> str:
    """Return the key that 0.2 gave to a recording, and that an announced asset still has.

    :param identity: Its identity: ``uri``, and other fields.
    """
    path = local_path(identity["uri"])
    # One key for all spellings: file:///data/a.mp3, /data//a.mp3.
    same = {**identity, "uri": os.path.abspath(path) if path is not None else identity["uri"]}
    text = json.dumps(same, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def canonical_project(project_id: str) -> str:
    """Return the canonical spelling of a project's id.

    :param project_id: A UUID in any spelling that Roughy takes; anything else is returned as it is.
    """
    try:
        return str(UUID(project_id.strip()))
    except ValueError:
        return project_id


def result_name(key: str) -> str:
    """Return the name of a result's object."""
    return f"{key}.json"


def version_name(key: str, n: int) -> str:
    """Return the name of a version's object."""
    return f"open/{key}.{n}.json"


def problem_name(key: str, state: str) -> str:
    """Return the name of the empty object for a result that is not successful."""
    return f"problems/{key}.{state}"


def again_name(key: str, again: str) -> str:
    """Return the name of the empty object that a recording's later result is found by."""
    return f"problems/{key}.again-{again}"


def key_again(key: str, owner: ClaimOwner | str) -> str:
    """Return the key under which a run ingests a recording again: the same for all tries of the run.

    :param key: The key of the recording, which is done.
    :param owner: The run.
    """
    return hashlib.sha256(f"{key} again in {owner}".encode()).hexdigest()[:40]


def original_key(identity: Mapping[str, Any]) -> str | None:
    """Return the key of the recording that an entry ingests again; ``None`` if it ingests none again.

    :param identity: The identity in the entry.
    """
    key = identity.get("retry_of")
    return key if isinstance(key, str) and KEY.fullmatch(key) else None


def content_name(key: str, digest: str) -> str:
    """Return the name of the empty object whose name has the digest of a file's content."""
    return f"contents/{key}.{digest}"


#: Characters of a text; the path of a file may have 4,096 bytes.
_MAX_TEXT = 16_384


class _Fields:
    """The fields of a stored object, whose types are checked as they are read.

    :param content: The stored bytes.
    :raises ValueError: If they are not a JSON object.
    """

    def __init__(self, content: bytes) -> None:
        try:
            values = json.loads(content)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        self.values: dict[str, Any] = values

    def texts(self, *names: str, required: bool = True) -> dict[str, Any]:
        values = {name: self.text_or_none(name) for name in names}
        if required and None in values.values():
            raise ValueError(f"its {next(name for name in names if values[name] is None)!r} is missing")
        return values

    def text_or_none(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"its {name!r} is no text")
        return decode.text(value, limit=_MAX_TEXT)

    def moment_or_none(self, name: str) -> str | None:
        value: Any = self.values.get(name)
        found = decode.timestamp(value)
        # Days are added to it.
        return value if found is not None and found.year < 9999 else None

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise ValueError(f"its {name!r} is no object")
        return value


def utc_now() -> str:
    """Return the time, in UTC (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _to_json(*, without: Collection[str] = (), **values: Any) -> bytes:
    kept = {name: value for name, value in values.items() if name not in without}
    return json.dumps(kept, ensure_ascii=True).encode()
