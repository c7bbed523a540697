"""A class by its name, wherever one is asked for."""

import numpy as np
import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.explain import attack, attribute, reasons
from torch_featviz.model.labels import class_number
from torch_featviz.model.names import check_named, known_names, listed, numbered

NAMES = ["crane", "dog", "cow", "crane"]
IMAGES = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def net_of(n=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, n)).eval()


CARD = fv.ModelCard("net", net_of, (1, 6, 6), classes=tuple(NAMES))


def test_a_name_is_its_number():
    assert [class_number(name, "abc") for name in "abc"] == [0, 1, 2]
    with pytest.raises(OptionError, match="the model has several classes 'crane': give a number, 0 or 3"):
        class_number("crane", NAMES)
    with pytest.raises(OptionError, match="net has no class 'dgo'; close: 'dog'"):
        class_number("dgo", NAMES, "net")
    with pytest.raises(OptionError, match="net tells no names of classes; give a number instead of 'dog'"):
        class_number("dog", [], "net")


@pytest.mark.parametrize("target", [None, 1, [1, 0], torch.tensor([1, 0]), len])
def test_what_is_no_name_stays_as_it_is(target):
    assert numbered(target, NAMES) is target
    assert numbered(target, []) is target


def test_names_of_classes():
    assert numbered(("dog", 3, "cow"), NAMES) == [1, 3, 2]
    assert known_names([], CARD) == tuple(NAMES)
    assert known_names("ab", CARD) == ("a", "b")
    assert known_names(["cat"]) == ("not cat", "cat")
    assert known_names(["cat"], answer="figures") == ("cat",)
    with pytest.raises(OptionError, match="'dog' is a name: tell the names of all classes with classes= or card="):
        numbered("dog", [])
    with pytest.raises(ShapeError, match="classes must name 3, as the model returns, got 2"):
        check_named("ab", 3)
    with pytest.raises(DtypeError, match="classes must be the names of all classes, got 3"):
        known_names(3)


@pytest.mark.parametrize(
    "given", [{"classes": NAMES}, {"card": CARD}, {"classes": dict(enumerate(NAMES)), "card": CARD}]
)
def test_a_class_is_named_wherever_one_is_asked_for(given):
    net = net_of()
    for names, numbers in (("dog", [1, 1]), (["cow", "dog"], [2, 1]), (["cow", 3], [2, 3])):
        found = attribute(net, IMAGES, target=names, **given)
        assert found.classes.tolist() == numbers
        assert torch.equal(found.heatmaps, attribute(net, IMAGES, target=numbers).heatmaps)
        assert attack(net, IMAGES, target=names, steps=1, **given).classes.tolist() == numbers
    assert reasons(net, IMAGES, targets="cow", faithful=False, **given).classes.tolist() == [[2], [2]]
    sheet = fv.attributions(net, IMAGES, targets=["cow", "dog"], faithful=False, **given)
    assert sheet.columns[1:] == ("gradcam: cow", "gradcam: dog")
    assert torch.equal(sheet.cells, fv.attributions(net, IMAGES, targets=[2, 1], faithful=False, **given).cells)
    assert "target: cow" in str(fv.adversarial(net, IMAGES, target="cow", steps=1, **given).legend)
    assert "a target for each" in str(fv.adversarial(net, IMAGES, target=["cow", 3], steps=1, **given).legend)


def test_the_page_takes_names():
    page = fv.atlas(net_of(), IMAGES, card=CARD, targets=["cow"])
    assert [entry["name"] for entry in page.data["why"]] == ["cow", "cow"]


def test_names_that_are_not_of_this_model_are_refused():
    for call in (attribute, attack):
        with pytest.raises(ShapeError, match="classes must name 4, as the model returns, got 2"):
            call(net_of(), IMAGES, target="b", classes=["a", "b"])
        with pytest.raises(OptionError, match="several classes 'crane': give a number, 0 or 3"):
            call(net_of(), IMAGES, target="crane", card=CARD)
        with pytest.raises(OptionError, match="no class 'dgo'; close: 'dog'"):
            call(net_of(), IMAGES, target="dgo", card=CARD)
    assert attribute(net_of(3), IMAGES, target=1, card=CARD).classes.tolist() == [1, 1], "a card of another head"


def test_the_two_classes_of_one_logit():
    net = net_of(1)
    for name, number in (("cat", 1), ("not cat", 0)):
        found = attribute(net, IMAGES, target=name, classes=["cat"])
        assert found.classes.tolist() == [number] * 2
        assert torch.equal(found.heatmaps, attribute(net, IMAGES, target=number).heatmaps)


def test_targets_are_listed_whatever_holds_them():
    for given in ([1, 2], (1, 2), range(1, 3), torch.tensor([1, 2]), np.array([1, 2])):
        assert listed(given) == [1, 2]
    assert listed(torch.tensor(3)) == listed(np.int64(3)) == listed(3) == [3]
    assert listed(np.array(["cat", "dog"])) == ["cat", "dog"]
    for wrong in ([[1, 2]], [1.5], print, {"cat"}):
        with pytest.raises(DtypeError, match="targets must be a class, or a list of classes"):
            listed(wrong)
