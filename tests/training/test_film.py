"""Films: what each frame shows is what the network had then, and all frames are on one scale."""

import io
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from torch_featviz.errors import DtypeError, FeatvizWarning, LayerError, OptionError, ShapeError
from torch_featviz.explain import attribute
from torch_featviz.picture import Counts, Scale
from torch_featviz.picture.color import total_of
from torch_featviz.training import Monitor
from torch_featviz.training.film import Film
from torch_featviz.training.frames import Frame, Frames, kernels_now
from torch_featviz.views import feature_maps, kernels


def net():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Conv2d(3, 20, 3), nn.Flatten(), nn.Linear(20 * 16, 2)),
    )


def watched(model, steps=4, **options):
    """A monitor after some steps, the weights and the maps of its probe after each."""
    watch = Monitor(model, every=1, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    weights, maps = [], []
    for x in torch.randn(steps, 5, 1, 8, 8):
        with watch.step():
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model[0].weight.detach().clone())
        if "probe" in options:
            with torch.no_grad():
                model.eval()
                maps.append(model[4](model[:4](options["probe"])))
                model.train()
    return watch, weights, maps


def test_kernels_are_those_of_each_step_on_the_scale_of_all():
    watch, weights, _ = watched(net())
    film = watch.film("0")
    assert film.steps == [0, 1, 2, 3]
    scale = Scale(symmetric=True).fit(*weights)
    for sheet, weight in zip(film._sheets, weights, strict=True):
        assert torch.equal(sheet.pixels, kernels(weight, scale=scale).pixels)
        assert (sheet.legend.scale.vmin, sheet.legend.scale.vmax) == (scale.vmin, scale.vmax)
    assert film._sheets[1].title == "Kernels of 0, step 1: 3 filters of 1×3×3"
    assert film._sheets[0].legend.notes == ()


def test_maps_are_those_of_the_probe_in_evaluation_mode():
    watch, _, maps = watched(net(), probe=torch.randn(6, 1, 8, 8))
    film = watch.film("4", "maps")
    shown = [each[:4, :9] for each in maps]
    scale = Scale(symmetric=True).fit(*shown)
    for sheet, each in zip(film._sheets, shown, strict=True):
        expected = feature_maps({str(i): image for i, image in enumerate(each)}, scale=scale)
        assert torch.equal(sheet.pixels, expected.pixels)
    assert film._sheets[0].title == "Maps of 4, step 0: 20 maps of 4 × 4"
    assert film._sheets[0].legend.notes[0] == "9 of 20 maps and 4 of 6 images shown"
    with pytest.raises(
        LayerError, match=r"no maps of '6' .* returns shape \(6, 2\), which has no places; recorded: 0, 4"
    ):
        watch.film("6", "maps")  # it has no place


class Tokens(nn.Module):
    """Patches of 2 × 2 pixels behind a class token, a block with channels last, and tokens in an order of their own."""

    def __init__(self):
        super().__init__()
        self.conv, self.cls_token = nn.Conv2d(1, 6, 2, 2), nn.Parameter(torch.randn(1, 1, 6))
        self.mlp, self.last, self.mixed, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.conv(x).flatten(2).mT
        x = self.mlp(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))
        x = self.last(x[:, 1:].unflatten(1, (4, 6)))
        x = self.mixed(x.flatten(1, 2).sort(1).values)
        return self.head(x.mean(1))


