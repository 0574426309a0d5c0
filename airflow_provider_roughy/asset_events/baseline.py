"""Which assets are settled, so that a subscription does not announce them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.exceptions import RoughyLedgerError

if TYPE_CHECKING:
    from airflow_provider_roughy.api import RoughyAsset


@dataclass(frozen=True, slots=True)
class AssetSnapshot:
    """The fields of an asset that matter here, as the last reply gave them.

    :param id: Its id.
    :param state: Its state.
    :param project_id: Its project.
    :param created_at: When it was created, by Roughy's clock.
    """

    id: str
    state: str
    project_id: str
    created_at: datetime

    @classmethod
    def of(cls, asset: RoughyAsset) -> AssetSnapshot:
        """Return the snapshot of an asset.

        :param asset: The asset.
        """
        created_at = decode.timestamp(asset.created_at)
        # The decoder skips an asset without it.
        assert created_at is not None
        return cls(asset.id, asset.state, asset.project_id, created_at)


@dataclass(frozen=True)
class Baseline:
    """The assets that are settled: they had ended before the watcher started, or a run has taken them since.

    :param newest: Assets created before this time are settled, except those in ``waiting`` and ``due``; ``None`` if no
        asset is settled by its time.
    :param newest_ids: Assets created at that time or later that are settled nevertheless.
    :param waiting: The older assets that had not ended, with their states.
    :param due: The older assets that were due and not taken, with their states.
    """

    newest: datetime | None = None
    newest_ids: frozenset[str] = frozenset()
    waiting: Mapping[str, str] = field(default_factory=dict)
    due: Mapping[str, str] = field(default_factory=dict)

    def admits(self, asset: AssetSnapshot) -> bool:
        """Return whether an asset in its present state is not settled.

        :param asset: The asset.
        """
        if self.due.get(asset.id) == asset.state:
            return True
        if asset.id in self.waiting:
            return self.waiting[asset.id] != asset.state
        if asset.id in self.newest_ids:
            return False
        return self.newest is None or asset.created_at >= self.newest

    def to_json(self) -> dict[str, Any]:
        """Return the baseline as JSON for a note of the ledger."""
        return {
            "newest": self.newest.isoformat() if self.newest else None,
            "newest_ids": sorted(self.newest_ids),
            "waiting": dict(self.waiting),
            "due": dict(self.due),
        }

    @classmethod
    def from_json(cls, note: Mapping[str, Any], stored: str = "its note in the ledger") -> Baseline:
        """Return the baseline that a note of the ledger holds.

        :param note: What :meth:`to_json` returned, or the note of an earlier release.
        :param stored: Names the note and its ledger in messages.
        :raises RoughyLedgerError: If the note is not a baseline.
        """
        try:
            newest = decode.timestamp(note["newest"])
            if newest is None and note["newest"] is not None:
                raise ValueError("its 'newest' is not a date and time")
            return cls(
                newest=newest,
                newest_ids=frozenset(note["newest_ids"]),
                waiting={str(id): str(state) for id, state in note["waiting"].items()},
                # Notes of 0.2 do not have it.
                due={str(id): str(state) for id, state in note.get("due", {}).items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"its {error} is missing" if isinstance(error, KeyError) else str(error)
            raise RoughyLedgerError(
                f"The baseline of this watcher, {stored}, cannot be read: {why}. Restore that object; or remove "
                "it, and the watcher continues from the one before it or, without one, from the assets of that moment"
            ) from None
