"""Cuts, captions, timelines, renders and originals of many recordings, made and written in one task.

``inputs.py`` reads which recordings to use, ``wanted.py`` decides which outputs apply to one of them, ``names.py``
names them, ``plan.py`` finds names that collide and what is written already, ``recording.py`` has the state of a
recording, ``writing.py`` writes a file, and ``production.py`` calls all of them.
"""
