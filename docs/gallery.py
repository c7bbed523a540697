"""How the how-to scripts become pages: their pictures, and their order."""

from pathlib import Path

from sphinx_gallery.scrapers import figure_rst

from torch_featviz.picture import Picture

ORDER = {
    "howto": (
        *("atlas", "kernels", "maps", "overview", "why", "vit", "swin", "faster_rcnn", "detr", "deeplab", "units"),
        *("receptive", "learning", "findings", "capture", "prove", "cost", "own_model", "filters"),
    ),
    "tutorials": ("four_filters", "xo", "alexnet", "cifar_mlp", "cifar_cnn"),
}


_shown: list[Picture | None] = [None]  # a piece that ends with no value leaves that of the one before


def pictures(_block, variables, settings):
    """The `Picture` that a piece of a script ends with, as a file."""
    found = variables["example_globals"].get("___")
    if not isinstance(found, Picture) or found is _shown[-1]:
        return ""
    _shown.append(found)
    path = found.save(str(next(variables["image_path_iterator"])))
    return figure_rst([str(path)], settings["src_dir"], getattr(found, "title", ""))


class InOrder:
    """Where a page stands among the others of its gallery."""

    def __init__(self, folder):
        self.order = ORDER.get(Path(folder).name, ())

    def __call__(self, file):
        return self.order.index(Path(file).stem)

    def __repr__(self):  # part of what tells whether a build is up to date
        return f"InOrder({self.order})"
