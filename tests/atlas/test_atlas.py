"""The page as a whole: what is on it, what is said of what is not, and what it is written as."""

import base64
import hashlib
import json
import re
import shutil
import struct
import warnings
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_featviz as fv
from torch_featviz.atlas import atlas
from torch_featviz.atlas.learning import _pixels, put_learning
from torch_featviz.atlas.pack import Blobs
from torch_featviz.errors import ShapeError
from torch_featviz.explain import reasons
from torch_featviz.explain.verdict import lacking
from torch_featviz.training import Monitor

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028\u202e\n" + "ü" * 300


def net():
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8 * 16, 4)).eval()


def card(classes=("a", "b", "c", "d")):
    return fv.ModelCard("mine", net, (3, 14, 14), classes=classes, mean=(0.5,), std=(0.25,))


def numbers(text, exponent):
    high, low = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.uint16).reshape(2, -1)
    return (high << 8 | low).view(np.float16).astype(np.float64) * 2.0**exponent


class Scripts(HTMLParser):
    """Every script of a page with its attributes, and each element's attributes."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.scripts, self.attributes, self.inside = [], [], None

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag in ("script", "style"):
            self.inside = [tag, dict(attrs), ""]

    def handle_data(self, data):
        if self.inside:
            self.inside[2] += data

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[0]:
            self.scripts.append(self.inside)
            self.inside = None


def parsed(page):
    reader = Scripts()
    reader.feed(page.html)
    return reader


def test_what_is_on_the_page():
    images = torch.randn(2, 3, 14, 14)
    page = atlas(net(), images, card=card(), names=["one.png", "two.png"])
    data = page.data
    assert page.title == data["title"] == "mine on one.png, two.png"
    assert data["parameters"] == sum(p.numel() for p in net().parameters())
    chances = net()(images).softmax(1)
    for i, image in enumerate(data["images"]):
        best = chances[i].topk(4)
        assert [top["class"] for top in image["top"]] == best.indices.tolist()
        assert [top["name"] for top in image["top"]] == ["abcd"[k] for k in best.indices.tolist()]
        assert [top["probability"] for top in image["top"]] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert data["classes"] == [*"abcd"]
    assert [layer["name"] for layer in data["layers"]] == ["input", "0", "1", "2", "3", "4", "6"]
    assert page.left_out == ("These layers only pass values on, such as dropout or padding: 5.",)


def test_why_is_what_attribute_says():
    model, images = net(), torch.rand(2, 3, 14, 14)
    page = atlas(model, images, methods=["gradcam", "occlusion"], targets=[2, 0])
    order = [reason.method for reason in reasons(model, images, ["gradcam", "occlusion"], [2, 0]).ranked]
    assert [(why["method"], why["image"], why["class"]) for why in page.data["why"]] == [
        (method, image, target) for method in order for image in (0, 1) for target in (2, 0)
    ]
    for method in ("gradcam", "occlusion"):
        for target in (2, 0):
            found = fv.attribute(model, images, method=method, target=target)
            worth = fv.faithfulness(model, images, found, stages=1)
            rows = [why for why in page.data["why"] if (why["method"], why["class"]) == (method, target)]
            for i, why in enumerate(rows):
                assert why["faithfulness"] == {
                    "deletion": pytest.approx(float(worth.deletion[i]), rel=1e-4),
                    "insertion": pytest.approx(float(worth.insertion[i]), rel=1e-4),
                    "random_deletion": pytest.approx(float(worth.random_deletion[i]), rel=1e-4),
                    "random_insertion": pytest.approx(float(worth.random_insertion[i]), rel=1e-4),
                    "similarity": pytest.approx(float(worth.similarity[0, i]), rel=1e-4),
                    "unmoved": bool(worth.similarity[0, i] > 0.5),
                    "mark": str(worth.verdict[i])[0],
                    "verdict": worth.words[i],
                    "held_back": worth.held_back[i],
                    "lacking": lacking(float(worth.gain[i]), max(0.03, 2 * float(worth.spread[i]))),
                }
                heat = numbers(page.blobs[why["blob"]], why["exponent"]).reshape(14, 14)
                assert abs(heat - found.heatmaps[i].numpy()).max() <= float(found.heatmaps.abs().max()) * 2.0**-10
    scales = {why["method"]: why["scale"]["vmax"] for why in page.data["why"]}
    assert all(why["scale"]["vmax"] == scales[why["method"]] for why in page.data["why"])


def test_a_page_without_reasons():
    page = atlas(net(), torch.rand(1, 3, 14, 14), methods=[])
    assert page.data["why"] == []
    assert page.data["images"][0]["top"], "what was answered stays"
    assert not any("Why" in line for line in page.left_out)


def test_baselines_are_those_given():
    model, images = net(), torch.rand(1, 3, 14, 14)
    dark, light = (
        atlas(model, images, methods=["occlusion"], targets=[1], baselines=b).data["why"][0] for b in (0.0, 1.0)
    )
    assert dark["faithfulness"] != light["faithfulness"]
    found = fv.attribute(model, images, method="occlusion", target=1, baselines=torch.ones_like(images))
    assert light["faithfulness"]["deletion"] == pytest.approx(
        float(fv.faithfulness(model, images, found, stages=0, baselines=1.0).deletion[0]), rel=1e-4
    )


def test_units_of_a_data_set():
    model, images = net(), torch.rand(1, 3, 14, 14)
    loader = DataLoader(TensorDataset(torch.rand(20, 3, 14, 14)), batch_size=8)
    page = atlas(model, images, loader=loader)
    units = {layer["name"]: layer["units"] for layer in page.data["layers"] if layer["units"]}
    assert list(units) == ["0", "3"]
    best = fv.top_patches(model, loader, "3")
    for channel, found in units["3"]["channels"].items():
        values = [value for value in best.values[int(channel)].tolist() if value > 0]
        assert found["values"] == pytest.approx(values, rel=1e-5)
        assert found["images"] == best.images[int(channel)].tolist()[: len(values)]
        assert found["patches"]["width"] == len(values) * found["patches"]["height"]
    assert units["3"]["seen"] == 20


def test_units_say_how_they_were_projected():
    model, images, loader = net(), torch.rand(1, 3, 14, 14), [torch.rand(20, 3, 14, 14)]
    best = fv.top_patches(model, loader, ["0", "3"], k=9)
    for asked in (None, "deconvnet"):
        layers = {
            layer["name"]: layer for layer in atlas(model, images, loader=loader, projection=asked).data["layers"]
        }
        for name, switches in (("0", False), ("3", True)):
            units = layers[name]["units"]
            by = "deconvnet" if asked or switches else "guided backpropagation"
            assert (units["projected_by"], units["switches"]) == (by, switches)
            for channel, found in units["channels"].items():
                (cosine,) = best[name].patches(int(channel), projection=asked).cosine.tolist()
                assert found["cosine"] == (None if cosine != cosine else pytest.approx(cosine, rel=1e-4))
            assert any(found["cosine"] is not None for found in units["channels"].values())
    alone = atlas(model, images, loader=[torch.rand(1, 3, 14, 14)]).data["layers"]
    assert {found["cosine"] for layer in alone if layer["units"] for found in layer["units"]["channels"].values()} == {
        None
    }
    with pytest.raises(fv.errors.OptionError, match="or None to choose by the network; got 'gradient'"):
        atlas(model, images, projection="gradient")


def test_a_data_set_is_read_once_for_all_layers():
    reads = []

    class Counted(TensorDataset):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    loader = DataLoader(Counted(torch.rand(20, 3, 14, 14)), batch_size=8)
    page = atlas(net(), torch.rand(1, 3, 14, 14), loader=loader)
    chosen = {
        image
        for layer in page.data["layers"]
        for unit in (layer["units"] or {"channels": {}})["channels"].values()
        for image in unit["images"]
    }
    assert reads == [*range(20), *sorted(chosen)]


def test_learning_out_of_a_folder(tmp_path):
    model, loss = net().train(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Monitor(model, every=2, to=tmp_path) as watch:
        for _ in range(6):
            with watch.step():
                loss(model(torch.rand(8, 3, 14, 14)), torch.randint(4, (8,))).backward()
                optimizer.step()
                optimizer.zero_grad()
    learning = atlas(model, torch.rand(1, 3, 14, 14), training=tmp_path).data["learning"]
    assert learning["steps"] == [0, 2, 4]
    assert [(film["name"], film["of"]) for film in learning["layers"]] == [("0", "kernels"), ("3", "kernels")]
    curves = {(curve["layer"], curve["what"]): curve["values"] for curve in learning["curves"]}
    expected = watch.history.values("3.weight", "update_ratio").tolist()
    assert curves["3", "update ÷ weight"] == pytest.approx(expected, rel=1e-5)
    assert learning["findings"] == [{"step": f.step, "kind": f.kind, "text": f.text} for f in watch.findings]


def test_a_curve_says_nan_where_it_was_and_nothing_where_there_was_none(tmp_path):
    model, loss = net().train(), nn.CrossEntropyLoss()
    model[3].requires_grad_(False)
    optimizer = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), 0.1)
    with warnings.catch_warnings(), Monitor(model, every=1, to=tmp_path) as watch:
        warnings.simplefilter("ignore", fv.errors.FindingWarning)
        for scale in (1.0, torch.nan):
            with watch.step():
                loss(model(torch.rand(8, 3, 14, 14) * scale), torch.randint(4, (8,))).backward()
                optimizer.step()
                optimizer.zero_grad()
    data = atlas(net(), torch.rand(1, 3, 14, 14), training=tmp_path).data
    curves = {(curve["layer"], curve["what"]): curve["values"] for curve in data["learning"]["curves"]}
    assert curves["3", "spread of its values (standard deviation)"][1] == "nan"
    assert ("0", "norm of the weight's gradient") in curves
    assert ("3", "norm of the weight's gradient") not in curves, "it is frozen"


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A folder of a training of a network whose layers' names differ by case."""
    folder, model = tmp_path_factory.mktemp("runs") / "run", nn.Sequential()
    model.add_module("Conv*", nn.Conv2d(3, 2, 3))
    model.add_module("conv*", nn.Conv2d(2, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Monitor(model, every=1, to=folder) as watch:
        for _ in range(2):
            with watch.step():
                model(torch.rand(1, 3, 14, 14)).square().mean().backward()
                optimizer.step()
    return folder


def learnt(folder):
    return put_learning(Blobs(), folder, 1e6)[0]


def a_png(width, height, before=b""):
    header = b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [*([(b"abCD", before)] if before else []), header, (b"IDAT", b""), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_names_that_differ_by_case_are_two_films(a_run):
    films = learnt(a_run)["layers"]
    assert [(film["name"], film["of"]) for film in films] == [("Conv*", "kernels"), ("conv*", "kernels")]
    assert all(None not in film["frames"] for film in films)
    assert films[0]["frames"] != films[1]["frames"]


def test_what_was_put_beside_the_pictures_is_left_out(a_run, tmp_path):
    before = learnt(a_run)
    folder = shutil.copytree(a_run, tmp_path / "run")
    first = next(folder.glob("kernels/*/step-00000000.png"))
    shutil.copy(first, first.with_name("step-00000000 (1).png"))
    (folder / "kernels" / "of another").mkdir()
    (folder / "kernels" / "of another" / "step-x.png").write_bytes(b"")
    assert learnt(folder) == before
    first.rename(tmp_path / "elsewhere.png")
    first.symlink_to(tmp_path / "elsewhere.png")
    assert sum(frame is None for film in learnt(folder)["layers"] for frame in film["frames"]) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (a_png(60000, 60000), "has more than 67,108,864 pixels, which no Monitor draws; remove it"),
        (a_png(9000, 9000), "has more than 67,108,864 pixels"),
        (a_png(9000, 9000, before=struct.pack(">II", 2, 2)), "has more than 67,108,864 pixels"),
        (a_png(20, 20), r"cannot read .*step-00000000\.png': .*; remove it"),
        (b"\x89PNG", r"cannot read .*step-00000000\.png'"),
        (b"", r"cannot read .*step-00000000\.png'"),
        (b"GIF89a" + bytes(40), r"cannot read .*step-00000000\.png'"),
    ],
    ids=["a bomb", "too large", "too large, behind a text", "no pixels", "cut", "empty", "a GIF"],
)
def test_a_damaged_picture_of_a_training(tmp_path, data, says):
    (tmp_path / "step-00000000.png").write_bytes(data)
    with pytest.raises(fv.errors.FileError, match=says):
        _pixels(tmp_path / "step-00000000.png")


def test_no_training_there(tmp_path):
    with pytest.raises(fv.errors.FileError, match=r"has no samples.jsonl"):
        atlas(net(), torch.rand(1, 3, 14, 14), training=tmp_path)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    images = torch.rand(1, 3, 14, 14)
    first, second = (atlas(net(), images, card=card()).save(tmp_path / f"{i}.html") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_it_is_written_whole_or_not_at_all(tmp_path):
    page = atlas(net(), torch.rand(1, 3, 14, 14))
    with pytest.raises(fv.errors.OptionError, match=r"must end in '\.html', got .*x\.png"):
        page.save(tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(fv.errors.FileError, match="cannot write"):
        page.save(tmp_path / "file" / "x.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert page.save(tmp_path / "new" / "x.html").read_text("utf-8") == page.html


def test_hostile_names_stay_text():
    layers = nn.ModuleDict({"</script><b>'\"&": nn.Conv2d(3, 4, 3)})

    class Hostile(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = layers, nn.Linear(4, 2)

        def forward(self, x):
            return self.head(next(iter(self.layers.values()))(x).mean((2, 3)))

    given = fv.ModelCard(HOSTILE, Hostile, (3, 8, 8), classes=(HOSTILE, HOSTILE))
    page = atlas(Hostile(), torch.rand(1, 3, 8, 8), card=given, names=[HOSTILE])
    reader = parsed(page)
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    data = json.loads(next(text for _, attrs, text in reader.scripts if attrs.get("id") == "data"))
    assert data == page.data
    assert data["model"] == data["images"][0]["name"] == HOSTILE
    assert data["layers"][1]["name"] == "layers.</script><b>'\"&"
    assert "onerror=alert" not in page.html.replace("\\u003cimg src=x onerror=alert", "").replace(
        "&lt;img src=x onerror=alert", ""
    )


def test_the_policy_allows_this_script_and_style_and_nothing_else():
    page = atlas(net(), torch.rand(1, 3, 14, 14))
    reader = parsed(page)
    (policy,) = [value for name, value in reader.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy

    def hashed(text):
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    (style,) = [text for tag, _, text in reader.scripts if tag == "style"]
    (script,) = [text for tag, attrs, text in reader.scripts if tag == "script" and "type" not in attrs]
    assert f"style-src 'sha256-{hashed(style)}'" in policy
    assert f"script-src 'sha256-{hashed(script)}'" in policy
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page.html)


def test_it_shows_itself_in_a_notebook():
    page = atlas(net(), torch.rand(1, 3, 14, 14), names=["<b>"])
    shown = page._repr_html_()
    reader = HTMLParser()
    found = {}
    reader.handle_starttag = lambda tag, attrs: found.update({tag: dict(attrs)})
    reader.feed(shown)
    assert found["iframe"]["srcdoc"] == page.html
    assert found["iframe"]["sandbox"] == "allow-scripts"
    assert found["iframe"]["title"] == "Sequential on <b>"


@pytest.mark.parametrize("megabytes", [1.5, 2, 3])
def test_a_page_is_never_larger_than_asked_for(megabytes):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), *(nn.Conv2d(64, 64, 3) for _ in range(8))).eval()
    page = atlas(model, torch.rand(2, 3, 60, 60), megabytes=megabytes)
    assert megabytes * 0.5e6 <= len(page.html.encode()) <= megabytes * 1e6
    assert any(f"keep the page below {megabytes} MB" in line for line in page.left_out)


def test_too_small_a_page():
    model = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(300))).eval()
    with pytest.raises(fv.errors.OptionError, match=r"megabytes must be at least 2\.\d for this page, got 1"):
        atlas(model, torch.rand(1, 1, 8, 8), megabytes=1)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_that_is_no_classifier(rows):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3)).eval()
    page = atlas(model, torch.rand(rows, 1, 9, 9))
    assert page.data["answer"] is None
    assert page.data["why"] == []
    assert page.data["images"][0]["top"] == []
    assert any(line.startswith("Prediction and Why") for line in page.left_out)
    with pytest.raises(fv.errors.OptionError, match="methods and targets explain a class"):
        atlas(model, torch.rand(rows, 1, 9, 9), methods=["gradcam"])


