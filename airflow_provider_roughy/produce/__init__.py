"""Cuts, captions, timelines, renders and originals of many recordings, made and written in one task.

``names.py`` makes the names of the outputs, ``wanted.py`` decides which outputs apply to a recording, ``inputs.py``
reads which recordings to use, ``recording.py`` has the state of one of them, ``writing.py`` writes a file, and
``production.py`` calls all of them.
"""
