"""How the how-to scripts become pages: their pictures, and their order."""

from pathlib import Path

from sphinx_gallery.scrapers import figure_rst

from torch_featviz.picture import Picture

ORDER = (
    *("atlas", "kernels", "maps", "overview", "why", "units", "receptive", "learning", "findings"),
    *("capture", "cost", "own_model", "filters"),
)


_shown: list[Picture | None] = [None]  # a piece that ends with no value leaves that of the one before


def pictures(_block, variables, settings):
    """The `Picture` that a piece of a script ends with, as a file."""
    found = variables["example_globals"].get("___")
    if not isinstance(found, Picture) or found is _shown[-1]:
        return ""
    _shown.append(found)
    path = found.save(str(next(variables["image_path_iterator"])))
    return figure_rst([str(path)], settings["src_dir"], getattr(found, "title", ""))


def in_order(file):
    """Where a how-to stands among the others."""
    return ORDER.index(Path(file).stem)
