"""What results show of themselves: in a shell few letters, in a notebook a table, a picture or a film."""

import base64
import importlib.util
import io
import re
from dataclasses import is_dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_featviz as fv
from torch_featviz import notebook
from torch_featviz.displayed import LIMIT, Displayed, shortened, within
from torch_featviz.zoo import XO, Evaluation, ImageFiles, TrainingCurves, card, evaluate

IMAGES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
EVIL = "<script>alert('&')</script>"


class Read(HTMLParser):
    """The cells of tables, and the pictures, by another parser than what wrote them."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.pictures, self.tags, self._open = [], [], set(), False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True
        if tag == "img":
            kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", dict(attributes)["src"]).groups()
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                assert image.format.lower() == kind
                self.pictures.append(frames(image))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


def frames(image):
    found = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        found.append(np.array(image.convert("RGB")))
    return found


def shown(result):
    return Read(result._repr_html_())


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def watch(net):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    monitor = fv.Monitor(model, every=2, probe=IMAGES[:1])
    for _ in range(5):
        with monitor.step() as step:
            loss = model(IMAGES).square().mean()
            loss.backward()
            step.log(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    return monitor


@pytest.fixture(scope="module")
def best(net):
    return fv.top_patches(net, DataLoader(TensorDataset(torch.rand(20, 3, 12, 12), torch.zeros(20)), 8), "0", k=3)


@pytest.fixture(scope="module")
def results(net, watch, best, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    Image.new("L", (4, 4)).save(folder / "a.png")
    with fv.capture(net) as acts:
        net(IMAGES)
    with fv.capture(net, into=fv.Ring(2)) as last:
        net(IMAGES)
    with fv.capture(net, into=[fv.Moments(), fv.Histogram(), fv.TopK(4)]) as stats:
        net(IMAGES)
    why = fv.attribute(net, IMAGES, method="saliency")
    seen = watch.history[-1]
    return [
        *(acts, last, stats, fv.Moments(), stats["0"], *stats["0"], fv.capture(net, into=fv.Histogram())),
        *(watch, watch.film("0"), watch.history, seen, next(iter(seen.layers.values())), seen.layers["0"].histogram),
        *(next(iter(seen.parameters.values())), why, fv.faithfulness(net, IMAGES, why), best, best.patches([1])),
        *(XO("valid"), evaluate(net, [(IMAGES, torch.tensor([0, 1, 2]))]), TrainingCurves((1.0, 0.5), (0.5, 0.75))),
        *(fv.summary(net, IMAGES), fv.receptive_field(net, "0", (12, 12)), card("torchvision:resnet18")),
        *(fv.kernels(net, "0"), fv.curves({"loss": [1.0, 0.5]}), fv.atlas(net, IMAGES, methods=["gradcam"])),
        ImageFiles(folder, card("xo").preprocess),
    ]


def test_a_repr_is_one_short_line(results):
    for result in results:
        assert isinstance(result, Displayed) or "_repr_html_" in vars(type(result))
        assert len(repr(result)) < 200
        assert "\n" not in repr(result)
        assert type(result).__name__ in repr(result)


def test_everything_shows_itself(results):
    for result in results:
        if isinstance(result, fv.Picture):
            assert result._repr_html_() is None  # the PNG is what is shown
            assert result._repr_png_().startswith(b"\x89PNG")
        else:
            assert "object at 0x" not in result._repr_html_()
            assert len(result._repr_html_()) > len("<table>")


OPTIONS = (fv.Layout, fv.Attention)  # which are given, and no results


def test_public_results_show_themselves():
    public = [getattr(fv, name) for name in fv.__all__]
    results = [kind for kind in public if isinstance(kind, type) and is_dataclass(kind) and kind not in OPTIONS]
    assert {kind.__name__ for kind in results} >= {"Attribution", "TopPatches", "Summary", "Faithfulness", "Atlas"}
    for kind in results:
        if "_repr_html_" in vars(kind):  # a table of its own
            continue
        assert issubclass(kind, Displayed), kind
        assert "__repr__" not in vars(kind), kind  # which a dataclass writes unless it is told not to


def test_a_film_plays(watch):
    film = watch.film("0")
    (played,) = shown(film).pictures
    np.testing.assert_array_equal(played, film.numpy())
    assert len(played) == 3


def test_statistics_are_a_table(net):
    with fv.capture(net, into=fv.Moments()) as stats:
        net(IMAGES)
    outputs = net[0](IMAGES).detach()
    head, *rows = shown(stats).rows
    first = dict(zip(head, rows[0], strict=True))
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    assert float(first["mean"].replace("−", "-")) == pytest.approx(float(outputs.mean()), rel=5e-3)
    assert float(first["max"].replace("−", "-")) == pytest.approx(float(outputs.max()), rel=5e-3)
    head, *rows = shown(stats["0"]).rows
    assert len(rows) == 5
    for channel, row in enumerate(rows):
        assert row[0] == str(channel)
        assert float(row[1].replace("−", "-")) == pytest.approx(float(outputs[:, channel].mean()), rel=5e-3)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200), st.sampled_from([2, 8, 64]))
def test_a_histogram_loses_no_value(values, bins):
    histogram = fv.Histogram(bins)
    histogram.update(torch.tensor(values))
    _, *rows = shown(histogram).rows
    assert 1 <= len(rows) <= 16
    assert sum(int(row[2].replace(",", "")) for row in rows) == len(values)


def test_columns_without_an_image_are_empty():
    top = fv.TopK(3)
    top.update(torch.tensor([[[5.0]], [[7.0]]]))
    assert shown(top).rows[1] == ["0", "7", "5", "", "1", "0", ""]


def test_many_rows_are_cut_and_counted():
    wide = fv.Moments()
    wide.update(torch.rand(2, 512, 3))
    assert len(shown(wide).rows) == 1 + notebook.CHANNELS
    assert "20 of 512 channels" in wide._repr_html_()
    assert len(Read(notebook.table(["a"], [["x"]] * 100)).rows) == 1 + notebook.ROWS
    assert "40 of 100 rows" in notebook.table(["a"], [["x"]] * 100)


def test_attributions_and_patches_show_pictures(results, best):
    for result in results:
        if isinstance(result, (fv.Attribution, fv.TopPatches, type(best.patches([0])), XO, Evaluation)):
            assert len(shown(result).pictures) == 1


def test_a_heatmap_of_a_sequence_is_told_in_words():
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 2)).eval()
    why = fv.attribute(net, torch.rand(1, 2, 8), method="saliency")
    assert why._repr_html_() == "<p>saliency: heatmaps 1×8</p>"


def test_no_model_runs_to_show_a_result(net):
    calls = []
    model = nn.Sequential(*net)
    best = fv.top_patches(model, DataLoader(TensorDataset(torch.rand(9, 3, 12, 12)), 4), "0", k=2)
    why = fv.attribute(model, IMAGES, method="saliency")
    one = model[0].register_forward_hook(lambda *_: calls.append(1))
    before = torch.get_rng_state()
    for result in (best, why, fv.capture(model), fv.Monitor(model)):
        assert result._repr_html_()
    one.remove()
    assert calls == []
    assert torch.equal(torch.get_rng_state(), before)


def test_patches_are_cut_from_the_images(net):
    """Against a loop over places."""
    images = torch.rand(9, 3, 12, 12)
    best = fv.top_patches(net, DataLoader(TensorDataset(images), 4), "0", k=2)
    outputs = net[0](images).detach()
    patches, inside = notebook.patches_alone(best, [0, 3], 2)
    assert inside.all()
    for row, channel in enumerate((0, 3)):
        peaks = outputs[:, channel].flatten(1).max(1)
        for rank, image in enumerate(peaks.values.argsort(descending=True)[:2].tolist()):
            y, x = divmod(int(peaks.indices[image]), 10)
            assert torch.equal(patches[row, rank], images[image, :, y : y + 3, x : x + 3])


def test_without_an_index_the_strongest_values_are_listed(net):
    best = fv.top_patches(net, [IMAGES], "0", k=2)
    head, *rows = shown(best).rows
    assert head == ["channel", "value 1", "value 2"]
    assert len(rows) == 5
    assert float(rows[1][1].replace("−", "-")) == pytest.approx(float(net[0](IMAGES)[:, 1].detach().max()), rel=5e-3)


def test_images_that_cannot_be_drawn_are_listed():
    best = fv.top_patches(nn.Conv2d(2, 4, 3), DataLoader(TensorDataset(torch.rand(6, 2, 8, 8)), 3), "")
    assert shown(best).rows[0][0] == "channel"


def test_names_are_escaped():
    model = nn.Sequential()
    model.add_module(EVIL, nn.ReLU())
    with fv.capture(model) as acts, fv.capture(model, into=fv.Moments()) as stats:
        model(torch.rand(1, 2, 3, 3))
    for result in (acts, stats, fv.capture(model), fv.summary(model, (2, 3, 3))):
        assert "script" not in shown(result).tags
        assert any(EVIL in row for row in shown(result).rows)


def test_the_monitor_says_how_far_it_is(watch):
    assert repr(watch) == "Monitor(Sequential, every=2, 5 steps seen, 3 samples, 2 layers, 0 findings)"
    rows = shown(watch).rows
    assert [row[0] for row in rows[1:3]] == ["0", "2"]
    assert "nothing found" in watch._repr_html_()


def test_what_was_changed_in_place_says_so():
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    with torch.no_grad(), fv.capture(model) as acts:
        model(torch.ones(1, 1, 2, 2)).zero_()
    assert "changed in place" in acts._repr_html_()
    assert "changed in place" in str(acts)
    assert repr(acts) == "Activations(1 calls: '0')"


def test_keys_complete(net):
    with fv.capture(net, ["0", "4"]) as acts, fv.capture(net, "1", into=fv.Moments()) as stats:
        net(IMAGES)
    assert acts._ipython_key_completions_() == ["0", "4"]
    assert stats._ipython_key_completions_() == ["1"]


@given(st.lists(st.text(max_size=300), max_size=20), st.text(max_size=400), st.integers(5, 60))
def test_any_text_stays_short(parts, text, limit):
    assert len(within("Name(", parts, ")")) <= LIMIT
    assert len(shortened(text, limit)) <= limit
    assert shortened(text, max(limit, len(text))) == text


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))),
    reason="needs a kernel: pip install nbclient ipykernel (the docs extra has them)",
)
def test_in_a_kernel(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    code = (
        "import torch, torch_featviz as fv\nfrom torch import nn\n"
        "net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 2)).eval()\n"
        "x = torch.rand(2, 3, 12, 12)\n"
        "with fv.capture(net) as acts: y = net(x)\n"
        "with fv.Monitor(net, every=1) as watch:\n"
        "    for _ in range(2):\n"
        "        with watch.step(): net(x).sum().backward()\n"
        "        net.zero_grad()"
    )
    complete = "found = get_ipython().Completer.complete('acts[\"')[1]; print(sorted(found))"
    shown = ["watch.film('0')", "acts", "fv.attribute(net, x, method='saliency')", "fv.kernels(net, '0')", complete]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in [code, *shown]])
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in book.cells]
    film, acts, why, kernels = (outputs[i][-1].data for i in range(1, 5))
    assert "data:image/webp" in film["text/html"]
    assert film["text/plain"].startswith("Film(2 frames")
    assert [row[0] for row in Read(acts["text/html"]).rows] == ["layer", "0", "1", "2"]
    assert "data:image/png" in why["text/html"]
    assert "image/png" in kernels
    assert "text/html" not in kernels
    assert [name in outputs[5][-1].text for name in ("0", "1", "2", "3")] == [True, True, True, False]
