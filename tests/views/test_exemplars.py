import pytest
import torch
from torch import nn

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import Scale, rgb, untile
from torch_featviz.survey import top_patches
from torch_featviz.views.exemplars import exemplars, signed_units


def best_of(inputs=3, channels=4, dead=(), k=9, images=20, low=0.0):
    """A layer of 3 × 3 kernels without padding, so that every patch is whole."""
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, channels, 3)
    for channel in dead:
        conv.weight.data[channel], conv.bias.data[channel] = 0, -1
    data = low + (1 - low) * torch.rand(images, inputs, 12, 12)
    return top_patches(nn.Sequential(conv, nn.ReLU()), data.split(8), "1", k=k), data


@pytest.mark.parametrize("inputs", [1, 3])
def test_patches_beside_their_projections(inputs):
    best, _ = best_of(inputs)
    sheet, found = exemplars(best, [2, 0]), best.patches([2, 0])
    assert sheet.cells.shape == (4, 3, 11, 11), "3 × 3 patches of 3 pixels, with gaps of 1"
    for n in range(2):
        patches, projections = (untile(cell, n=9, ncols=3) for cell in sheet.cells[2 * n : 2 * n + 2])
        assert patches.equal(rgb(found.images[n].expand(-1, 3, -1, -1)))
        for i in range(9):
            down = found.projections[n, i]
            expected = rgb(Scale(symmetric=True, vmax=float(down.abs().max()))(down.expand(3, -1, -1)[None]))
            assert projections[i].equal(expected[0]), "signed, each on its own scale, 0 is mid-grey"
    assert sheet.columns == ("patches", "what activates it")
    assert (sheet.group, sheet._ncols) == (2, 4)


def test_patches_are_drawn_as_they_are_and_nothing_runs():
    best, _ = best_of(dead=(1,))
    sheet, patches = exemplars(best, [1, 3]), best.patches([1, 3])
    best.model.forward = lambda _: pytest.fail("the network runs")
    assert exemplars(patches).png() == sheet.png()
    assert exemplars(best, [1, 3]).png() == sheet.png()
    with pytest.raises(OptionError, match=r"patches are of channels \[1, 3\]; choose with best.patches\(ch"):
        exemplars(patches, [1])


def test_zero_is_mid_grey():
    best, _ = best_of()
    best.model[0].weight.data[1, :, 0] = 0  # its upper row
    best = top_patches(best.model, best.source.loader, "1")
    projections = untile(exemplars(best, 1).cells[1], n=9, ncols=3)
    assert (projections[:, :, 0] == 128).all()
    assert (projections[:, :, 1:] != 128).any()


def test_numbers_and_values_stand_above():
    best, _ = best_of()
    first, last = best.values[3, 0], best.values[3, 8]
    assert exemplars(best, 3).labels == ("channel 3", f"value {first:.3g} to {last:.3g}")
    one = best_of(k=1)[0]
    assert exemplars(one, 3).labels == ("channel 3", f"value {first:.3g}")


def test_a_dead_channel_says_so():
    sheet = exemplars(best_of(dead=(1,))[0])
    assert sheet.labels[2:4] == ("channel 1", "")
    assert sheet.inside == ("", "", "dead:\nnever above 0", "", "", "", "", "")
    assert sheet.empty == {3}
    assert sheet.cells[2].unique().numel() == 1
    assert "dead (never above 0): 1 of 4" in sheet.legend.notes
    assert not any("beyond" in note for note in sheet.legend.notes), "no other place is empty"
    assert exemplars(best_of()[0]).inside == ()
    every = exemplars(best_of(dead=(0, 1, 2, 3))[0])
    assert every.empty == {1, 3, 5, 7}
    assert every.numpy().ndim == 3


