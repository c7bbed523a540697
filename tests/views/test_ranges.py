"""Every picture with images declares their range in one way: by a name, or by a function to 0 and 1."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.atlas import atlas
from torch_featviz.errors import OptionError
from torch_featviz.picture import Counts, count, overlay
from torch_featviz.picture.images import unit_images
from torch_featviz.survey import top_patches
from torch_featviz.views import (
    adversarial,
    attributions,
    augmentations,
    exemplars,
    images,
    predictions,
    projection,
    samples,
    segments,
    tokens,
)
from torch_featviz.zoo import ModelCard

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CARD = ModelCard("any", nn.Identity, (3, 8, 8), classes=("a", "b"), mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()


UNITS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOGITS = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
PICTURES = {
    "adversarial": lambda net, x, r: adversarial(net, x, value_range=r, eps=0.1, steps=1).cells,
    "augmentations": lambda _, x, r: augmentations(x[0], [lambda y: y.flip(2)], value_range=r, times=False).cells,
    "projection": lambda net, x, r: projection(net, x[0], "1", 0, value_range=r).cells[:2],
    "segments": lambda _, x, r: segments(torch.zeros(2, 8, 8).long(), "ab", x, value_range=r).cells[::2],
    "attributions": lambda net, x, r: attributions(net, x, value_range=r, faithful=False).cells[::2],
    "exemplars": lambda net, x, r: exemplars(top_patches(net, [x], "1", k=2), value_range=r).cells[::2],
    "images": lambda _, x, r: images(x, value_range=r).cells,
    "overlay": lambda _, x, r: overlay(x, torch.zeros(2, 8, 8), alpha=0, gray=False, value_range=r),
    "predictions": lambda _, x, r: predictions(x, LOGITS, "ab", value_range=r).png(),
    "samples": lambda _, x, r: samples([(x[0], 0), (x[1], 1)], value_range=r).cells,
    "tokens": lambda net, x, r: tokens(net, x, "1", value_range=r).cells,
    "atlas": lambda net, x, r: [image["picture"] for image in atlas(net, x, value_range=r).data["images"]],
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_name_and_a_function_for_the_same_range_draw_the_same(name, net):
    images = UNITS * 2 - 1
    by_name, by_function = (PICTURES[name](net, images, r) for r in ("signed", lambda x: (x + 1) / 2))
    same = torch.equal(by_name, by_function) if isinstance(by_name, torch.Tensor) else by_name == by_function
    assert same
    with pytest.raises(OptionError, match=r"one of unit, .*, or a function such as card.denormalize"):
        PICTURES[name](net, images, "float")


@given(st.tuples(*[st.floats(0.01, 0.99)] * 3), st.tuples(*[st.floats(0.01, 2)] * 3))
def test_what_a_card_normalises_is_not_clipped_on_the_way_back(mean, std):
    """Whatever normalising and back rounds."""
    known = replace(CARD, mean=mean, std=std)
    corners = torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2)
    for options in ((known.denormalize,), ({"mean": mean, "std": std},), (None, known)):
        units = unit_images(known.normalize(corners), *options)
        assert count(units) == Counts()
        assert (units - corners).abs().max() < 1e-5
        far = unit_images(known.normalize(corners * 1.001), *options)
        assert far.max() > 1.0005, "what is outside stays outside, to be marked"


def test_a_page_takes_the_range_of_its_card(net):
    normalised = CARD.normalize(UNITS)
    pages = [atlas(net, normalised, card=CARD), atlas(net, normalised, value_range=CARD.denormalize)]
    blobs = [[page.blobs[image["picture"]["blob"]] for image in page.data["images"]] for page in pages]
    assert (
        blobs[0]
        == blobs[1]
        == [page.blobs[image["picture"]["blob"]] for page in [atlas(net, UNITS)] for image in page.data["images"]]
    )
    with pytest.raises(OptionError, match=r"must lie in \[0, 1\], got .*; pass card=, or value_range="):
        atlas(net, normalised)
