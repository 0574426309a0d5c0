"""Announce assets that others upload as events of an Airflow asset, and give each of them to one run.

=============== ====================================================================================================
Module          Content
=============== ====================================================================================================
`payload`       The payload of an event; `take_assets`, by which a task takes the assets in it
`subscription`  Decides what one trigger announces, and when: new assets, and repeats
`feed`          Reads the lists of an account, once for all subscriptions of an event loop and connection
`baseline`      Which assets are settled, so that a subscription does not announce them
`ledger_reader` Reads and writes the ledger in a thread, once for all subscriptions of a feed
`outage`        Logs an outage and its end once, and how long to pause in between
=============== ====================================================================================================

A sensor knows the id of its asset. A watcher does not: it announces every asset that comes to one of its states after
its first start, and that no run has taken. So an :class:`~.feed.AssetFeed` reads the lists of the account, and each
:class:`~.subscription.Subscription` picks its assets from them. (Airflow 3.3 has shared streams for triggers. They are
not used, because Airflow 3.0 to 3.2 have none, and a stream may drop events.)

A quiet round of a feed takes about four requests, however many assets there are:

1. The feed reads the lists of open assets, which may become ready: in work, or unpaid. It stops at the first page
   without a new asset if the length of the list shows that no asset has left it.
2. The feed reads the lists of assets that have ended, newest first, up to the first page without a new one.
3. The feed reads each asset that has left the lists of step 1 and is on no other list. Lists are ordered by creation,
   so an asset that becomes ready weeks later appears deep in the list.

Once an hour, a full round reads all lists of open assets, and the lists of step 2 as far back as a subscription needs
them, because a list may lag.

A subscription keeps a *baseline* in the folder of its ledger: the time up to which assets are settled, and the older
assets that are not, because they are open or not taken. The baseline advances as runs take assets, so memory and
requests depend on the assets that are open, new or not taken. Runs record in the ledger what they take. There is no
cursor that could move past an event that Airflow lost: a subscription derives what is due from Roughy's lists and the
ledger.

How often an asset is announced depends on Airflow:

- Airflow 3.0 to 3.3 may not start a run for an event until the next event comes. A subscription repeats assets that no
  run has taken, with exponential backoff, for a day.
- Airflow 3.4 starts a run for each event. A subscription announces an asset once. If no run has taken it some seconds
  later, a note in the ledger keeps a restarted triggerer from announcing it again within a day.
"""
