"""Recorded states of earlier releases."""
