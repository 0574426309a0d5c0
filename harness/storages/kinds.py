"""The storages of the contract, its guarantees, and where a storage differs: the data of the tests and of the pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Use = Literal["source", "ledger", "target"]


class Guarantee(StrEnum):
    """What a storage guarantees. The value names the row of the table in ``docs/storages.md``."""

    NAMES = "files of any name are found and uploaded once"
    METADATA = "an edit of metadata makes no new version, which Roughy would charge"
    RESUMED = "an upload resumes at its offset, and reads only what is missing"
    CHANGED = "a file that changes while it is read is never completed"
    ONE_WINNER = "of tries that create the same object at once, one succeeds, and the others do not"
    LOST_REPLY = "a create whose reply is lost belongs to the try that sent it"
    BATCHES = "two batches at the same time upload each file once, and neither fails"
    CHECK = "`Ledger.check()` finds that the storage overwrites"
    WHOLE = "a file appears whole or not at all, also if the worker is killed"
    FOLDERS = "missing folders are created"
    KEPT = '`overwrite="fail"` replaces no file, also not one that appears during the download'
    LEFT_OVER = "a killed worker leaves no visible file"
    MISSING = "a missing bucket, container or folder fails the task without retries"
    FORBIDDEN = "rejected credentials or missing permissions fail the task without retries"
    AWAY = "a storage that is down is tried again"


#: Which guarantees a use of a storage depends on.
USES: dict[Use, tuple[Guarantee, ...]] = {
    "source": (Guarantee.NAMES, Guarantee.METADATA, Guarantee.RESUMED, Guarantee.CHANGED),
    "ledger": (Guarantee.ONE_WINNER, Guarantee.LOST_REPLY, Guarantee.BATCHES, Guarantee.CHECK),
    "target": (Guarantee.WHOLE, Guarantee.FOLDERS, Guarantee.KEPT, Guarantee.LEFT_OVER),
}
#: Guarantees of each use.
ERRORS = (Guarantee.MISSING, Guarantee.FORBIDDEN, Guarantee.AWAY)


@dataclass(frozen=True)
class Kind:
    """A storage.

    :param name: Its name in the tests.
    :param title: Its name in the pages.
    :param server: Which server of :data:`harness.storages.launch.LAUNCHERS` stands for it; empty for local folders.
    :param tested_with: That server's name in the pages.
    :param scheme: The scheme of its URIs.
    :param uri: An example of its URIs, with the connection `media`.
    :param provider: The package to install.
    :param connection: An example of its Airflow connection, as JSON.
    :param odd_names: Names that it, its API or its client does not take, with the reason.
    :param differs: Guarantees that it does not give, with what is true instead.
    :param untested: Guarantees that the server of the tests cannot show, with the reason.
    """

    name: str
    title: str
    server: str
    tested_with: str
    scheme: str
    uri: str
    provider: str
    connection: str
    odd_names: dict[str, str] = field(default_factory=dict)
    differs: dict[Guarantee, str] = field(default_factory=dict)
    untested: dict[Guarantee, str] = field(default_factory=dict)


KINDS = (
    Kind(
        "local",
        "Local and network folders",
        "",
        "a local folder",
        "file",
        "/data/incoming",
        "",
        "",
        untested={
            Guarantee.LOST_REPLY: "no request",
            Guarantee.CHECK: "a local folder does not overwrite",
            Guarantee.FORBIDDEN: "root may do everything",
            Guarantee.AWAY: "no server",
        },
    ),
    Kind(
        "s3",
        "S3",
        "moto",
        "moto",
        "s3",
        "s3://media@bucket/incoming",
        "apache-airflow-providers-amazon[s3fs]",
        '{"conn_type": "aws", "login": "<key id>", "password": "<secret>", "extra": {"region_name": "eu-west-1"}}',
    ),
    Kind(
        "s3-compatible",
        "S3 API of others",
        "seaweedfs",
        "SeaweedFS",
        "s3",
        "s3://media@bucket/incoming",
        "apache-airflow-providers-amazon[s3fs]",
        '{"conn_type": "aws", "login": "…", "password": "…", "extra": {"endpoint_url": "https://s3.example.com"}}',
        differs={
            Guarantee.MISSING: "SeaweedFS creates a missing bucket at the first write",
            Guarantee.KEPT: "of files over 8 MiB that end within the same moment, SeaweedFS may keep any",
        },
    ),
    Kind(
        "gcs",
        "Google Cloud Storage",
        "gcs",
        "fake-gcs-server",
        "gs",
        "gs://media@bucket/incoming",
        "apache-airflow-providers-google",
        '{"conn_type": "google_cloud_platform", "extra": {"project": "…", "key_path": "/keys/gcs.json"}}',
        untested={Guarantee.KEPT: "the server of the tests drops the condition of a resumable upload; GCS does not"},
    ),
    Kind(
        "azure",
        "Azure Blob Storage",
        "azure",
        "Azurite",
        "abfs",
        "abfs://media@container/incoming",
        "apache-airflow-providers-microsoft-azure",
        '{"conn_type": "wasb", "extra": {"connection_string": "AccountName=…;AccountKey=…;EndpointSuffix=…"}}',
        odd_names={
            "q?versionid=1.mp3": "a file with `?versionid=` in its name is rejected: adlfs reads it as a version"
        },
    ),
    Kind(
        "sftp",
        "SFTP",
        "sftp",
        "asyncssh",
        "sftp",
        "sftp://media@/data/incoming",
        "apache-airflow-providers-sftp[sshfs]",
        '{"conn_type": "sftp", "host": "sftp.example.com", "login": "…", "extra": {"key_file": "/keys/id_ed25519"}}',
    ),
)
