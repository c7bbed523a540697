"""Resume files: each change of one is refused or leaves the result as it was; so is each change of the images."""

import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.spoilt import at, changed, places, spoilt
from torch_featviz.errors import FileError, OptionError
from torch_featviz.survey import top_patches
from torch_featviz.survey.resume import State

NET = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
LAYERS = ["0", "2"]
IMAGES = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def loader(images, **options):
    return DataLoader(TensorDataset(images), **{"batch_size": 4, **options})


def found(best):
    return {name: (each.values, each.images, each.places, each.seen) for name, each in best.items()}


def same(one, other):
    return all(torch.equal(*pair) for name in LAYERS for pair in zip(one[name][:3], other[name][:3], strict=True))


def written(file, data=None, **options):
    return found(top_patches(NET, loader(IMAGES) if data is None else data, LAYERS, k=4, resume=file, **options))


ODD = [
    *(None, True, -5, 0, 1, 3, 2**63, 10**30, 0.5, float("nan"), "", "x", [], {}, [1], {"a": 1}, [[]], [2, 2, 2]),
    *(torch.zeros(()), torch.zeros(3), torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64)),
    *(torch.full((4, 3), 99), torch.full((4, 3), float("nan")), torch.full((3,), -1), torch.tensor(10)),
    *(torch.zeros(1).expand(4, 10**12), torch.zeros(4, 3).to_sparse(), torch.zeros(4, 3, dtype=torch.complex64)),
]


def one_spoilt(content, draw):
    """As any value may be spoilt, or one number of a tensor."""
    tensors = [path for path in places(content) if isinstance(at(content, path), torch.Tensor)]
    if not draw(st.booleans()):
        return spoilt(content, draw, ODD)

    def moved(tensor):
        copy = tensor.clone()
        copy.view(-1)[draw(st.integers(0, copy.numel() - 1))] += draw(st.sampled_from([-(10**6), -1, 1, 10**6]))
        return copy

    return changed(content, draw(st.sampled_from(tensors)), moved)


@pytest.fixture(scope="module", params=["a DataLoader", "batches"])
def good(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("good") / "state.pt"
    data = loader(IMAGES) if request.param == "a DataLoader" else list(IMAGES.split(4))
    return file, data, written(file, data), torch.load(file, weights_only=True)


def outcome(file, images):
    """The result, or None where the file is refused."""
    try:
        return written(file, images)
    except (FileError, OptionError) as error:
        return None if "delete it, or give resume= another name" in str(error) else pytest.fail(str(error))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_changes_nothing(good, data):
    file, images, expected, content = good
    torch.save(one_spoilt(content, data.draw), file)
    got = outcome(file, images)
    assert got is None or same(got, expected)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_forged_file_is_refused_or_could_be(good, data):
    """With a checksum of its own: each field is looked at."""
    file, images, _, content = good
    forged = one_spoilt(content, data.draw)
    try:
        forged = {**forged, "checksum": State(**forged["state"]).checksum()}
    except Exception:
        assume(False)
    torch.save(forged, file)
    got = outcome(file, images)
    for name in LAYERS if got else ():
        values, numbers, places, seen = got[name]
        assert values.shape == numbers.shape == (3, 4)
        assert seen == 10
        assert ((numbers >= 0) & (numbers < 10)).all()
        assert (places >= 0).all()
        assert (places < (4 if name == "0" else 2)).all()
        assert (values[:, 1:] <= values[:, :-1]).all()
        assert all(len(set(row)) == 4 for row in numbers.tolist())


def test_a_layer_may_have_a_name_that_is_no_text(tmp_path):
    model = nn.Sequential()
    model.add_module("\ud800", nn.Conv2d(1, 3, 3))
    for _ in range(2):
        best = top_patches(model, loader(IMAGES), "\ud800", k=4, resume=tmp_path / "state.pt")
        assert best.seen == 10


@pytest.mark.parametrize("cut", [0, 1, 100, 1000])
def test_half_a_file_is_refused(tmp_path, cut):
    written(tmp_path / "state.pt")
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:cut])
    with pytest.raises(FileError, match="cannot be read"):
        written(tmp_path / "state.pt")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (("state", "batches"), -5, r"state\.batches must be a whole number of at least 0, got -5"),
        (("state", "size"), (1, 6, 7), r"state\.size must be \(1, 6, 6\), as the images are, got \(1, 6, 7\)"),
        (("state", "images"), [1], r"state\.images must be a list of 3, one a batch, got 1"),
        (("state", "tops", "2", 0), torch.zeros(2), r"state\.tops\.2\[0\] must be a tensor of torch\.int64"),
        (("state", "tops", "2", 3), torch.full((4, 3), 4), r"state\.tops\.2\[3\] must be below 4"),
        (("state", "tops", "0", 2), torch.full((4, 3), 10), r"state\.tops\.0\[2\] must be from 0 to 9"),
        (("what", "k"), 0.5, r"what\.k must be a string, a whole number, or a list of strings"),
    ],
)
def test_the_field_is_named(good, field, value, says):
    file, images, _, content = good
    forged = changed(content, field, lambda _: value)
    if field[1] != "images" and field[1] != "batches":
        forged["checksum"] = State(**forged["state"]).checksum()
    torch.save(forged, file)
    with pytest.raises(FileError, match=rf"is damaged: {says}"):
        written(file, images)


