"""What `benchmarks/attack` does, in short: a few kills, full disks, a folder that goes; and that losses are seen."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.attack import kills
from torch_featviz import demo, files
from torch_featviz.errors import FileError
from torch_featviz.survey import resume

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")


def test_a_killed_resume_file_is_whole(forks):
    ran = forks.run("from benchmarks.attack.kills import kills; print(kills('resume', 4))")
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


@pytest.mark.parametrize("name", ["run", "page", "resume"])
def test_a_disk_that_is_full_loses_nothing(name):
    assert kills.full(name, 1) == []


@pytest.mark.parametrize("name", ["run", "resume"])
def test_a_folder_that_goes(name):
    assert kills.removed(name) == []


def test_a_file_that_is_written_in_place_is_seen(monkeypatch):
    def in_place(path, data):
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)
        except OSError as error:
            raise FileError(str(error)) from error

    monkeypatch.setattr(resume, "write_whole", in_place)
    (loss,) = kills.full("resume", 3)
    assert "on a full disk" in loss
    assert files.write_whole is not in_place


def test_what_is_reported_and_missing_is_seen(tmp_path):
    with pytest.raises(AssertionError):
        kills.read_resume(tmp_path, [json.loads("3")])
    with pytest.raises(AssertionError):
        kills.read_page(tmp_path, [3])
    with pytest.raises(AssertionError):
        kills.read_run(tmp_path, [[3, 2]])


def test_a_demo_that_is_cut_short_keeps_no_weights_beside_half_a_training(tmp_path, monkeypatch):
    kept = tmp_path / "seed0" / demo.STATE
    kept.parent.mkdir()
    kept.write_bytes(b"of an earlier training")

    def cut_short(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_xo", cut_short)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(tmp_path, retrain=True)
    assert not kept.exists()