def test_a_method_that_cannot_be_is_said_unless_asked_for():
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 3))
    page = atlas(model, torch.rand(1, 3, 3, 3))
    assert any(line.startswith("Why: Grad-CAM cannot be made for this model") for line in page.left_out)
    with pytest.raises(fv.FeatvizError):
        atlas(model, torch.rand(1, 3, 3, 3), methods=["gradcam"])


def test_what_the_chances_are_of():
    images, scores = torch.rand(1, 3, 14, 14), net()
    softmax = atlas(nn.Sequential(scores, nn.Softmax(1)), images).data
    logits = atlas(scores, images).data
    assert (softmax["softmax"], logits["softmax"]) == (False, True)
    assert softmax["images"][0]["top"] == logits["images"][0]["top"]
    each = atlas(nn.Sequential(scores, nn.Sigmoid()), images)  # of several labels, each may be true
    expected = scores(images).sigmoid()[0].sort(descending=True).values
    assert [row["probability"] for row in each.data["images"][0]["top"]] == pytest.approx(expected.tolist(), rel=1e-5)
    assert (each.data["answer"], each.data["softmax"], each.data["sigmoid"]) == ("probability", False, False)
    assert [row["class"] for row in each.data["why"]] == [row["class"] for row in each.data["images"][0]["top"][:2]]
    said = atlas(scores, images, answer="label_logits").data
    assert (said["softmax"], said["sigmoid"]) == (False, True)
    assert said["images"] == each.data["images"]


