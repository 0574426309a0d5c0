"""Report to Airflow what a task did: events of its outlets, lineage, metrics, and a link to the asset.

============= ==================================================================
Module        Content
============= ==================================================================
`outlets`     The events that a successful task adds to its outlets
`lineage`     The URIs of Roughy's resources, and reports to Airflow's lineage
`openlineage` The facet of a run, for Airflow's OpenLineage provider
`metrics`     Sends the metrics of ``instruments.py`` to Airflow's Stats
`links`       The extra link from a task in Airflow's UI to its asset
============= ==================================================================

No error in this package fails a task.
"""
