"""The verdict is what the figures say, judged by plain numbers here."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.explain import Faithfulness, Reason, Verdict, attribute, faithfulness, reasons
from torch_featviz.explain.verdict import judge, lacking, needed


@pytest.mark.parametrize("sign", [1, -1])
@given(st.floats(0, 0.5, width=32), st.floats(0, 0.25, width=32))
def test_a_caption_says_what_gain_is_lacking_whatever_its_sign(sign, size, spread):
    gain = sign * size
    least = max(0.03, 2 * spread)
    between = size >= 0.03 and size < least
    said = lacking(gain, float(needed(torch.tensor(spread))))
    word = "worse from −" if sign < 0 else "needs "
    assert said == (f"gain {'−' * (sign < 0)}{size:.2f}, {word}{least:.2f}" if between else "")
    if said:
        assert judge(torch.tensor([gain]), torch.tensor([False]), torch.tensor([spread])) == (Verdict.NO_BETTER,)


shares = st.floats(0, 1, width=32)
figures = st.fixed_dictionaries(
    dict.fromkeys(("deletion", "insertion", "random_deletion", "random_insertion", "whole", "scattered"), shares)
    | {"similarity": st.floats(-1, 1, width=32), "deviation": st.just(0.0) | st.floats(0, 0.125, width=32)}
)


def worth_of(given):
    similarity = torch.tensor([[given["similarity"]]])
    rest = {name: torch.tensor([value]) for name, value in given.items() if name != "similarity"}
    return Faithfulness(**rest, similarity=similarity)


def by_hand(given):
    put_in = given["insertion"] - given["random_insertion"]
    taken_out = given["random_deletion"] - given["deletion"]
    gain = (put_in + taken_out) / 2
    margin = max(0.03, 2 * given["deviation"])
    if gain <= -margin:
        return "✗ worse than chance"
    explains = given["whole"] >= 0.05 and given["scattered"] <= given["whole"] - 0.03 and given["similarity"] <= 0.5
    return "✓ better than chance" if gain >= margin and explains else "= no better than chance"


def near_an_edge(given):
    gain = (given["insertion"] - given["random_insertion"] + given["random_deletion"] - given["deletion"]) / 2
    return (
        abs(abs(gain) - max(0.03, 2 * given["deviation"])) < 1e-6
        or abs(given["whole"] - 0.05) < 1e-6
        or abs(given["whole"] - given["scattered"] - 0.03) < 1e-6
    )


@given(figures)
def test_it_agrees_with_the_figures(given):
    if not near_an_edge(given):
        assert [str(verdict) for verdict in worth_of(given).verdict] == [by_hand(given)]


@given(figures)
def test_what_holds_a_heatmap_back_is_said_where_its_figures_are_better(given):
    if near_an_edge(given):
        return
    gain = (given["insertion"] - given["random_insertion"] + given["random_deletion"] - given["deletion"]) / 2
    worth = worth_of(given)
    held = gain >= max(0.03, 2 * given["deviation"]) and by_hand(given).startswith("=")
    word = "alike with random weights" if given["similarity"] > 0.5 else "little to explain"
    assert worth.held_back == (word if held else "",)
    assert worth.words == (f"= {word}" if held else by_hand(given),)


@given(figures, shares)
def test_better_figures_never_make_it_worse(given, by):
    verdict = worth_of(given).verdict[0]
    for change in (
        {"insertion": given["insertion"] + by},
        {"deletion": given["deletion"] - by},
        {"random_insertion": given["random_insertion"] - by},
        {"random_deletion": given["random_deletion"] + by},
    ):
        assert worth_of({**given, **change}).verdict[0] >= verdict


@given(figures, st.floats(0.625, 1, width=32))
def test_a_map_that_ignores_the_weights_is_never_better(given, similarity):
    assert worth_of({**given, "similarity": similarity}).verdict[0] <= Verdict.NO_BETTER


def test_figures_that_are_none_are_no_better():
    areas = ("deletion", "insertion", "random_deletion", "random_insertion")
    nan = dict.fromkeys((*areas, "whole", "scattered", "similarity", "deviation"), math.nan)
    assert worth_of(nan).verdict == (Verdict.NO_BETTER,)


class Corner(nn.Module):
    """The first class is seen in one corner."""

    def forward(self, x):
        score = 4 * x[:, :, :2, :2].sum((1, 2, 3))
        return torch.stack([score - 10, -score], dim=1)


def cornered():
    """Bright in that corner, and dark elsewhere."""
    images = torch.rand(2, 1, 12, 12) * 0.1
    images[:, :, :2, :2] += 1
    return images


def test_a_true_map_is_better_and_its_negative_is_worse():
    images = cornered()
    true = attribute(Corner(), images, target=0, method="input_x_gradient")
    found = faithfulness(Corner(), images, true, stages=0, baselines=0.0)
    assert found.verdict == (Verdict.BETTER,) * 2
    true.heatmaps.neg_()
    negative = faithfulness(Corner(), images, true, stages=0, baselines=0.0)
    assert replace(negative, deviation=None).verdict == (Verdict.WORSE,) * 2
    assert max(negative.verdict) <= Verdict.NO_BETTER, "other places of four pixels differ much"


def test_noise_is_seldom_better_or_worse():
    """Of a small image other places differ by more than 3 %."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    nn.init.normal_(net[1].weight, std=0.25)
    images = torch.randn(64, 1, 8, 8)
    noise = replace(attribute(net, images, method="saliency"), heatmaps=torch.randn(64, 8, 8))
    found = faithfulness(net, images, noise, stages=0, baselines=0.0)
    beyond = sum(verdict is not Verdict.NO_BETTER for verdict in found.verdict)
    assert beyond <= 8
    assert sum(map(bool, replace(found, deviation=None, whole=None).verdict)) > 20, "which 3 % alone do not tell"
    true = attribute(net, images, method="input_x_gradient")
    verdicts = faithfulness(net, images, true, stages=0, baselines=0.0).verdict
    assert sum(verdict is Verdict.BETTER for verdict in verdicts) > 30