def one_logit():
    torch.manual_seed(0)
    body = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    return nn.Sequential(*body).eval()


@pytest.mark.parametrize("classes", [("no", "yes"), ("yes",)])
def test_one_logit_is_two_classes(classes):
    images, model = torch.rand(2, 3, 14, 14), one_logit()
    page = atlas(model, images, card=card(classes))
    yes = model(images)[:, 0].sigmoid().tolist()
    names = ["no" if len(classes) == 2 else "not yes", "yes"]
    for i, image in enumerate(page.data["images"]):
        chances = {row["name"]: row["probability"] for row in image["top"]}
        assert chances == pytest.approx({names[0]: 1 - yes[i], "yes": yes[i]}, rel=1e-5)
    assert (page.data["answer"], page.data["softmax"], page.data["sigmoid"]) == ("probability", False, True)
    assert page.data["classes"] == names
    assert page.data["answered_by"] is None, "its one channel is none of the two classes"
    whys = {(row["image"], row["class"]): row for row in page.data["why"]}
    assert sorted(whys) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert whys[1, 0]["name"] == names[0]
    assert whys[1, 0]["probability"] == pytest.approx(1 - yes[1], rel=1e-5)
    assert not any(word in line for line in page.left_out for word in ("Names", "Why", "Probabilities"))