def test_tokens_are_drawn_at_their_places_and_what_has_none_is_named_once():
    model, probe = Tokens(), torch.randn(2, 1, 8, 12)
    with pytest.warns(FeatvizWarning, match=r"no maps are kept of 'mixed': 'mixed' returns shape \(2, 24, 6\), whose"):
        watch = Monitor(model, every=1, probe=probe)
    seen = {}
    for name in ("mlp", "last"):
        getattr(model, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.detach()}))
    for _ in range(2):  # no other warning
        with watch.step():
            model(probe).sum().backward()
    expected = {name: torch.empty(2, 6, 4, 6) for name in seen}
    for i in range(2):
        for row in range(4):
            for column in range(6):
                expected["mlp"][i, :, row, column] = seen["mlp"][i, 1 + 6 * row + column]
                expected["last"][i, :, row, column] = seen["last"][i, row, column]
    for name, maps in expected.items():
        for frame in watch._log.frames[f"maps/{name}"]._held:
            torch.testing.assert_close(frame.values, maps)
    sheet = watch.film("mlp", "maps")._sheets[0]
    assert sheet.title == "Maps of mlp, step 0: 6 maps of 4 × 6"
    assert "1 class token: not drawn" in sheet.legend.notes
    with pytest.raises(
        LayerError, match=r"'mixed' .* returns shape \(2, 24, 6\), whose places are not known; recorded"
    ):
        watch.film("mixed", "maps")


def test_a_probe_changes_nothing():
    states, probe = [], torch.randn(2, 1, 8, 8)
    for options in ({}, {"probe": probe}):
        torch.manual_seed(3)
        model = net()
        watched(model, **options)
        states.append((model.state_dict(), torch.get_rng_state()))
    (a, numbers), (b, others) = states
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(numbers, others)
    assert all(module.training for module in model.modules())


def test_why_is_what_attribute_says_of_the_probe():
    model, probe = net(), torch.randn(2, 1, 8, 8)
    watch = Monitor(model, every=1, probe=probe, why="saliency")
    expected = []
    for step in range(2):
        with watch.step():
            model(probe)
        expected.append(attribute(model, probe, method="saliency").heatmaps)
        with torch.no_grad():
            model[0].weight.add_(0.1 * (step + 1))
    film = watch.film("saliency", "why")
    scale = Scale(symmetric=True).fit(*expected)
    for sheet, heatmaps in zip(film._sheets, expected, strict=True):
        maps = {str(i): each[None] for i, each in enumerate(heatmaps)}
        assert torch.equal(sheet.pixels, feature_maps(maps, scale=scale).pixels)
    assert film._sheets[1].title == "Why, by saliency, step 1: red speaks for the answer given, blue against it"


def test_what_is_wrong_with_a_probe_is_said_at_once():
    with pytest.raises(ShapeError, match=r"does not accept inputs of shape \(2, 5, 8, 8\): .*expected input"):
        Monitor(net(), probe=torch.randn(2, 5, 8, 8))
    with pytest.raises(OptionError, match="no method 'magic'; there are"):
        Monitor(net(), probe=torch.randn(2, 1, 8, 8), why="magic")
    with pytest.raises(OptionError, match="why='gradcam' needs images to explain; pass them as probe="):
        Monitor(net(), why="gradcam")


def test_deep_kernels_are_cut_and_it_is_said():
    watch, _, _ = watched(nn.Sequential(nn.Conv2d(1, 14, 3), nn.Conv2d(14, 20, 3)), 2)
    sheet = watch.film("1")._sheets[0]
    assert sheet.legend.notes == ("12 of 20 filters × 12 of 14 channels shown",)
    assert sheet.title.endswith("20 filters of 14×3×3")
    assert len(sheet.cells) == 144


def test_what_is_written_while_it_learns_is_on_the_scale_of_the_first_frame():
    frames = Frames("kernels/conv", None)
    values = [torch.full((1, 1, 2, 2), value) for value in (0.5, 1.0, 3.0)]
    sheets = [frames.add(Frame(i, each, tuple(each.shape)))() for i, each in enumerate(values)]
    assert {(sheet.legend.scale.vmin, sheet.legend.scale.vmax) for sheet in sheets} == {(-2.0, 2.0)}
    assert [sheet.legend.counts.over for sheet in sheets] == [0, 0, 4]
    given = Frames("maps/conv", Scale(vmin=0, vmax=9))
    made = given.add(Frame(0, values[2], (1, 1, 2, 2)))()
    assert (made.legend.scale.vmin, made.legend.scale.vmax) == (0, 9)
    assert given.film()._sheets[0].legend.scale.vmax == 9