def test_light_grey_is_where_there_is_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2), nn.ReLU())
    net[0].weight.data.abs_()
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, 0, 0] = images[1, 0, 4, 4] = 1
    best = top_patches(net, [images], "1", k=4)
    assert (best.images >= 0).sum() == 2
    sheet = exemplars(best)
    inside = best.patches(0).inside[0]
    assert not inside.all()
    for cell in sheet.cells:
        pieces = untile(cell, n=2, ncols=2)  # as many as there are images
        for piece, there in zip(pieces, inside[:2], strict=True):
            assert (piece[:, ~there] == 225).all()
    assert "light grey: beyond the image's border, or no patch" in sheet.legend.notes
    raised = exemplars(best, value_range=lambda x: x + 2)  # which would raise what is beyond the border, too
    assert raised.legend.counts.over == int(inside.sum())


def test_sixteen_channels_and_nine_hits_at_most():
    best, _ = best_of(channels=18, k=12)
    sheet = exemplars(best)
    assert len(sheet.cells) == 32
    assert sheet.cells.shape[2:] == (11, 11)
    assert sheet._ncols == 8
    assert "16 of 18 channels" in sheet.legend.notes
    assert len(exemplars(best, range(18)).cells) == 36


@pytest.mark.parametrize(("images", "grid"), [(1, (5, 5)), (3, (5, 17)), (4, (11, 11)), (8, (17, 17))])
def test_with_few_images_the_sheet_has_no_more_places(images, grid):
    torch.manual_seed(0)
    net = nn.Conv2d(1, 2, 5)
    net.bias.data.fill_(10)
    sheet = exemplars(top_patches(net, [torch.rand(images, 1, 8, 8)], ""))
    assert sheet.cells.shape == (4, 3, *grid)
    assert sheet.legend.notes[0].startswith(f"left: the {images} patches of highest activation")


def test_large_patches_are_drawn_smaller_and_many_channels_left_out():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 70, 1))
    net[1].bias.data.fill_(10)
    best = top_patches(net, [torch.rand(1, 1, 800, 600)], "1", k=1)
    sheet = exemplars(best)
    assert "patches of 800 × 600 pixels are drawn at 577 × 432" in sheet.legend.notes
    assert sheet.cells.shape == (32, 3, 577, 432)
    best = top_patches(net, [torch.rand(2, 1, 2, 2)], "1", k=2)
    for drawn in (exemplars(best, range(70)), exemplars(best.patches(range(70)))):
        assert len(drawn.cells) == 128
        assert drawn.labels[-2] == "channel 63"
        assert "64 of 70 channels" in drawn.legend.notes


def test_the_range_of_the_images_is_declared():
    best, _ = best_of(low=-1.0)
    signed, found = exemplars(best, 0, value_range="signed"), best.patches(0)
    patches = untile(signed.cells[0], n=9, ncols=3)
    assert patches.equal(rgb((found.images[0] + 1) / 2))
    assert not signed.legend.marks()
    assert exemplars(best, 0, value_range=lambda images: (images + 1) / 2).png() == signed.png()
    below = int((found.images[0] < 0).any(1).sum())
    assert exemplars(best, 0).legend.counts.under == below
    with pytest.raises(OptionError, match=r"one of unit, signed, byte, imagenet, or a function such as .*, got 'int'"):
        exemplars(best, 0, value_range="int")


def test_the_title_names_the_layer_and_can_be_given():
    best, _ = best_of()
    what = "1: top-activating patches, and what in them activates the channel (guided backpropagation); 20 images"
    assert exemplars(best).title == what
    assert exemplars(best, title="Mine").title == "Mine"


def test_what_cannot_be_drawn():
    best = best_of(2)[0]
    for result in (best, best.patches(0)):
        with pytest.raises(ShapeError, match="must have 1 or 3 channels to be drawn, got 2"):
            exemplars(result)
    with pytest.raises(OptionError, match=r"channels must be one or more numbers from 0 to 3, got \[4\]"):
        exemplars(best_of()[0], [4])


def test_the_same_bytes_each_time():
    best, _ = best_of(dead=(1,))
    assert exemplars(best).png() == exemplars(best).png()
    assert exemplars(best).figure().axes


def notes_of(sheet, word):
    return [note for note in sheet.legend.notes if word in note]


def striding(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), *between, nn.Conv2d(6, 4, 3))


