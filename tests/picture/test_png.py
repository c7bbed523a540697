"""PNG bytes read back by Pillow; files whole or not at all."""

import io
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image

from torch_featviz.errors import FileError, OptionError, ShapeError
from torch_featviz.picture import png

images = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda s: (*s, 3)))


@given(images)
def test_pillow_reads_back_every_byte(pixels):
    with Image.open(io.BytesIO(png.encode(pixels))) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


@given(images)
def test_repeated_rows_are_read_back_too(pixels):
    big = pixels.repeat(3, 0)
    with Image.open(io.BytesIO(png.encode(big))) as image:
        np.testing.assert_array_equal(np.asarray(image), big)


def test_views_of_memory_are_encoded_as_they_look():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)[::2, ::-1]
    with Image.open(io.BytesIO(png.encode(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(ShapeError, match="pixels must be 'H W 3' uint8, got"):
        png.encode(bad)


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "x.PNG"
    assert png.write(path, b"1") == path
    png.write(str(path), b"2")
    assert path.read_bytes() == b"2"
    assert os.listdir(path.parent) == ["x.PNG"]


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.png.gz"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(OptionError, match=r"saved as PNG, got .*; let the name end in '.png'"):
        png.write(tmp_path / name, b"")
    assert not os.listdir(tmp_path)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match=r"cannot write .*file.x.png.*; choose a folder you may write to"):
        png.write(tmp_path / "file" / "x.png", b"")


def test_a_folder_where_the_file_should_be_leaves_nothing_behind(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(FileError, match="cannot write"):
        png.write(tmp_path / "x.png", b"")
    assert os.listdir(tmp_path) == ["x.png"]


def test_a_refused_rename_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FileError, match="Permission denied"):
        png.write(tmp_path / "x.png", b"new")
    assert (tmp_path / "x.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.png"]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        png.write(tmp_path / "x.png", b"new")
    assert not os.listdir(tmp_path)
