"""Sphinx's settings. `make docs` builds; a warning is an error."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]

# Before autodoc imports Airflow, which would make itself a home in the user's, and log into the build.
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ["AIRFLOW_HOME"] = _HOME.name
logging.getLogger("airflow").setLevel(logging.ERROR)

from reducto_provider import __version__  # noqa: E402

project = "airflow-provider-reducto"
author = "The airflow-provider-reducto developers"
copyright = f"{author}, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.coverage", "sphinx_copybutton"]
nitpicky = True
# Airflow, requests and others are described elsewhere, and nothing is fetched to build these pages.
nitpick_ignore = [  # type variables
    ("py:class", "reducto_provider.export.threads.Item"),
    ("py:class", "reducto_provider.export.threads.Result"),
    ("py:class", "reducto_provider.hooks.event_loop.Result"),
    ("py:class", "reducto_provider.plugins.usage_page.threads.Result"),
    ("py:class", "reducto_provider.triggers.polls.Result"),
    ("py:class", "reducto_provider.triggers.single_flight.Result"),
    ("py:class", "reducto_provider.usage.memo.K"),
    ("py:class", "reducto_provider.usage.memo.V"),
    ("py:class", "reducto_provider.usage.report.Computed"),
]
nitpick_ignore_regex = [
    ("py:.*", r"(?!reducto_provider).*"),
    ("py:class", r"reducto_provider\.plugins\.usage_page\.app\.(Annotated|_\w+)"),  # FastAPI's dependencies
]
# DuckDB's and Snowflake's SQL has more than Pygments knows.
suppress_warnings = ["misc.highlighting_failure"]

highlight_language = "none"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88

# What has a docstring is meant for readers: it has to be in the reference.
coverage_modules = ["reducto_provider"]
coverage_statistics_to_stdout = False
coverage_show_missing_items = True
coverage_skip_undoc_in_source = True

html_theme = "furo"
html_title = f"airflow-provider-reducto {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
