"""Apache Airflow provider for Roughy, a rough-cut API for audio and video.

Nothing is imported here: Airflow reads this module at every start.
"""

__version__ = "0.2.0"
