"""What the pages take from the code: tables, figures, and parts of the example DAGs.

``python -m from_code``, with ``PYTHONPATH=docs``, writes them into the pages (``make pages``). A test keeps them equal
to the code. :mod:`from_code.site` is the Sphinx extension of the site.
"""
