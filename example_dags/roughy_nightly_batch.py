"""Every night, upload all recordings of a folder: what is ready goes on at once, and two notifications tell the rest.

Each file is an instance of a mapped task group, whose tasks wait only for one another: a recording that is ready goes
on while others are still uploaded or prepared. When all are settled:

- ``notify_unpaid`` names all recordings that the credits did not cover. They do not fail the run: Roughy makes them
  ready by itself after a top-up. Clear the ``wait`` of each with all downstream of it then, and it goes on.
- ``notify_failed`` names all that failed, at Roughy or on the way to it, and says why.
- ``result`` returns how many, e.g. ``{"ready": 12, "pending_payment": 2, "failed": 1}``, and fails if any failed.

So the run fails if a recording failed, or what it went on to did, but not before all else is done.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_provider_roughy.compat import DAG, AirflowFailException, AirflowSkipException, Param, task, task_group
from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor

UNPAID = """Roughy's credits do not cover these recordings. They are uploaded, with nothing to upload again.
Top up within 30 days: they become ready by themselves. Then clear their task "wait" with all downstream of it."""
FAILED = "These recordings failed:"
#: What the grid shows for an instance, rather than 0, 1, 2: its file.
FILE = "{{ ti.xcom_pull(task_ids='recordings')[ti.map_index].rpartition('/')[2] }}"

with DAG(
    dag_id="roughy_nightly_batch",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    params={"folder": Param("/data/recordings", type="string", description="Where the recordings of the day are")},
    # "upstream": where worker slots are scarce, a file that is nearly done goes before the next upload.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10), "weight_rule": "upstream"},
    tags=["roughy"],
    doc_md=__doc__,
) as dag:

    @task
    def recordings(params: dict) -> list[str]:
        """List the folder."""
        from pathlib import Path

        return sorted(str(path) for path in Path(params["folder"]).iterdir() if path.is_file())

    @task(map_index_template=FILE)
    def go_on(asset: dict) -> str:
        """Stand for whatever follows when a recording is ready: a cut, a render, a line in a catalogue."""
        if asset["state"] == "pending_payment":
            raise AirflowSkipException("It is not paid for")
        return asset["id"]

    @task_group
    def recording(source: str) -> RoughyAssetSensor:
        """Take one file all the way."""
        # At most four at a time: a worker's uplink is soon full.
        upload = RoughyCreateUploadOperator(
            task_id="upload", source=source, max_active_tis_per_dag=4, map_index_template=FILE
        )
        wait = RoughyAssetSensor(
            task_id="wait",
            asset_id=upload.output,
            on_pending_payment="return",
            deferrable=True,
            poke_interval=5,
            timeout=6 * 3600,
            map_index_template=FILE,
        )
        go_on(wait.output)
        return wait

    @task(trigger_rule="all_done")
    def outcomes(files: list[str], ti=None) -> dict[str, list[str]]:
        """Sort the files by what the sensor saw, and ask Roughy why the failed ones failed."""
        found = {"ready": [], "pending_payment": [], "failed": []}
        for index, file in enumerate(files):
            # One by one: in a list of all results those of failed tasks are left out, and the others move up.
            asset_id = ti.xcom_pull(task_ids="recording.upload", map_indexes=index)
            asset = ti.xcom_pull(task_ids="recording.wait", map_indexes=index)
            if asset:
                found[asset["state"]].append(f"{file}, asset {asset_id}")
            elif asset_id:
                found["failed"].append(f"{file}, asset {asset_id}: {reason(asset_id)}")
            else:
                found["failed"].append(f"{file}: not uploaded; the log of recording.upload [{index}] says why")
        return found

    def reason(asset_id: str) -> str:
        """Return why an asset failed, or the state that it was last seen in."""
        try:
            with RoughyHook() as hook:
                asset = hook.get_asset(asset_id)
        except RoughyError as error:
            return str(error)
        return ": ".join(filter(None, [asset.state, asset.error_code, asset.error_message]))

    @task
    def notify(heading: str, lines: list[str]) -> str:
        """Tell somebody. A mail or a chat message would go out here."""
        if not lines:
            raise AirflowSkipException("There is nothing to tell")
        text = "\n".join([heading, *lines])
        print(text)
        return text

    @task(trigger_rule="none_failed")
    def result(outcomes: dict, ti=None) -> None:
        """Say what the night brought."""
        summary = {state: len(files) for state, files in outcomes.items()}
        ti.xcom_push("return_value", summary)  # A task that fails returns nothing.
        if summary["failed"]:
            raise AirflowFailException(f"Not all went well: {summary}")

    files = recordings()
    settled = outcomes(files)
    recording.expand(source=files) >> settled
    notified = [
        notify.override(task_id="notify_unpaid")(UNPAID, settled["pending_payment"]),
        notify.override(task_id="notify_failed")(FAILED, settled["failed"]),
    ]
    notified >> result(settled)
