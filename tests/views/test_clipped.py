"""Every picture with images: what is beyond their range is marked and counted, and how to declare another is said."""

import base64
import io
import re
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer

from torch_featviz import views
from torch_featviz.atlas import atlas
from torch_featviz.errors import FeatvizWarning, OptionError
from torch_featviz.picture import Scale, overlay, reserved
from torch_featviz.survey import top_patches
from torch_featviz.zoo import ModelCard

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CARD = ModelCard("any", nn.Identity, (3, 8, 8), classes=("first", "second"), mean=MEAN, std=STD)
LOGITS = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
OVER, UNDER = [(0, 0, 0), (0, 2, 5), (1, 7, 7)], [(0, 3, 3), (1, 0, 1)]  # image, row, column


class Net(nn.Module):
    """Its one channel sees the whole image, and any image moves it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 8, padding=0)
        self.head = nn.Linear(1, 2)
        nn.init.constant_(self.conv.weight, 0.001)
        nn.init.constant_(self.conv.bias, 1.0)

    def forward(self, images):
        return self.head(self.conv(images).flatten(1))


NET = Net().eval()
SMALL = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
TRANSFORMER = VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=2).eval()
OF_ANY_SIZE = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)).eval()


def images():
    """With three pixels above 1 in one colour each or in all, two below 0, and what is far from either."""
    units = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    for i, (image, row, column) in enumerate(OVER):
        units[image, slice(i, i + 1) if i else slice(None), row, column] = 1.5
    for image, row, column in UNDER:
        units[image, 1, row, column] = -0.5
    return units


def sheet(picture, cells=slice(None), cmap="gray"):
    """Its words, its pixels `n 3 h w`, and the colours reserved on it."""
    return picture.legend.marks(), picture.legend.lines(), picture.cells[cells], reserved(cmap)


def of_predictions(given, **declared):
    figure = views.predictions(given, LOGITS, ["a", "b"], **declared).figure()
    shown = np.stack([axes.images[0].get_array() for axes in figure.axes[::2]])
    return _said(figure.get_supxlabel(), torch.from_numpy(shown).permute(0, 3, 1, 2))


def of_overlay(given, **declared):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        drawn = overlay(given, torch.zeros(2, 8, 8), alpha=0.3, **declared)
    assert all(each.category is FeatvizWarning and each.filename == __file__ for each in told)
    return _said(" ".join(str(each.message) for each in told), drawn, "RdBu_r")


def of_atlas(given, **declared):
    page = atlas(SMALL, given, **declared)
    found = [image["picture"]["blob"] for image in page.data["images"]]
    files = [Image.open(io.BytesIO(base64.b64decode(page.blobs[blob]))).convert("RGB") for blob in found]
    marked = [[mark["words"].partition(" ")[::2] for mark in image["clipped"]] for image in page.data["images"]]
    total = Counter()
    for number, words in (mark for image in marked for mark in image):
        total[words] += int(number)
    assert all(words in page.html for image in marked for mark in image for words in mark)
    marks = [(None, f"{number} {words}") for words, number in total.items()]
    return marks, page.data["range"], torch.stack([_pixels(file) for file in files]), reserved()


def _said(text, cells, cmap="gray"):
    words = re.findall(r"[\d,]+ px \w+ the images' range|[\d,]+ px [^\s,;]+", text)
    return [(None, each) for each in words], [text], cells, reserved(cmap)


def _pixels(file):
    return torch.from_numpy(np.array(file)).permute(2, 0, 1)


def of_pixels(given, **declared):
    return sheet(views.pixels(_tall(given), **declared))


def of_samples(given, **declared):
    return sheet(views.samples([(given[0], 0), (given[1], 1)], **declared))


def of_images(given, **declared):
    return sheet(views.images(given, **declared))


def of_exemplars(given, **declared):
    best = top_patches(NET, [given], "conv", k=2)
    found = sheet(views.exemplars(best, **declared), slice(0, 1))
    assert best.patches(0).numbers.sort().values.tolist() == [[0, 1]]
    return found


def of_attributions(given, **declared):
    drawn = views.attributions(SMALL, given, faithful=False, methods=["saliency"], **declared)
    for at in (0, 1):  # the image, and the heatmap over it
        assert_marked(*sheet(drawn, slice(at, None, 2), "RdBu_r"), drawn.legend.counts)
    return sheet(drawn, slice(0, None, 2), "RdBu_r")


def of_attention(given, **declared):
    drawn = views.attention(TRANSFORMER, given, **declared)
    for head in (1, 2):  # over the image
        assert_marked(
            *sheet(replace(drawn, cells=_small(drawn.cells, 8)), slice(head, None, 3), "viridis"), drawn.legend.counts
        )
    marks, lines, cells, colors = sheet(drawn, slice(0, None, 3), "viridis")
    return marks, lines, _small(cells, 8), colors


def of_adversarial(given, **declared):
    drawn = views.adversarial(SMALL, given, eps=0.01, steps=1, **declared)
    assert_marked(*sheet(drawn, slice(0, None, 3)), drawn.legend.counts)
    colors = [torch.tensor(reserved("gray")[reason])[:, None, None] for reason in ("over", "under")]
    before, after = (sum((drawn.cells[at::3] == color).all(1) for color in colors).bool() for at in (0, 2))
    assert not (after & ~before).any(), "none goes out of the range, some may come in"
    return sheet(drawn, slice(0, None, 3))


def of_look(given, **declared):
    return sheet(views.look(OF_ANY_SIZE, _tall(given), **declared).rows[0][0].rows[0][0])


def of_augmentations(given, **declared):
    return sheet(views.augmentations(_tall(given), [torch.zeros_like], n=1, times=False, **declared), slice(0, 1))


def of_projection(given, **declared):
    drawn = views.projection(SMALL, _tall(given), "1", (0, 2, 2), **declared)
    assert drawn.labels[1].startswith("activation")
    marks, lines, cells, colors = sheet(drawn, slice(0, 1))
    return marks, lines, _small(cells, 16), colors


def of_tokens(given, **declared):
    drawn = views.tokens(SMALL, given, "0", **declared)
    legend = drawn.legend.also
    cells = _small(_unframed(drawn.cells[::2]), 8)
    return legend.marks() if legend else [], legend.lines() if legend else [], cells, reserved("gray")


def _unframed(cells):
    """Without the white paper around an image that is not as wide as its map."""
    inside = (cells[0] != 255).any(0)
    return cells[..., inside.any(1), :][..., inside.any(0)]


def of_segments(given, **declared):
    drawn = views.segments(torch.zeros(2, 4, 4, dtype=torch.long), ["background"], given, **declared)
    marks, lines, cells, colors = sheet(drawn, slice(0, None, 2), "viridis")
    return marks[1:], lines, _small(cells, 8), colors


def _tall(given):
    """Two images as one."""
    return given.permute(1, 0, 2, 3).flatten(1, 2)


def _small(cells, height):
    """What was enlarged by a whole factor as it was."""
    zoom = cells.shape[2] // height
    return cells[:, :, zoom // 2 :: zoom, zoom // 2 :: zoom]


def assert_marked(marks, lines, cells, colors, counts):
    for reason in ("over", "under"):
        color = torch.tensor(colors[reason])[:, None, None]
        assert int((cells == color).all(1).sum()) == getattr(counts, reason)


DRAWN = {
    "adversarial": of_adversarial,
    "augmentations": of_augmentations,
    "projection": of_projection,
    "segments": of_segments,
    "attention": of_attention,
    "attributions": of_attributions,
    "exemplars": of_exemplars,
    "images": of_images,
    "look": of_look,
    "pixels": of_pixels,
    "predictions": of_predictions,
    "samples": of_samples,
    "tokens": of_tokens,
    "overlay": of_overlay,
    "atlas": of_atlas,
}
NO_IMAGES = {
    "attention_distance": "points",
    "confusion": "shares of 0 to 1",
    "curves": "lines",
    "effective_field": "a field, on a scale that is fitted to it",
    "feature_maps": "maps of a layer; what a scale clips of them is counted as here",
    "kernels": "likewise",
    "overview": "maps of layers, each on a scale that is fitted to it",
}


def test_no_view_is_forgotten():
    assert {*DRAWN, *NO_IMAGES} == {*filter(str.islower, views.__all__), "overlay", "atlas"}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("declared", ["unit", "signed", "byte", "function", "mean and std", "card"])
def test_what_is_beyond_the_range_is_marked_and_counted(name, declared):
    units = images()
    card = CARD.normalize(units)
    given, options = {
        "unit": (units, {"value_range": "unit"}),
        "signed": (units * 2 - 1, {"value_range": "signed"}),
        "byte": (units * 255, {"value_range": "byte"}),
        "function": (units / 3, {"value_range": lambda x: x * 3}),
        "mean and std": (card, {"value_range": {"mean": MEAN, "std": STD}}),
        "card": (card, {"card": CARD}),
    }[declared]
    marks, lines, cells, colors = DRAWN[name](given, **options)
    assert [words for _, words in marks] == ["3 px above the images' range", "2 px below the images' range"]
    for reason, places in (("over", OVER), ("under", UNDER)):
        hit = (cells == torch.tensor(colors[reason])[:, None, None]).all(1)
        assert int(hit.sum()) == len(places)
        if cells.shape == (2, 3, 8, 8):
            assert set(map(tuple, hit.nonzero().tolist())) == set(places)
    assert "−0.5 to 1.5" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_said_where_nothing_is_beyond(name):
    units = images().clamp(0, 1)
    for given, options in ((units, {}), (CARD.normalize(units), {"card": CARD})):
        marks, lines, _, _ = DRAWN[name](given, **options)
        assert not marks
        assert not any("value_range" in line for line in lines)


@pytest.mark.parametrize("name", DRAWN)
def test_a_card_draws_what_its_model_takes_as_it_was(name):
    units = images().clamp(0, 1)
    normalised = CARD.normalize(units)
    plain = DRAWN[name](units)[2].int()
    for options in ({"card": CARD}, {"value_range": CARD.denormalize}, {"value_range": {"mean": MEAN, "std": STD}}):
        drawn = DRAWN[name](normalised, **options)[2].int()
        if name != "exemplars":  # whose model sees something else, and may order them otherwise
            assert (drawn - plain).abs().max() <= 1
    with_range = DRAWN[name](units, card=CARD, value_range="unit")[2].int()
    assert torch.equal(with_range, plain), "the range that is declared counts"


@pytest.mark.parametrize("name", DRAWN)
def test_a_normalised_batch_is_answered_with_what_to_write(name):
    normalised = CARD.normalize(images().clamp(0, 1))
    if name == "atlas":
        with pytest.raises(OptionError, match=r"pass card=, or value_range=.*\{'mean': \.\.\., 'std'"):
            atlas(SMALL, normalised)
    options = {"value_range": "unit"} if name == "atlas" else {}
    marks, lines, _, _ = DRAWN[name](normalised, **options)
    outside = int(((normalised < 0) | (normalised > 1)).any(1).sum())
    assert sum(int(words.split()[0]) for _, words in marks) == outside
    low, high = normalised.min(), normalised.max()
    said = re.sub(r"\s+", " ", " ".join(lines))
    assert f"{low:.3g}".replace("-", "−") in said
    assert f"{high:.3g}" in said
    assert "pass card=" in said
    assert "{'mean': ..., 'std': ...}" in said


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_range": "float"}, "value_range must be one of unit, signed, byte, imagenet, or a function such as"),
        ({"value_range": (0, 1)}, r"or \{'mean': ..., 'std': ...\}, got \(0, 1\)"),
        ({"value_range": {"mean": 0.5}}, r"got \{'mean': 0.5\}"),
        ({"value_range": {"mean": (0, 0), "std": 1}}, "mean and std must be 1 or 3 numbers each"),
        ({"value_range": {"mean": "a", "std": 1}}, "mean and std must be 1 or 3 numbers each"),
        ({"card": "alexnet"}, r"card must be a ModelCard, .*got 'alexnet'"),
    ],
)
def test_ranges_that_there_are_not(name, options, message):
    with pytest.raises(OptionError, match=message):
        DRAWN[name](images(), **options)


def test_one_count_for_a_pixel_and_the_order_of_reasons():
    """NaN before infinities before above before below, whatever else the pixel holds."""
    units = torch.full((1, 3, 2, 3), 0.5)
    nan, inf = float("nan"), float("inf")
    units[0, :, 0, 0] = torch.tensor([nan, inf, 2.0])
    units[0, :, 0, 1] = torch.tensor([-inf, inf, -2.0])
    units[0, :, 0, 2] = torch.tensor([-inf, 3.0, -2.0])
    units[0, :, 1, 0] = torch.tensor([2.0, 0.5, -2.0])
    units[0, :, 1, 1] = torch.tensor([0.1, 0.5, -2.0])
    expected = ["1 px NaN", "1 px +∞", "1 px −∞", "1 px above the images' range", "1 px below the images' range"]
    assert [words for _, words in views.samples([(units[0], 0)]).legend.marks()] == expected
    with pytest.warns(FeatvizWarning, match=re.escape(", ".join(expected) + "; images have values from −2 to 3, ")):
        drawn = overlay(units, torch.zeros(1, 2, 3))
    order = list(reserved("RdBu_r").values())
    assert [tuple(drawn[0, :, i // 3, i % 3].tolist()) for i in range(5)] == order
    with pytest.warns(FeatvizWarning, match="^overlay marks 1 px NaN.$"):
        overlay(torch.full((1, 1, 1, 2), 0.5).index_fill(3, torch.tensor([0]), nan), torch.zeros(1, 1, 2))


def test_a_heatmap_that_is_clipped_itself_hides_the_mark():
    heat = torch.tensor([[[0.0, 9.0, float("nan")]]])
    with pytest.warns(FeatvizWarning, match="3 px above the images' range"):
        drawn = overlay(torch.full((1, 1, 1, 3), 2.0), heat, scale=Scale(vmin=0, vmax=1), value_range="unit")
    colors = reserved("viridis")
    assert [tuple(drawn[0, :, 0, i].tolist()) for i in range(3)] == [colors["over"], colors["over"], colors["nan"]]


def test_a_card_names_the_classes_of_its_own_model_and_says_what_the_scores_are():
    given = CARD.normalize(images().clamp(0, 1))
    quick = {"faithful": False, "methods": ["saliency"]}
    drawn = views.attributions(SMALL, given, card=CARD, **quick)
    assert {label.partition(" ")[0] for label in drawn.labels} <= {"first", "second", ""}
    named = views.attributions(SMALL, given, card=CARD, classes=["mine", "yours"], **quick)
    assert {label.partition(" ")[0] for label in named.labels} <= {"mine", "yours", ""}
    other = replace(CARD, classes=("a", "b", "c"))  # the head is another than the card's
    unnamed = views.attributions(SMALL, given, card=other, **quick)
    assert {label.partition(" ")[0] for label in unnamed.labels} == {"class", ""}
    half = torch.tensor([[0.5, 0.25], [0.25, 0.5]])
    labels = replace(CARD, answer="label_probabilities")
    assert "several may be true" in views.predictions(given, half, ["a", "b"], card=labels).figure().get_supxlabel()
    told = views.predictions(given, half, ["a", "b"], card=labels, answer="logits").figure().get_supxlabel()
    assert "several may be true" not in told
