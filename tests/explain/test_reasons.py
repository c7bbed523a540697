"""`reasons` against attribute and faithfulness called class by class, and what the views make of it."""

import pytest
import torch
from torch import nn

from torch_featviz.atlas import atlas
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain import attribute, faithfulness, reasons
from torch_featviz.model.answer import Answer
from torch_featviz.views import attributions

IMAGES = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def net_of(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)).eval()


def test_each_class_of_each_method_as_if_it_were_alone():
    net, baselines = net_of(), torch.rand(1, 1, 6, 6)
    options = {"occlusion": {"sliding_window_shapes": (1, 2, 2)}}
    why = reasons(net, IMAGES, ["gradcam", "occlusion"], [2, 0, 2], baselines=baselines, options=options)
    assert why.classes.tolist() == [[2, 0]] * 3, "a class asked for twice is one"
    with torch.no_grad():
        torch.testing.assert_close(why.probabilities, net(IMAGES).softmax(1))
    assert why.predicted.tolist() == net(IMAGES).argmax(1).tolist()
    assert [(reason.method, reason.layer) for reason in why.methods] == [("gradcam", "1"), ("occlusion", "")]
    extra = {"gradcam": {}, "occlusion": {**options["occlusion"], "baselines": baselines.expand_as(IMAGES)}}
    for reason in why.methods:
        for k, target in enumerate((2, 0)):
            alone = attribute(net, IMAGES, method=reason.method, target=target, **extra[reason.method])
            worth = faithfulness(net, IMAGES, alone, stages=1, baselines=baselines)
            torch.testing.assert_close(reason.heatmaps[:, k], alone.heatmaps)
            for name in ("deletion", "insertion", "random_deletion", "random_insertion", "similarity"):
                torch.testing.assert_close(getattr(reason.worth[k], name), getattr(worth, name))
            assert reason.worth[k].alike.tolist() == [value > 0.5 for value in worth.similarity[0].tolist()]
        magnitudes = sorted(reason.heatmaps.abs().flatten().tolist())
        outside = sum(value > reason.reach * (1 + 1e-6) for value in magnitudes)
        assert outside == int(len(magnitudes) * 0.005), "99.5 % lie within, rounded up"


def test_the_likeliest_classes_of_each_image():
    net = net_of()
    why = reasons(net, IMAGES, ["saliency"], likeliest=2, faithful=False)
    with torch.no_grad():
        order = net(IMAGES).argsort(1, descending=True)
    assert why.classes.equal(order[:, :2])
    assert why.methods[0].worth == ()
    for i in range(3):
        alone = attribute(net, IMAGES[i : i + 1], method="saliency", target=int(order[i, 1]))
        torch.testing.assert_close(why.methods[0].heatmaps[i : i + 1, 1], alone.heatmaps)
    assert reasons(net_of(2), IMAGES, ["saliency"], likeliest=5, faithful=False).classes.shape == (3, 2)


def test_an_answer_that_is_known_is_not_asked_for_again():
    net, calls = net_of(), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    known = Answer(torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(3, -1), "probabilities")
    counts = []
    for answer in (None, known):
        calls.clear()
        why = reasons(net, IMAGES, ["saliency"], answer=answer, faithful=False)
        counts.append(len(calls))
    assert why.classes.flatten().tolist() == [3, 3, 3]
    assert counts[0] == counts[1] + 1


def test_zero_maps_have_no_reach():
    net = net_of()
    nn.init.zeros_(net[3].weight)
    assert reasons(net, IMAGES, ["saliency"], 0, faithful=False).methods[0].reach == 0.0


def test_the_sheet_and_the_page_tell_the_same():
    net = net_of()
    sheet = attributions(net, IMAGES, methods=["gradcam", "occlusion"], targets=[3, 1])
    page = atlas(net, IMAGES, methods=["gradcam", "occlusion"], targets=[3, 1]).data
    captions = iter(sheet.captions)
    order = [heading.split()[1].rstrip(":") for heading in sheet.columns[1::2]]
    assert list(dict.fromkeys(entry["method"] for entry in page["why"])) == order
    why = {(entry["image"], entry["method"], entry["class"]): entry["faithfulness"] for entry in page["why"]}
    for i in range(3):
        assert next(captions) == ""
        top = page["images"][i]["top"][0]
        assert sheet.labels[5 * i] == f"class {top['class']} {100 * top['probability']:.0f} %"
        for method in order:
            for k in (3, 1):
                f = why[i, method, k]
                areas = [f[name] for name in ("insertion", "random_insertion", "deletion", "random_deletion")]
                figures = "ins {:.2f} ({:.2f}), del {:.2f} ({:.2f})".format(*areas)
                caption = next(captions).split("\n")
                assert (caption[0], caption[-1]) == (f["verdict"], figures)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": []}, OptionError, r"methods and targets must not be empty, got methods=\[\]"),
        ({"methods": "gradcam"}, OptionError, r"write methods=\['gradcam'\]"),
        ({"targets": []}, OptionError, r"must not be empty, got .* targets=\[\]"),
        ({"targets": [0, 4]}, OptionError, "target must be from 0 to 3"),
        (
            {"methods": ["saliency"], "layer": "0"},
            OptionError,
            "none of saliency uses a layer; leave layer='0' out",
        ),
        ({"options": {"occlusion": {}}}, OptionError, "options are for occlusion, but the methods are gradcam"),
    ],
)
def test_what_cannot_be_asked(options, error, message):
    with pytest.raises(error, match=message):
        reasons(net_of(), IMAGES, **options)


def test_maps_have_no_reasons():
    net = nn.Sequential(nn.Conv2d(1, 4, 6))
    with pytest.raises(ShapeError, match=r"returns shape \(3, 4, 1, 1\); attribute\(\) takes a callable as target="):
        reasons(net, IMAGES)
