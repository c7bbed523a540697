import pytest
import torch

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.views import predictions

NAMES = ["circle", "cross", "a very long name that no chart has room for"]
LOGITS = torch.tensor([[2.0, -1.0, 0.5]])


def texts(axes):
    return [t.get_text() for t in axes.texts]


def test_top_classes_with_probabilities_and_the_truth():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    axes = predictions(torch.rand(2, 1, 5, 5), logits, NAMES, k=2, targets=[0, 2]).figure().axes
    chances = logits.softmax(1)
    first, second = axes[1], axes[3]
    assert first.get_title(loc="left") == "✓ right"
    assert texts(first) == [
        "circle ✓",
        f"{100 * chances[0, 0]:.1f} %",
        "cross",
        f"{100 * chances[0, 1]:.1f} %",
    ]
    assert second.get_title(loc="left") == "✗ wrong, it is a very lon… room for"
    assert texts(second)[0] == "cross"


@pytest.mark.parametrize(
    ("scores", "classes", "said"),
    [
        ([[0.98, 0.02]], "ab", ["a", "98.0 %", "b", "2.0 %"]),
        ([[0.90, 0.05, 0.05], [torch.nan] * 3], "abc", ["a", "90.0 %", "b", "5.0 %", "c", "5.0 %"]),
        ([[5.0], [-5.0]], ["yes"], ["yes", "99.3 %"]),
        ([[-5.0], [5.0]], ["yes"], ["yes", "0.7 %"]),
        ([[-5.0], [5.0]], ["no", "yes"], ["no", "99.3 %", "yes", "0.7 %"]),
        ([5.0, -5.0], ["no", "yes"], ["yes", "99.3 %", "no", "0.7 %"]),
    ],
)
def test_what_is_a_probability_is_shown_as_it_is(scores, classes, said):
    images = torch.rand(len(scores), 1, 5, 5)
    for given in (torch.tensor(scores), {"logits": torch.tensor(scores)}):
        axes = predictions(images, given, classes).figure().axes
        assert texts(axes[1]) == said


def test_scores_that_may_be_either_are_asked_for():
    images = torch.rand(1, 1, 5, 5)
    for scores, classes, answer, said in (
        ([[0.98, 0.95]], "ab", "label_probabilities", ["a", "98.0 %", "b", "95.0 %"]),
        ([[0.98, 0.95]], "ab", "label_logits", ["a", "72.7 %", "b", "72.1 %"]),
        ([[0.98, 0.95]], "ab", "logits", ["a", "50.7 %", "b", "49.3 %"]),
        ([[0.98]], ["a"], "probabilities", ["a", "98.0 %"]),
        ([[0.98]], ["b", "a"], "logits", ["a", "72.7 %", "b", "27.3 %"]),
    ):
        with pytest.raises(OptionError, match="logits or probabilities"):
            predictions(images, torch.tensor(scores), classes)
        figure = predictions(images, torch.tensor(scores), classes, answer=answer).figure()
        assert texts(figure.axes[1]) == said
        assert ("independent labels" in figure.get_supxlabel()) == answer.startswith("label")
    made = torch.logit(torch.tensor([[0.98, 0.95]])).requires_grad_().sigmoid()
    assert texts(predictions(images, made, "ab").figure().axes[1]) == ["a", "98.0 %", "b", "95.0 %"]
    with pytest.raises(OptionError, match=r"predictions\(\) shows probabilities of classes, got answer='figures'"):
        predictions(images, torch.tensor([[3.0]]), ["a"], answer="figures")


@pytest.mark.parametrize(
    "targets", [[0, 1], torch.tensor([[0], [1]]), torch.eye(3)[[0, 1]], ["circle", "cross"], [0.0, 1.0]]
)
def test_targets_in_the_forms_of_data_sets(targets):
    axes = predictions(torch.rand(2, 1, 5, 5), torch.tensor([[3.0, 0, 0]] * 2), NAMES, targets=targets).figure().axes
    assert [a.get_title(loc="left") for a in axes[1::2]] == ["✓ right", "✗ wrong, it is cross"]


def test_targets_of_one_logit():
    axes = predictions(torch.rand(2, 1, 5, 5), torch.tensor([[-5.0], [-5.0]]), ["cat"], targets=[0, 1]).figure().axes
    assert [a.get_title(loc="left") for a in axes[1::2]] == ["✓ right", "✗ wrong, it is cat"]


def test_without_targets_nothing_is_judged():
    axes = predictions(torch.rand(1, 3, 5, 5), LOGITS, NAMES, k=9).figure().axes[1]
    assert axes.get_title(loc="left") == ""
    assert not any("✓" in t for t in texts(axes))
    assert len(axes.texts) == 6, "k is at most the number of classes"


