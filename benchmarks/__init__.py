"""The measurements of ``make bench``, compared with other clients on the same machine at the same time."""