def test_the_method_is_named_and_how_far_it_depends_on_the_patch():
    best = top_patches(striding(), torch.rand(20, 3, 15, 15).split(8), "2", k=5)
    sheet, patches = exemplars(best), best.patches(range(4))
    low, mean, high = (f"{float(x):.2f}" for x in (patches.cosine.min(), patches.cosine.mean(), patches.cosine.max()))
    assert "what in them activates the channel (guided backpropagation); 20 images" in sheet.title
    assert notes_of(sheet, "that unit projected to the pixels by guided backpropagation (Springenberg et al. 2015)")
    assert notes_of(
        sheet, f"cosine between projections of a channel: mean {mean} ({low} to {high}); 1: they ignore the patch"
    )
    assert notes_of(sheet, "without max pools a deconvnet would not depend on the patch")
    asked = exemplars(best, projection="deconvnet")
    assert "what in them activates the channel (deconvnet); 20 images" in asked.title
    assert notes_of(asked, "that unit projected to the pixels by the deconvnet (Zeiler & Fergus 2013)")
    assert notes_of(asked, "cosine between projections of a channel: mean 1.00 (1.00 to 1.00)")
    assert notes_of(asked, "what the unit detects in any patch, not what is in this one")
    assert exemplars(best, title="Mine", projection="deconvnet").legend.notes == asked.legend.notes


def test_with_max_pools_it_is_the_deconvnet():
    best = top_patches(striding(nn.MaxPool2d(2, 1)), torch.rand(20, 3, 15, 15).split(8), "3", k=5)
    sheet = exemplars(best)
    assert "what in them activates the channel (deconvnet); 20 images" in sheet.title
    assert notes_of(sheet, "cosine between projections of a channel: mean ")
    assert not notes_of(sheet, "without max pools")
    assert (
        "what in them activates the channel (guided backpropagation)"
        in exemplars(best, projection="guided_backprop").title
    )


def test_what_is_not_known_or_not_there_is_said():
    best = top_patches(striding(), [torch.rand(1, 3, 15, 15)], "2", k=1)
    assert notes_of(exemplars(best), "one patch per channel cannot tell")
    dead = exemplars(best_of(dead=(0, 1, 2, 3))[0])
    assert dead.title == "1: top-activating patches, and what in them activates the channel; 20 images"
    assert not notes_of(dead, "right:")
    assert not notes_of(dead, "cosine")


def test_projections_of_zeros_are_counted():
    """At its ceiling a ReLU6 has no gradient."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU6())
    with torch.no_grad():
        net[0].weight.fill_(0.1)
        net[0].bias.copy_(torch.tensor([9.0, 0.0]))
    best = top_patches(net, [torch.rand(4, 3, 9, 9)], "1", k=3)
    assert notes_of(exemplars(best), "all mid-grey (nothing reaches the pixels): 3 of 6")
    assert not notes_of(exemplars(best, 1), "all mid-grey")


def test_patches_keep_their_projection():
    best = top_patches(striding(), [torch.rand(8, 3, 15, 15)], "2", k=3)
    patches = best.patches(0)
    assert exemplars(patches, projection="guided_backprop").png() == exemplars(patches).png()
    with pytest.raises(OptionError, match=r"projected by 'guided_backprop' already; .*, projection='deconvnet'\)"):
        exemplars(patches, projection="deconvnet")


def test_single_large_pixels_do_not_make_the_others_grey():
    projections = torch.linspace(-1, 1, 2400).view(1, 3, 20, 40)
    projections[0, 0, 0, :2] = torch.tensor([50.0, torch.inf])
    units = signed_units(projections)
    inside = projections.abs() <= 1
    expected = 0.5 + projections[inside].double() / 2
    torch.testing.assert_close(units[inside].double(), expected, rtol=0, atol=2e-3)
    assert units[0, 0, 0, 0] == 1
    assert units[0, 0, 0, 1] == torch.inf
    assert (signed_units(0 * torch.ones(1, 3, 4, 4)) == 0.5).all()
    small, large = (top_patches(nn.Conv2d(1, 1, side), [torch.rand(3, 1, 40, 40)], "", k=2) for side in (31, 32))
    assert not notes_of(exemplars(small), "0.1 %")
    assert notes_of(exemplars(large), "each has its own scale, which clips 0.1 %")
