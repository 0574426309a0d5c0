"""Transfers: where bytes come from and go to, and how uploads and downloads get through broken connections.

Nothing is imported here: every DAG file loads parts of this package, and only a transfer loads tuspy.
"""