def test_one_figure_is_itself():
    images, model = torch.rand(1, 3, 14, 14), one_logit()
    data = atlas(model, images).data
    (top,) = data["images"][0]["top"]
    assert (top["name"], top["probability"]) == ("output", pytest.approx(model(images).item(), rel=1e-5))
    assert (data["answer"], data["sigmoid"]) == ("value", False)
    assert [(row["name"], row["probability"]) for row in data["why"]] == [("output", None)]
    known = atlas(model, images, card=replace(card(("years",)), answer="figures")).data
    assert known["images"][0]["top"][0]["name"] == "years"
    assert known["answer"] == "value"


def test_what_nobody_can_tell_is_shown_as_it_is():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return 1 / (1 + (-self.net(x)).exp())

    images = torch.rand(1, 3, 14, 14)
    page = atlas(Odd(), images)
    assert page.data["answer"] == "value"
    assert any(line.startswith("Probabilities: scores lie from 0.") for line in page.left_out)
    best = net()(images).sigmoid().max().item()
    assert page.data["images"][0]["top"][0]["probability"] == pytest.approx(best, rel=1e-5)
    with pytest.raises(fv.errors.OptionError, match="a row sums to"):
        atlas(Odd(), images, answer="probabilities")
    broken = net()
    nn.init.constant_(broken[-1].bias, float("nan"))
    page = atlas(broken, images)
    assert "Why: what the model returns is not finite." in page.left_out