def test_as_many_frames_as_can_be_kept_over_the_whole_run():
    frames = Frames("kernels/conv", None)
    for step in range(1000):
        frames.add(Frame(step, torch.zeros(1, 1, 2, 2), (1, 1, 2, 2)))
    steps = frames.film().steps
    assert len(steps) <= 32
    assert (steps[0], steps[-1]) == (0, 999)


def film_on(name, *steps):
    frames = Frames(name, None)
    for i, values in enumerate(steps):
        frames.add(Frame(10 * i, values, tuple(values.shape)))
    return frames.film()


@pytest.mark.parametrize("after", [[1e30], [1e5, 1e30, 3e38], [1e30] * 9])
def test_early_frames_survive_a_blow_up(after):
    calm = torch.randn(4, 1, 1, 3, 3)
    film = film_on("kernels/conv", *calm, *(calm[0] * value for value in after))
    scale = Scale(symmetric=True).fit(*calm)
    for sheet, values in zip(film._sheets, calm, strict=False):
        assert sheet.legend.scale.vmax == scale.vmax
        assert torch.equal(sheet.pixels, kernels(values, scale=scale).pixels)
        assert sheet.legend.notes == ()
    late = film._sheets[-1].legend
    assert late.counts.over + late.counts.under + late.counts.posinf + late.counts.neginf == 9
    assert late.notes[0].startswith("reaches ")
    assert late.notes[0].endswith(": beyond the scale, which holds the other steps")
    assert any(f"{10 * (3 + len(after))}: reaches " in note for note in film.strip().legend.notes)


def test_infinities_and_nan_leave_the_scale_to_what_is_finite():
    ones = torch.ones(1, 1, 2, 2)
    film = film_on("kernels/conv", ones, ones * torch.inf, torch.tensor([[[[2.0, torch.nan], [0, torch.inf]]]]))
    assert {sheet.legend.scale.vmax for sheet in film._sheets} == {2.0}
    assert film._sheets[1].legend.counts.posinf == 4
    assert film.strip().legend.notes == ("step 10: 4 px +∞", "step 20: 1 px NaN, 1 px +∞")
    nothing = film_on("kernels/conv", ones * torch.nan, ones * 0)
    assert nothing._sheets[1].legend.scale.vmax == 0


@pytest.mark.parametrize("sizes", [(1, 2, 4, 10), (0, 1e-6, 0.3, 0.5, 0.8), (1, 5, 10), (900, 1000, 9000)])
def test_ordinary_growth_is_held_whole(sizes):
    film = film_on("kernels/conv", *(torch.full((1, 1, 2, 2), float(size)) for size in sizes))
    assert film._sheets[0].legend.scale.vmax == pytest.approx(sizes[-1])
    assert total_of(sheet.legend.counts for sheet in film._sheets) == Counts()
    assert film.strip().legend.notes == ()


def test_a_note_belongs_to_its_frame():
    maps = torch.rand(2, 3, 4, 4)
    dead = maps.clone()
    dead[:, 1] = -1
    strip = film_on("maps/conv", maps, dead, maps, dead).strip()
    assert strip.legend.notes == ("steps 10 and 30: × nothing above 0: 1 of 3",)
    assert film_on("maps/conv", dead, dead).strip().legend.notes == ("× nothing above 0: 1 of 3",)
    # a map a row, the two images of four steps next to each other; the mark is above the first image
    assert [i for i, label in enumerate(strip.labels) if label == "×"] == [8 + 2, 8 + 6]


