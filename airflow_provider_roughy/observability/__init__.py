"""Report what a task did: events of its outlets, lineage, metrics, links, and the report of a night.

================ =================================================================
Module           Content
================ =================================================================
`outlets`        The events that a successful task adds to its outlets
`lineage`        The URIs of Roughy's resources, and reports to Airflow's lineage
`openlineage`    The facet of a run, for Airflow's OpenLineage provider
`metrics`        Sends the metrics of ``instruments.py`` to Airflow's Stats
`links`          The extra links from a task in Airflow's UI to its asset or report
`report`         Writes the report of a task into a storage, and reads it
`report_summary` The totals of a report, and the text for notifiers
`report_page`    The page of a report
================ =================================================================

No error in this package fails a task, except that of a report that cannot be written.
"""
