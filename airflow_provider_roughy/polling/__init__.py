"""Wait for resources: each poll of a resource is judged until there is a verdict, and many waiters share their polls.

========= ===================================================================
Module    What is in it
========= ===================================================================
`poller`  judges each poll of one resource
`shared`  polls for all waiters of one event loop, connection and kind
`wait`    waits for one resource or a batch
`several` waits for resources of several kinds, until some or all have ended
========= ===================================================================
"""

from airflow_provider_roughy.event_loop import end, finish, run_here
from airflow_provider_roughy.polling.poller import ResourcePoller, others_wait_for, waiting
from airflow_provider_roughy.polling.several import wait_for_some
from airflow_provider_roughy.polling.shared import SharedPoll
from airflow_provider_roughy.polling.wait import (
    poll_batch,
    read_batch,
    wait_for_batch,
    wait_here,
    wait_until_all_final,
    wait_until_final,
)

#: The name in 0.1 and 0.2.
Watch = ResourcePoller

__all__ = [
    "ResourcePoller",
    "SharedPoll",
    "Watch",
    "end",
    "finish",
    "others_wait_for",
    "poll_batch",
    "read_batch",
    "run_here",
    "wait_for_batch",
    "wait_for_some",
    "wait_here",
    "wait_until_all_final",
    "wait_until_final",
    "waiting",
]