def test_a_mean_of_many_images_is_judged_by_what_their_places_differ_together():
    same = torch.full((16,), 0.5)
    worth = Faithfulness(same, same, same, same, torch.zeros(1, 16), deviation=torch.full((16,), 0.08))
    for classes in (1, 3):
        assert Reason("saliency", "", "", torch.zeros(16, classes, 2, 2), (worth,) * classes).spread == pytest.approx(
            0.02
        )


def test_a_class_that_does_not_depend_on_what_is_seen_is_not_explained():
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([8 * x.mean((1, 2, 3)), torch.zeros(len(x))], dim=1)

    images = cornered()
    why = attribute(Mean(), images, target=0, method="input_x_gradient")
    found = faithfulness(Mean(), images, why, stages=0, baselines=0.0)
    torch.testing.assert_close(found.scattered, found.whole)
    assert bool((found.gain > 0.03).all())
    assert found.verdict == (Verdict.NO_BETTER,) * 2


def test_a_figure_is_judged_in_shares_of_its_span():
    images = cornered()
    verdicts = []
    for size in (1e-3, 1e3):
        why = attribute(Corner(), images, target=lambda out, s=size: s * out[:, 0], method="saliency")
        found = faithfulness(Corner(), images, why, stages=0, baselines=0.0)
        low, high = (size * Corner()(x)[:, 0] for x in (torch.zeros_like(images), images))
        torch.testing.assert_close(found.span, high - low)
        verdicts.append(found.verdict)
    assert verdicts == [(Verdict.BETTER,) * 2] * 2


def test_what_it_costs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    images, rows = torch.rand(2, 1, 6, 6), []
    why = attribute(net, images, target=1, method="saliency")
    faithfulness(net, images, why, stages=0, steps=1)  # which patches it has is sought once
    net[0].register_forward_hook(lambda _module, given, _output: rows.append(len(given[0])))
    counts = []
    for steps in (2, 3, 6):
        rows.clear()
        faithfulness(net, images, why, stages=0, steps=steps)
        counts.append(sum(rows))
    rest = len(images) + 1  # what the scores are, and how much memory one row takes
    assert counts == [rest + (14 * (steps - 1) + 4) * len(images) for steps in (2, 3, 6)], (
        "two ways for seven places; the image, none of it, blurred and scattered"
    )


def test_methods_are_ranked_by_verdict_and_then_by_gain():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    why = reasons(net, torch.rand(2, 1, 6, 6), ["saliency", "gradcam", "occlusion", "input_x_gradient"])
    ranked = [(reason.verdict, reason.gain) for reason in why.ranked]
    assert ranked == sorted(ranked, reverse=True)
    assert {reason.method for reason in why.ranked} == {reason.method for reason in why.methods}
    unmeasured = reasons(net, torch.rand(2, 1, 6, 6), ["saliency", "gradcam"], faithful=False)
    assert unmeasured.ranked == unmeasured.methods
    assert unmeasured.methods[0].verdict is None


@pytest.mark.parametrize("verdict", Verdict)
def test_marks_are_letters_of_the_face(verdict):
    from fontTools.ttLib import TTFont

    from torch_featviz.picture import text

    for bold in (False, True):
        assert ord(verdict.mark) in TTFont(text.font(12, bold).path).getBestCmap()


@given(st.lists(figures, min_size=1, max_size=3))
def test_all_together_are_no_better_than_the_best_and_no_worse_than_the_worst(several):
    worth = tuple(map(worth_of, several))
    single = [each.verdict[0] for each in worth]
    together = Reason("saliency", "", "", torch.zeros(1, len(worth), 2, 2), worth).verdict
    assert min(single) <= together <= max(single)
    if len(worth) == 1:
        assert together is single[0]