def test_dictionaries():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return {"logits": self.net(x), "features": x}

    images = torch.rand(2, 3, 14, 14)
    wrapped, plain = atlas(Wrapped(), images).data, atlas(net(), images).data
    assert wrapped["images"] == plain["images"]
    assert [row["class"] for row in wrapped["why"]] == [row["class"] for row in plain["why"]]
    assert wrapped["answered_by"] == f"net.{plain['answered_by']}"


def test_names_of_classes_that_are_not_as_many():
    page = atlas(net(), torch.rand(1, 3, 14, 14), card=card(("a", "b", "c")))
    assert page.data["classes"] == []
    assert "Class names: there are 3, but the model returns 4 classes." in page.left_out


def test_a_class_is_explained_once():
    page = atlas(net(), torch.rand(1, 3, 14, 14), targets=[1, 1])
    assert [each["class"] for each in page.data["why"]] == [1]


def test_a_file_whose_name_is_no_text(tmp_path):
    page = atlas(net(), torch.rand(2, 3, 14, 14), names=["a\udcff", tmp_path / "b"])
    assert rb'"a\\udcff"' in page.save(tmp_path / "a.html").read_bytes()


def test_long_names_count():
    names = tuple(f"{i:0>300000}" for i in range(4))
    with pytest.raises(fv.errors.OptionError, match=r"at least [23]\.\d"):
        atlas(net(), torch.rand(1, 3, 14, 14), card=card(names), megabytes=2)


