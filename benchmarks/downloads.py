"""One download in a new process, which prints its cost as JSON, without imports.

Usage: ``python -m benchmarks.downloads operator TARGET`` (this package, with Airflow's connections from the
environment), ``... requests URL FILE``, ``... urllib3 URL FILE``, ``... http_to_s3 ENDPOINT BUCKET KEY`` (Airflow's
``HttpToS3Operator``), or ``... memory TARGET`` (this package's memory from the first byte to the last).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module

from benchmarks.measure import MIB, Sample, forget_peak, measured, memory
from benchmarks.uploads import IDLE

#: The modules of this package that a download imports.
_OURS = ("airflow_provider_roughy.operators", "airflow_provider_roughy.http.client")
#: The modules of an object storage.
_STORES = ("s3fs", "airflow.providers.amazon.aws.fs.s3")
_ASSET_ID = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"


def operator(target: str) -> Sample:
    """Download with the operator."""
    for name in (*IDLE, *_OURS, *(_STORES if "://" in target else ())):
        import_module(name)
    from airflow_provider_roughy.operators import RoughyDownloadOperator

    connection = "s3" if "://" in target else None
    task = RoughyDownloadOperator(task_id="download", target=target, asset_id=_ASSET_ID, target_conn_id=connection)
    return measured(lambda: task.execute({}))


def memory_growth(target: str) -> Sample:
    """Download with the operator; the peak is the growth of its memory from the first byte to the last."""
    from airflow_provider_roughy.transfer import download

    plain = download.Downloader.download
    grown = 0

    def transfer(self: download.Downloader) -> None:
        nonlocal grown
        forget_peak()
        before = memory("VmRSS")
        plain(self)
        grown = memory("VmHWM") - before

    download.Downloader.download = transfer  # type: ignore[method-assign]
    sample = operator(target)
    return Sample(sample.wall, sample.cpu, grown)


def with_requests(url: str, file: str) -> Sample:
    """Download with requests as in its documentation, in blocks of 1 MiB."""
    import requests

    def work() -> None:
        with requests.get(url, stream=True, timeout=60) as reply, open(file, "wb") as out:
            reply.raise_for_status()
            for block in reply.iter_content(MIB):
                out.write(block)

    return measured(work)


def with_urllib3(url: str, file: str) -> Sample:
    """Download with urllib3, in blocks of 1 MiB."""
    import os

    import urllib3

    def work() -> None:
        http = urllib3.PoolManager(ca_certs=os.environ["CURL_CA_BUNDLE"])
        reply = http.request("GET", url, preload_content=False)
        with open(file, "wb") as out:
            for block in reply.stream(MIB):
                out.write(block)

    return measured(work)


def http_to_s3(endpoint: str, bucket: str, key: str) -> Sample:
    """Download with the Amazon provider's operator, which holds the whole reply in memory."""
    for name in (*IDLE, *_STORES):
        import_module(name)
    from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator

    task = HttpToS3Operator(
        task_id="download", endpoint=endpoint, s3_bucket=bucket, s3_key=key, aws_conn_id="s3", replace=True
    )
    return measured(lambda: task.execute({}))


if __name__ == "__main__":
    work = {
        "operator": operator,
        "memory": memory_growth,
        "requests": with_requests,
        "urllib3": with_urllib3,
        "http_to_s3": http_to_s3,
    }[sys.argv[1]]
    print(json.dumps(asdict(work(*sys.argv[2:]))))  # type: ignore[operator]