def test_a_nested_tensor_is_refused(good):
    file, images, _, content = good
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that they may change
        nested = torch.nested.nested_tensor([torch.zeros(3)])
        torch.save(changed(content, ("state", "tops", "2", 0), lambda _: nested), file)
    named = r"is damaged: state\.tops\.2\[0\] must be a dense tensor of numbers"
    with pytest.raises(FileError, match=rf"{named}|cannot be read \(UnpicklingError\)"):  # torch 2.15 reads none
        written(file, images)


def test_images_are_told_from_others(tmp_path):
    file = tmp_path / "state.pt"
    expected = written(file)
    again = pytest.raises(OptionError, match="belongs to a pass over other images: batch 0 has other values now")
    for other in (10 * IMAGES, IMAGES.flip(0), IMAGES.flip(3), IMAGES.double()):
        with again:
            written(file, loader(other))
    last = IMAGES.clone()
    last[9, 0, 5, 5] += 1
    with pytest.raises(OptionError, match="batch 2 has other values now"):
        written(file, loader(last))
    assert same(written(file), expected)


def test_which_images_are_read_is_told(tmp_path):
    both = torch.cat([IMAGES, IMAGES])
    for first, second in ([range(0, 20, 2), range(1, 20, 2)], [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 15]]):
        file = tmp_path / f"{len(first)}.pt"
        written(file, loader(both, sampler=list(first)))
        with pytest.raises(OptionError, match=r"order='.* to .*, checksum .*', not '.*'"):
            written(file, loader(both, sampler=list(second)))


class Scaled:
    """A data set with a transform, as torchvision's have."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.transform(IMAGES[i])


def test_transforms_are_told_by_what_they_print(tmp_path):
    file, threshold = tmp_path / "state.pt", nn.Threshold(0.5, 0.0)
    written(file, DataLoader(Scaled(threshold), 4))
    written(file, DataLoader(Scaled(nn.Threshold(0.5, 0.0)), 4))
    for data in (Scaled(nn.Threshold(0.25, 0.0)), Subset(Scaled(nn.Threshold(0.25, 0.0)), range(10))):
        with pytest.raises(OptionError, match=r"transforms='Threshold\(.*0\.5.*not 'Threshold\(.*0\.25"):
            written(file, DataLoader(data, 4))
    written(tmp_path / "other.pt", DataLoader(Scaled(lambda image: image), 4))
    written(tmp_path / "other.pt", DataLoader(Scaled(lambda image: image), 4))  # at another address


def test_a_layer_that_writes_into_the_images_changes_no_checksum(tmp_path):
    images = [batch - 0.5 for batch in IMAGES.split(4)]
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 3, 3))
    for _ in range(2):
        top_patches(net, [batch.clone() for batch in images], "1", k=2, resume=tmp_path / "state.pt")
