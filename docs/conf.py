"""How Sphinx builds the site: ``make docs``. Nothing is read from the network, to build it or to view it."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow_provider_roughy import __version__

# Where the extension `from_code.site` is.
sys.path.insert(0, str(Path(__file__).parent))

project = "airflow-provider-roughy"
author = "The maintainers of airflow-provider-roughy"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "from_code.site"]
exclude_patterns = ["_build"]

# ---- Pages

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# What is written as "--port" stays so.
smartquotes = False

# ---- The reference

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100

# References to what is documented elsewhere: there is no network to look it up by. Everything of ours must resolve.
nitpicky = True
nitpick_ignore_regex = [
    # Airflow's, Python's and other libraries'.
    (r"py:.*", r"(?!airflow_provider_roughy\.)\w+\..*"),
    (
        r"py:(class|exc)",
        r"(Airflow|Base|Retry|Task|Trigger)\w+|Asset|Connection|Context|Dataset|ObjectStoragePath|SplitResult|date(time)?|timedelta",
    ),
    # Sphinx cuts long hints in two.
    (r"py:class", r".*\[str"),
    # Type variables and what else a hint of a public name may name.
    (r"py:(class|obj)", r"(.*\.)?(R|T|U|FileSystem|Log|Overwrite|ReportLocation|SourceLocation|Trust|Wait|_\w+)"),
]

# ---- The look

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "Roughy for Airflow"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    # The table of errors needs the width.
    "secondary_sidebar_items": {"**": ["page-toc"], "errors": []},
}
# A sidebar is for the pages of a folder.
html_sidebars = {"*": []}