def test_a_strip_of_maps_is_a_table_that_says_what_is_where():
    steps = [torch.randn(2, 3, 4, 5) for _ in range(3)]
    film = film_on("maps/conv", *steps)
    strip = film.strip()
    assert strip.rows == ("channel 0", "channel 1", "channel 2")
    assert strip.heads == ("step 0", "step 10", "step 20")
    assert (strip.columns, strip.corner, strip.group, strip.ncols) == (("0", "1"), "image", 2, 6)
    for i, sheet in enumerate(film._sheets):
        for channel in range(3):
            for image in range(2):
                assert torch.equal(strip.cells[channel * 6 + i * 2 + image], sheet.cells[channel * 2 + image])
    assert strip.figure().axes[0].get_xticklabels()[2].get_text() == "0\nstep 10"
    assert strip.numpy().shape[1] < 500


def test_a_strip_of_one_image_and_of_heatmaps():
    strip = film_on("maps/conv", *torch.randn(3, 1, 2, 4, 4)).strip()
    assert (strip.rows, strip.columns, strip.heads) == (("channel 0", "channel 1"), ("0", "10", "20"), ())
    heatmaps = torch.randn(3, 2, 1, 4, 4)
    film = film_on("why/saliency", *heatmaps)
    strip = film.strip()
    assert (strip.rows, strip.columns, strip.corner) == (("image 0", "image 1"), ("0", "10", "20"), "step")
    assert torch.equal(strip.cells[3 + 2], film._sheets[2].cells[1])
    lone = film_on("why/saliency", *heatmaps[:, :1]).strip()
    assert (lone.rows, lone.columns) == ((), ("0", "10", "20"))
    assert film_on("maps/conv", torch.randn(1, 1, 4, 4)).strip().numpy().ndim == 3


def test_a_wide_table_shows_fewer_steps():
    strip = film_on("maps/conv", *torch.randn(12, 4, 2, 112, 112)).strip()
    assert strip.heads == ("step 0", "step 40", "step 70", "step 110")
    assert strip.numpy().shape[1] < 2200


def film_of(n):
    frames = Frames("kernels/conv", None)
    for step in range(n):
        values = torch.randn(5, 3, 4, 4)
        frames.add(Frame(100 * step, values, tuple(values.shape)))
    return frames.film()


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animations_are_read_back(tmp_path, suffix):
    film = film_of(5)
    path = film.save(tmp_path / f"film{suffix}", duration=40)
    with Image.open(path) as image:
        assert image.n_frames == 5
        assert image.info.get("loop") == 0
        for i, frame in enumerate(film.numpy()):
            image.seek(i)
            image.load()
            found = np.asarray(image.convert("RGB"))
            if suffix == ".webp":
                assert np.array_equal(found, frame)
                assert image.info["duration"] == (40 if i < 4 else 320)
            else:
                assert np.abs(found.astype(int) - frame).mean() < 4
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_strips_have_the_first_and_the_last_step(tmp_path):
    film = film_of(20)
    strip = film.strip()
    assert strip.labels[0] == "step 0"
    assert strip.labels[-1] == "step 1,900"
    assert len(strip.labels) == 8
    assert torch.equal(strip.cells[-1], film._sheets[-1].pixels)
    assert strip.title == "Kernels of conv, steps 0 to 1,900: 5 filters of 3×4×4"
    saved = film.save(tmp_path / "strip.png").read_bytes()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(saved))), strip.numpy())
    assert film_of(1).strip().labels == ("step 0",)


def test_bad_input(tmp_path):
    with pytest.raises(OptionError, match=r"must end in '\.webp', '\.gif', or '\.png' for a strip; got .*mp4"):
        film_of(1).save(tmp_path / "film.mp4")
    with pytest.raises(OptionError, match="duration must be at least 1 ms, got 0"):
        film_of(1).save(tmp_path / "film.gif", duration=0)
    with pytest.raises(OptionError, match="at least one frame"):
        Film([], [])
    watch = Monitor(net())
    with pytest.raises(LayerError, match="no kernels of '0' were recorded; recorded: none"):
        watch.film("0")
    with pytest.raises(LayerError, match="maps need a probe; pass probe="):
        watch.film("0", "maps")
    with pytest.raises(DtypeError, match=r"or a tuple or mapping that begins with one; got int"):
        Monitor(net(), probe=[1])
    assert not list(tmp_path.iterdir())


