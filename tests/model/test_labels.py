"""Labels in all the forms in which data sets give them."""

from enum import Enum, IntEnum

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.labels import image_of, label_of, labels_of, names_of, pair_of


class Pet(IntEnum):
    CAT = 2


class Word(str, Enum):
    DOG = "dog"


FORMS = {
    "int": int,
    "float": float,
    "numpy": np.int64,
    "array": lambda k: np.array(k, np.uint8),
    "one of one": lambda k: np.array([k]),
    "tensor": torch.tensor,
    "half": lambda k: torch.tensor([[k]], dtype=torch.bfloat16),
    "one-hot": lambda k: torch.eye(9)[k],
    "one-hot list": lambda k: torch.eye(9)[k].tolist(),
    "one-hot array": lambda k: np.eye(9, dtype=bool)[k],
    "column": lambda k: torch.eye(9)[k][:, None],
}


@given(st.integers(0, 8), st.sampled_from([*FORMS]))
def test_a_number_in_any_form(k, form):
    assert label_of(FORMS[form](k), "item 0") == k


def test_names_and_numbers_that_have_them():
    assert label_of("dog", "item 0") == "dog"
    assert label_of("dog", "item 0", ["cat", "dog"]) == 1
    assert label_of(np.str_("dog"), "item 0", ["cat", "dog"]) == 1
    assert label_of(Word.DOG, "item 0", ["cat", "dog"]) == 1
    assert label_of(Pet.CAT, "item 0") == 2
    assert label_of(True, "item 0") == 1


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (
            torch.zeros(4, 4, dtype=torch.long),
            DtypeError,
            r"item 7 is of shape \(4, 4\), a mask or an image, not a class; set a target_transform",
        ),
        (np.zeros((1, 4, 4)), DtypeError, r"of shape \(1, 4, 4\), a mask"),
        (Image.new("L", (4, 4)), DtypeError, "item 7 is a Image, not a class"),
        ({"boxes": 1, "labels": 2}, DtypeError, "item 7 is a dict of 'boxes', 'labels', not a class"),
        (torch.tensor([0.0, 1.0, 1.0]), DtypeError, r"item 7 is \(0, 1, 1\), not one class"),
        (torch.tensor([0.25, 0.75]), DtypeError, r"item 7 is \(0\.25, 0\.75\), not one class"),
        ([0] * 20, DtypeError, r"\(0, 0, 0, 0, 0, 0, …\), not one class"),
        ([3, 5], DtypeError, r"\(3, 5\), not one class"),
        ([{"bbox": 1}, {"bbox": 2}], DtypeError, "a list of 2, not a class"),
        ((), DtypeError, "a tuple of 0"),
        (0.5, DtypeError, r"item 7 is 0\.5, not a class"),
        (float("nan"), DtypeError, "item 7 is nan"),
        (None, DtypeError, "item 7 is None, not a class"),
        (float("inf"), DtypeError, "item 7 is inf, not a class"),
        (10**400, DtypeError, "item 7 is 10000.*, not a class"),
        (2**63, DtypeError, "item 7 is 9223372036854775808, not a class"),
        ([0, 10**400], DtypeError, "item 7 is a list of 2, not a class"),
        ("dgo", OptionError, "item 7 is 'dgo', which is not one of the 3 classes; close: 'dog'"),
        (torch.eye(2)[0], OptionError, "item 7 is one-hot with 2 classes, but 3 names are given"),
    ],
)
def test_what_is_no_class_says_which_and_what_to_do(value, error, words):
    with pytest.raises(error, match=words):
        label_of(value, "item 7", ["cat", "dog", "emu"])


def test_batches():
    numbers = torch.tensor([1, 0], dtype=torch.int32)
    assert labels_of(numbers, 2).tolist() == [1, 0]
    assert labels_of(numbers, 2).dtype == torch.int64
    for values in (numbers[:, None], numbers.float(), [1, 0], np.array([1, 0]), torch.eye(3)[[1, 0]], (1, 0)):
        assert labels_of(values, 2).tolist() == [1, 0]
    assert labels_of(("b", "a"), 2, names="ab").tolist() == [1, 0]
    assert labels_of(torch.tensor(1), 1).tolist() == [1]
    assert labels_of(np.array(1), 1).tolist() == [1]
    assert labels_of(np.int64(1), 1).tolist() == [1]
    assert labels_of(1, 1).tolist() == [1]


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        (torch.zeros(2, 4, 4), DtypeError, r"the label of item 10 is of shape \(4, 4\), a mask"),
        (torch.tensor([[1.0, 0.0], [1.0, 1.0]]), DtypeError, r"the label of item 11 is \(1, 1\), not one class"),
        (("a", "b"), DtypeError, "the label of item 10 must be a class number, got the name 'a'"),
        (torch.zeros(3), ShapeError, "items must hold 2 classes, one per image, got 3"),
        ({"boxes": 1}, ShapeError, "got a dict of 'boxes'"),
        ("ab", ShapeError, "got a str"),
    ],
)
def test_batches_that_hold_no_classes(values, error, words):
    with pytest.raises(error, match=words):
        labels_of(values, 2, first=10)


def test_items():
    assert pair_of((1, 2, 3), "item 0") == (1, 2)
    assert pair_of({"image": 1, "label": 2}, "item 0") == (1, 2)
    assert pair_of({"pixel_values": 1, "labels": 2}, "item 0") == (1, 2)
    assert [image_of(item) for item in ((1, 2), [1], {"img": 1, "x": 2}, 1)] == [1] * 4
    for item, words in (
        ({"image": 1, "caption": 2}, "item 3 is a dict with 'image', 'caption'; expected the image under image"),
        ({"photo": 1, "label": 2}, "class under label, labels, target"),
        (torch.zeros(2), "item 3 is a Tensor, not a pair"),
        ((1,), r"item 3 is a tuple of 1, not a pair \(image, label\)"),
    ):
        with pytest.raises(DtypeError, match=words):
            pair_of(item, "item 3")


@pytest.mark.parametrize("classes", [{float("inf"): "a"}, {"x": "a"}, {1: "a"}, torch.tensor(3), np.array("a"), 3])
def test_what_names_no_classes(classes):
    with pytest.raises(DtypeError, match="classes must"):
        names_of(classes)


def test_a_mapping_names_the_classes_by_its_numbers():
    assert names_of({10: "k", **{str(n): f"c{n}" for n in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}})[8:] == ("c8", "c9", "k")
    for wrong in ({"cat": 0, "dog": 1}, {1: "cat", 2: "dog"}):
        with pytest.raises(DtypeError, match=r"classes must map 0, 1, \.\.\. to the names of all classes"):
            names_of(wrong)