def test_channels_that_are_no_colours():
    model = nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    page = atlas(model, torch.rand(1, 5, 3, 3))
    assert page.data["images"][0]["picture"]["width"] == 3
    assert len(page.data["layers"][0]["maps"]["channels"]) == 5


@pytest.mark.parametrize(
    ("images", "options", "kind", "words"),
    [
        (torch.rand(14, 14), {}, "ShapeError", r"'b c h w' and not empty, got shape \(14, 14\)"),
        (torch.rand(0, 3, 14, 14), {}, "ShapeError", "not empty"),
        (torch.zeros(1, 3, 14, 14, dtype=torch.uint8), {}, "DtypeError", "floats as the model takes them"),
        ("cat.jpg", {}, "DtypeError", "got 'cat.jpg'; fv.zoo.read_image opens a file"),
        (torch.randn(1, 3, 14, 14) * 3, {}, "OptionError", r"must lie in \[0, 1\]"),
        (torch.rand(1, 3, 14, 14), {"names": ["a", "b"]}, "OptionError", "got 2 for 1"),
        (torch.rand(1, 3, 14, 14), {"megabytes": 0.1}, "OptionError", "1 or more, got 0.1"),
        (torch.rand(1, 3, 14, 14), {"megabytes": float("inf")}, "OptionError", "1 or more, got inf"),
        (torch.rand(1, 3, 14, 14), {"methods": ["no"]}, "OptionError", "'no'"),
        (torch.rand(1, 3, 14, 14), {"targets": [9]}, "OptionError", "9"),
        (torch.rand(1, 3, 14, 14), {"targets": []}, "OptionError", "targets must name at least one class, got none"),
        (torch.rand(1, 3, 9, 9), {}, "ShapeError", "does not accept inputs of shape"),
    ],
)
def test_bad_input(images, options, kind, words):
    with pytest.raises(getattr(fv.errors, kind), match=words):
        atlas(net(), images, **options)


class Fusion(nn.Module):
    """An image and two figures of each image."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(6, 3)

    def forward(self, image, meta, *, scale):
        return self.head(torch.cat([self.conv(image).relu().mean((2, 3)), scale * meta], 1))


def test_a_model_of_several_inputs():
    net, images, meta = Fusion(), torch.rand(2, 3, 8, 8), torch.rand(2, 2)
    page = atlas(net, images, additional_forward_args=meta, keywords={"scale": 2.0})
    with torch.no_grad():
        expected = net(images, meta, scale=2.0).softmax(1)
    for i, shown in enumerate(page.data["images"]):
        for entry in shown["top"]:
            assert entry["probability"] == pytest.approx(float(expected[i, entry["class"]]), abs=1e-6)
    assert {entry["layer"] for entry in page.data["why"]} == {"conv.relu"}
    with pytest.raises(fv.errors.OptionError, match=r"Fusion\.forward\(self, image, meta, \*, scale\)"):
        atlas(net, images)


def test_classes_are_named_as_everywhere_else():
    images = torch.rand(1, 3, 14, 14)
    for classes in (["cat", "dog", "cow", "owl"], {3: "owl", 0: "cat", 1: "dog", 2: "cow"}):
        data = atlas(net(), images, classes=classes, targets=["owl"], methods=["saliency"]).data
        assert data["classes"] == ["cat", "dog", "cow", "owl"]
        assert [(why["class"], why["name"]) for why in data["why"]] == [(3, "owl")]
        assert {each["name"] for each in data["images"][0]["top"]} == {"cat", "dog", "cow", "owl"}
    over = atlas(net(), images * 2 - 1, card=card(), classes=["cat", "dog", "cow", "owl"], methods=["saliency"]).data
    assert over["classes"] == ["cat", "dog", "cow", "owl"], "rather than those of the card"
    with pytest.raises(ShapeError, match="classes must name 4, as the model returns, got 2"):
        atlas(net(), images, classes=["cat", "dog"])
