"""Take the assets for which a run was started: call :func:`take_assets` in a task of a DAG that asset events start.

The payload of an event is ``{"ready": [ids], "failed": [ids]}``: asset ids by state, the oldest first. It is in
``extra["payload"]`` of Airflow's asset event, whether a watcher or a webhook made the event. A watcher may repeat
assets that no run has taken, so a DAG may get several events about an asset; :func:`take_assets` returns each asset
once.
"""

from airflow_provider_roughy.asset_events.payload import (
    MAX_IDS_PER_STATE,
    announced,
    check_states,
    take_assets,
    taken_key,
)

#: The name in 0.2.
MOST_IDS = MAX_IDS_PER_STATE

__all__ = ["MAX_IDS_PER_STATE", "MOST_IDS", "announced", "check_states", "take_assets", "taken_key"]
