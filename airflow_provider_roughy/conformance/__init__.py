"""The command ``verify``: compare a Roughy, fact by fact, with what this package knows of the API.

``airflow roughy verify --conn-id X`` checks each fact of :data:`facts.FACTS` against the API of that connection. The
checks are the same for the service, the emulator and any other implementation. They send requests of their own and use
none of the parsers of ``api``, so that they judge replies as they were sent.
"""

from __future__ import annotations
