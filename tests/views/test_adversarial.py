import pytest
import torch
from torch import nn

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain import attack
from torch_featviz.picture import rgb
from torch_featviz.picture.images import unit_images
from torch_featviz.views import adversarial
from torch_featviz.zoo import ModelCard

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CARD = ModelCard(
    "any", nn.Identity, (3, 8, 8), classes=("pig", "airliner", "cup"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


def net(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


def test_each_image_the_perturbation_and_what_comes_of_it():
    found = attack(net(), IMAGES, target=1, eps=0.05)
    sheet = adversarial(net(), IMAGES, target=1, eps=0.05, classes=["pig", "airliner", "cup"])
    cells = sheet.cells.unflatten(0, (3, 3))
    assert torch.equal(cells[:, 0], rgb(IMAGES))
    assert torch.equal(cells[:, 2], rgb(found.images))
    change = cells[:, 1].double() / 255 * 2 - 1
    assert (change * 0.05 - found.perturbation).abs().max() < 0.05 / 200, "from -eps, black, to eps, white"
    assert sheet.columns == ("image", "perturbation × 10", "perturbed image")
    assert sheet.legend.ticks() == [(0.0, "−0.05"), (0.5, "0"), (1.0, "0.05")]
    assert sheet.legend.marks() == []
    names = ("pig", "airliner", "cup")
    for i in range(3):
        was, now = int(found.before[i].argmax()), int(found.after[i].argmax())
        assert sheet.labels[3 * i] == f"{names[was]} {100 * float(found.before[i, was]):.1f} %"
        mark = "✓" if now == 1 else "✗"
        assert sheet.labels[3 * i + 2] == f"{mark} {names[now]} {100 * float(found.after[i, now]):.1f} %"
        assert sheet.captions[3 * i] == f"airliner {100 * float(found.before[i, 1]):.1f} %"
        assert sheet.captions[3 * i + 2] == f"airliner {100 * float(found.after[i, 1]):.1f} %"
    notes = " ".join(sheet.legend.notes)
    assert "perturbation: at most 0.05 per value in [0, 1] (12.8 of 255 levels)" in notes
    assert "by projected gradient descent, 40 steps; target: airliner" in notes
    assert f"✓ reached: {int(found.reached.sum())} of 3" in notes


def test_images_as_a_model_takes_them():
    given = CARD.normalize(IMAGES)
    sheet = adversarial(net(), given, eps=0.02, steps=1, card=CARD)
    found = attack(net(), given, eps=0.02, steps=1, card=CARD)
    cells = sheet.cells.unflatten(0, (3, 3))
    assert torch.equal(cells[:, 0], rgb(unit_images(given, card=CARD)))
    assert torch.equal(cells[:, 2], rgb(unit_images(found.images, card=CARD)))
    assert (cells[:, 2].int() - cells[:, 0].int()).abs().max() <= 6, "of 255 levels, 5.1 and rounding"
    assert all(label.lstrip("✓✗ ").split()[0] in CARD.classes for label in sheet.labels if label)
    assert "the fast gradient sign method, 1 step; target: any other answer" in " ".join(sheet.legend.notes)
    assert sheet.png() == adversarial(net(), given, eps=0.02, steps=1, card=CARD).png()


def test_titles_say_whether_it_was_found():
    still = adversarial(net(), IMAGES[0], target=int(net()(IMAGES)[0].argmin()), eps=1e-6)
    assert still.title == "A perturbation of at most 1e−6 does not alter the answer to the target"
    one = adversarial(net(), IMAGES[0], target=1, eps=0.5, classes=["a", "b", "c"])
    assert one.title == "A perturbation of at most 0.5 alters the answer to the target"


@pytest.mark.parametrize(("classes", "names"), [((), ("class 0", "class 1")), (["b"], ("not b", "b"))])
def test_names_of_a_single_logit(classes, names):
    sheet = adversarial(net(1), IMAGES, target=1, eps=0.5, classes=classes, answer="logits", card=CARD)
    assert {label.lstrip("✓✗ ").rsplit(" ", 2)[0] for label in sheet.labels if label} <= set(names)


def test_long_names_are_no_wider_than_their_cell():
    names = [f"a very long name of a class {'x' * 200} {i}" for i in range(3)]
    short = adversarial(net(), IMAGES, classes=["a", "b", "c"]).numpy().shape
    assert adversarial(net(), IMAGES, classes=names).numpy().shape[1] == short[1]


@pytest.mark.parametrize(("b", "side"), [(32, 224), (1, 600), (20, 8)])
def test_no_sheet_is_wider_or_higher_than_4000(b, side):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 40))
    names = [f"a rather long name, {i}" for i in range(40)]
    sheet = adversarial(model, torch.rand(b, 3, side, side), steps=1, classes=names)
    assert max(sheet.numpy().shape[:2]) <= 4000


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"images": torch.rand(33, 3, 8, 8)}, ShapeError, "33 images are too many, a sheet shows 32"),
        ({"images": torch.rand(8, 8)}, ShapeError, "images must be 'b c h w'"),
        ({"classes": ["a", "b"]}, ShapeError, "classes must name 3, as the model returns, got 2"),
        ({"eps": 0}, OptionError, "eps must be above 0"),
        ({"answer": "figures"}, OptionError, "an attack needs classes"),
    ],
)
def test_bad_input_says_what_to_do(change, error, match):
    given = {"images": IMAGES, **change}
    with pytest.raises(error, match=match):
        adversarial(net(), given.pop("images"), **given)


def test_the_title_takes_no_credit_for_what_was_so_before():
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4)
    sheet = adversarial(net, images, target=net(images).argmax(1), eps=1e-3, steps=2)
    assert sheet.title == "A perturbation of at most 0.001 does not alter any of 2 answers to the target"
    assert "already so without a perturbation: 2" in sheet.legend.notes
