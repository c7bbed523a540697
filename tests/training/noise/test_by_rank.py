"""Over ranks, each rank's gradient is compared with the mean of all, whatever the layers do with a batch."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def said(request, tmp_path_factory, forks):
    """What each rank said."""
    out = tmp_path_factory.mktemp("noise")
    forks.ranks(request.param, Path(__file__).with_name("noise_ranks.py"), out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("case", ["plain", "view", "parts", "parts, view"])
def test_norms_of_one_rank_and_of_all(said, case):
    for each in said:
        for numbers, expected in each[case]:
            _, small, big, scaled, of_small, of_big, before = numbers
            assert [small, big, of_small, of_big] == pytest.approx(expected, rel=1e-5)
            assert (scaled, before) == (0, 0)
        value, looks, layers, left_out = each[f"{case}: scale"]
        assert [value, looks, layers, left_out] == said[0][f"{case}: scale"]
        assert (looks, layers, left_out) == (3, ["0", "1", "4"], {})


@pytest.mark.parametrize("view", [False, True])
def test_what_was_averaged_before_is_no_ranks_own(said, view):
    for each in said:
        looks, left_out = each[f"averaged twice {view}"]
        assert looks == 0
        assert "the last step" in left_out


def test_batch_normalisation_over_ranks_is_refused(said):
    assert "mixes the examples of a batch: SyncBatchNorm at '0'" in said[0]["sync"]


def test_a_step_of_which_one_rank_knows_nothing_does_not_count(said):
    assert said[0]["one knows nothing"] == [0, {}]
    assert said[1]["one knows nothing"] == [0, {"the last step": "no backward reached its weights"}]
