"""Default sheets of small and of real networks use most of their colours: read back from the pixels."""

import pytest
import torch

import torch_featviz as fv
from benchmarks import contrast


@pytest.mark.parametrize("name", ["xo_deep", "squeezenet1_1", "resnet18"])
def test_the_median_map_spans_most_of_its_colours_and_little_is_clipped(name):
    pytest.importorskip("torchvision")
    _, net, image, layers = next(each for each in contrast.networks(real=False) if each[0] == name)
    for what, sheet, _ in contrast.sheets(net, image, layers[:2]):
        found = contrast.used(sheet)
        assert found.good, (what, found.median, found.clipped, found.told)


def test_a_sheet_on_one_scale_with_an_outlier_is_seen_to_be_pale():
    maps = torch.rand(6, 20, 20, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 0] = 61.6
    assert contrast.used(fv.feature_maps(maps)).good
    pale = contrast.used(fv.feature_maps(maps, scale=fv.Scale(symmetric=True)))
    assert pale.median < 0.02
    assert not pale.good


def test_a_sheet_that_clips_too_much_is_not_good():
    sheet = fv.feature_maps(torch.rand(4, 20, 20), scale=fv.Scale(vmin=0, vmax=0.9))
    found = contrast.used(sheet)
    assert 0.05 < found.clipped < 0.15
    assert found.told == [f"clipped {100 * found.clipped:.2g} %"]
    assert not found.good