def test_layers_without_kernels_are_left_out():
    layers = {"a": nn.Conv3d(1, 1, 2), "b": nn.Linear(2, 2), "c": nn.Conv1d(1, 1, 2), "d": nn.ConvTranspose2d(1, 1, 2)}
    assert list(kernels_now(layers)) == ["c", "d"]


def test_another_layer_in_the_same_place_begins_a_film_anew(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    watch = Monitor(model, every=1)
    for size in (3, 3, 5):
        model[0] = nn.Conv2d(1, 2, size)
        with watch.step():
            model(torch.ones(1, 1, 8, 8))
    assert watch.film("0").steps == [2]
    assert watch.film("0").save(tmp_path / "strip.png").exists()


class Adapter(nn.Module):
    """A frozen convolution, and two that learn beside it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3).requires_grad_(False)
        self.down, self.up = nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 3, 1, bias=False)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))

    def kernel(self):
        return (self.conv.weight + self.up.weight * self.down.weight).detach().clone()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_frames_are_of_what_the_layer_computes_with_after_the_step(tmp_path):
    model = nn.Sequential(Adapter(), nn.utils.weight_norm(nn.Conv2d(3, 2, 3)), nn.Flatten(), nn.Linear(2 * 16, 2))
    model.append(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
    watch = Monitor(model, every=1, to=tmp_path / "run")
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.5)
    adapted, normed = [], []
    for x in torch.randn(3, 5, 1, 8, 8):
        with watch.step():
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        adapted.append(model[0].kernel())
        v = model[1].weight_v.detach()
        normed.append(model[1].weight_g.detach() * v / v.flatten(1).norm(dim=1)[:, None, None, None])
    watch.close()
    for layer, weights in {"0": adapted, "1": normed}.items():
        film = watch.film(layer)
        assert not torch.equal(weights[0], weights[-1])
        scale = Scale(symmetric=True).fit(*weights)
        for sheet, weight in zip(film._sheets, weights, strict=True):
            off = (sheet.pixels.int() - kernels(weight, scale=scale).pixels.int()).abs()
            assert off.max() <= 1  # of 255: rounding
    assert "adapter added" in watch.film("0")._sheets[0].legend.notes
    assert watch.film("1")._sheets[0].legend.notes[0] == "weight norm"


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*")
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_a_monitor_changes_no_training_under_spectral_norm(norm):
    states = []
    for looked_at in (True, False):
        torch.manual_seed(3)
        model = nn.Sequential(norm(nn.Conv2d(1, 3, 3)), nn.Flatten(), nn.Linear(3 * 36, 2))
        watch = Monitor(model, every=1)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for x in torch.randn(3, 5, 1, 8, 8):
            with watch.step() if looked_at else nullcontext():
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_images_of_a_film_have_names():
    frames = Frames("maps/conv", None)
    for step in range(3):
        frames.add(Frame(step, torch.randn(2, 3, 4, 4), (2, 3, 4, 4)))
    film = frames.film(["circle", "cross", "star"])
    assert film._sheets[0].columns == ("circle", "cross")
    assert film.strip().columns == ("circle", "cross")
    for names in (["circle"], ["circle", "circle"]):
        with pytest.raises(OptionError, match=r"names must be 2 different names, of the probe's images, got"):
            frames.film(names)


def test_a_strip_tells_the_share_that_is_clipped_of_all_its_steps():
    frames = Frames("maps/conv", Scale(symmetric=True, vmax=1.0))
    for step in range(4):
        values = torch.zeros(1, 1, 4, 5)
        values[0, 0, 0, 0] = 2.0
        frames.add(Frame(step, values, tuple(values.shape)))
    strip = frames.film().strip()
    assert (strip.legend.counts.over, strip.legend.total) == (4, 4 * 20)
    assert "clipped 5 %" in strip.legend.lines()