@pytest.mark.parametrize("b", [1, 7, 16])
def test_any_number_of_images_and_the_same_bytes(b):
    images, logits = torch.rand(b, 3, 4, 4), 9 * torch.randn(b, 3)
    assert predictions(images, logits, NAMES).png() == predictions(images, logits, NAMES).png()


@pytest.mark.parametrize("logits", [torch.tensor([2.0, 1, 0]), torch.tensor([[2.0, 1, 0]])])
def test_one_image_needs_no_batch_axis(logits):
    image = torch.rand(3, 4, 4)
    one = predictions(image, logits, NAMES, targets=0)
    assert one.png() == predictions(image[None], torch.tensor([[2.0, 1, 0]]), NAMES, targets=[0]).png()


def test_sixty_four_images_of_many_classes_are_bounded():
    picture = predictions(torch.rand(64, 1, 4, 4), torch.randn(64, 9), [f"class {i}" for i in range(9)], k=9)
    assert max(picture.figure().get_size_inches() * picture.figure().dpi) <= 4000


def test_half_precision_and_logits_that_are_not_finite():
    axes = predictions(torch.rand(1, 3, 4, 4).half(), LOGITS.bfloat16(), NAMES).figure().axes
    assert len(axes) == 2
    odd = predictions(torch.rand(1, 3, 4, 4), torch.full((1, 3), float("nan")), NAMES, targets=[1]).figure().axes[1]
    assert odd.get_title(loc="left") == "✗ logits are not finite"


def test_pixels_outside_the_declared_range_are_counted():
    images = torch.full((1, 1, 2, 2), 0.5)
    assert predictions(images, LOGITS, NAMES).figure().get_supxlabel() == ""
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 3.0, float("nan")
    words = predictions(images, LOGITS, NAMES).figure().get_supxlabel()
    first, *hint = words.splitlines()
    assert first == "1 px NaN, 1 px above the images' range"
    assert "pass card=" in " ".join(hint)


def test_inputs_are_not_changed():
    images, logits = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    before = images.clone(), logits.clone()
    predictions(images, logits, NAMES, value_range="imagenet").png()
    assert images.equal(before[0])
    assert logits.equal(before[1])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"images": torch.rand(1, 2, 3, 4, 4)},
            ShapeError,
            r"'b c h w' with b from 1 to 64, got shape \(1, 2, 3, 4, 4\)",
        ),
        ({"images": torch.rand(3, 4, 4)}, ShapeError, r"logits must be \(1, 3\) .* got shape \(2, 3\)"),
        (
            {"images": torch.randn(2, 3), "logits": torch.rand(2, 3, 4, 4)},
            ShapeError,
            r"images come first and logits second: .* got shapes \(2, 3\) and \(2, 3, 4, 4\)",
        ),
        ({"images": torch.rand(65, 3, 4, 4)}, ShapeError, r"got shape \(65, 3, 4, 4\)"),
        (
            {"logits": torch.rand(2, 4)},
            ShapeError,
            r"logits must be \(2, 3\) \(images, classes\), got shape \(2, 4\)",
        ),
        ({"logits": torch.rand(2, 3, dtype=torch.cfloat)}, DtypeError, "expected real values"),
        (
            {"images": [1]},
            DtypeError,
            r"images and logits must be tensors, got .*list.* and .*Tensor",
        ),
        ({"logits": torch.rand(3, 3)}, ShapeError, r"logits must be \(2, 3\) .* got shape \(3, 3\)"),
        ({"logits": [[1, 2, 3]] * 2}, DtypeError, r"must be tensors, got .*Tensor.* and .*list"),
        ({"targets": [0, 0.5]}, DtypeError, r"target 1 is 0\.5, not a class; pass a class number or name"),
        ({"answer": "chances"}, OptionError, "answer must be one of 'logits', 'probabilities'"),
        ({"k": 0}, OptionError, "k must be at least 1, got 0"),
        ({"targets": [0]}, ShapeError, "targets must hold 2 classes, one per image, got 1"),
        ({"targets": [0, 3]}, OptionError, r"targets must be from 0 to 2, got \[0, 3\]"),
        ({"value_range": "float"}, OptionError, "value_range must be one of unit, signed, byte, imagenet"),
    ],
)
def test_bad_input_says_what_to_do(change, error, match):
    good = {"images": torch.rand(2, 3, 4, 4), "logits": torch.randn(2, 3) - 5, "classes": NAMES}
    with pytest.raises(error, match=match):
        predictions(**{**good, **change})
