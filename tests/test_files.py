"""Files are written as a whole or not at all."""

import os

import pytest

from torch_featviz.errors import FileError
from torch_featviz.files import write_whole


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "x.PNG"
    assert write_whole(path, b"1") == path
    write_whole(str(path), b"2")
    assert path.read_bytes() == b"2"
    assert os.listdir(path.parent) == ["x.PNG"]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match=r"cannot write .*file.x.png': its folder is a file; choose a folder you"):
        write_whole(tmp_path / "file" / "x.png", b"")


@pytest.mark.parametrize("name", ["", "a\0.png", "\0/a.png", "\ud800.png"])
def test_a_name_that_no_file_can_have(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=r"cannot write .*; choose a folder"):
        write_whole(name, b"")
    assert os.listdir(tmp_path) == []


def test_a_folder_where_the_file_should_be_leaves_nothing_behind(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(FileError, match="cannot write"):
        write_whole(tmp_path / "x.png", b"")
    assert os.listdir(tmp_path) == ["x.png"]


def test_a_refused_rename_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FileError, match="Permission denied"):
        write_whole(tmp_path / "x.png", b"new")
    assert (tmp_path / "x.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.png"]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x.png", b"new")
    assert not os.listdir(tmp_path)
