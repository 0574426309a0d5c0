"""The operators: what a task can have done at Roughy.

Each fills the events of its ``outlets`` when it succeeds, for other DAGs to start on.
"""

from airflow_provider_roughy.operators.assets import RoughyDeleteAssetOperator
from airflow_provider_roughy.operators.cuts import (
    RoughyCutOperator,
    RoughyExportCutOperator,
    RoughyExportSubtitlesOperator,
)
from airflow_provider_roughy.operators.downloads import RoughyDownloadOperator
from airflow_provider_roughy.operators.ingest import RoughyIngestOperator
from airflow_provider_roughy.operators.plans import RoughyPlanIngestOperator
from airflow_provider_roughy.operators.produce import RoughyProduceOperator
from airflow_provider_roughy.operators.renders import RoughyRenderOperator
from airflow_provider_roughy.operators.uploads import RoughyCreateUploadOperator

__all__ = [
    "RoughyCreateUploadOperator",
    "RoughyCutOperator",
    "RoughyDeleteAssetOperator",
    "RoughyDownloadOperator",
    "RoughyExportCutOperator",
    "RoughyExportSubtitlesOperator",
    "RoughyIngestOperator",
    "RoughyPlanIngestOperator",
    "RoughyProduceOperator",
    "RoughyRenderOperator",
]
