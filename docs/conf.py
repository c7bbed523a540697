"""Sphinx settings: `sphinx-build -W --keep-going -b html docs docs/_build` makes the site."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import torch_featviz as fv  # noqa: E402

project = "torch_featviz"
author = "the torch_featviz founders"
release = version = fv.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery", "myst_parser"]
exclude_patterns = ["_build", "*/*.ipynb", "*/*.py", "sg_execution_times.rst"]
default_role = "code"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wall.css"]
html_title = f"torch_featviz {release}"
html_show_sourcelink = False
html_show_copyright = False
autodoc_member_order = "bysource"
napoleon_use_rtype = False
suppress_warnings = ["myst.header", "myst.xref_missing", "config.cache"]

myst_heading_anchors = 3
GALLERIES = ("howto", "tutorials")

sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "examples" / name) for name in GALLERIES],
    "gallery_dirs": [*GALLERIES],
    "filename_pattern": r"/(howto|tutorials)/",
    "within_subsection_order": "gallery.InOrder",
    "image_scrapers": ["gallery.pictures"],
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 3600,
    "thumbnail_size": (360, 260),
    "plot_gallery": "True",
}


def check_api(app):
    """Every public name is in the reference, once."""
    text = (Path(app.srcdir) / "api.rst").read_text()
    listed = [line.split("torch_featviz.")[1] for line in text.splitlines() if line.startswith(".. auto")]
    rooms = {"errors", "zoo"}  # by automodule
    missing = sorted(set(fv.__all__) - rooms - set(listed))
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if missing or twice:
        raise SystemExit(f"api.rst lacks {missing} and has twice {twice}.")


def setup(app):
    app.connect("builder-inited", check_api)
