"""The attention of each token on the page: what is kept within the room there is, and what a browser shows of it."""

import re

import pytest
import timm
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from torch_featviz.atlas import atlas
from torch_featviz.atlas.attention import _fitting, put_attention
from torch_featviz.atlas.pack import Blobs
from torch_featviz.inspect.walk import walk
from torch_featviz.model.inputs import Inputs
from torch_featviz.picture.color import lut

LAYER = "encoder.layers.encoder_layer_{}.self_attention"
NAMES = ("<b>first</b>.png", "second.png")


def transformer(layers=2):
    torch.manual_seed(0)
    net = VisionTransformer(32, 8, layers, 2, 8, 8, num_classes=3).eval()
    for name, weight in net.named_parameters():
        if "in_proj_weight" in name:
            weight.data *= 8
    return net


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page, and the weights of its attention by layer, from the modules themselves."""
    net, images = transformer(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = {}

    def keep(name):
        def hook(module, given):
            weights[name] = nn.MultiheadAttention.forward(module, *given[:3], average_attn_weights=False)[1]

        return hook

    hooks = [
        module.register_forward_pre_hook(keep(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    made = atlas(net, images, names=NAMES, methods=["saliency"])
    return made.save(tmp_path_factory.mktemp("attention") / "page.html"), weights, made


def put(net, images, letters):
    inputs, blobs = Inputs(images), Blobs()
    found, told = put_attention(blobs, net, inputs, walk(net, inputs).layers, letters)
    return found, told, blobs


def test_what_the_page_is_given(page):
    layers = {layer["name"]: layer["attention"] for layer in page[2].data["layers"] if layer["attention"]}
    assert list(layers) == [LAYER.format(i) for i in range(2)]
    for name, told in layers.items():
        assert told["of"] == name
        assert (told["heads"], told["tokens"], told["rows"], told["columns"]) == (2, 17, 4, 4)
        assert (told["before"], told["after"], len(told["blobs"])) == (["class token"], 0, 2)


def test_it_takes_no_more_room_than_it_may():
    net, images = transformer(6), torch.rand(2, 3, 32, 32)
    whole, told, blobs = put(net, images, 1e6)
    assert (len(whole), told) == (6, [])
    room = blobs.letters() / 2
    half, told, blobs = put(net, images, room)
    assert 1 <= len(half) < 6
    assert LAYER.format(5) in half
    assert blobs.letters() <= room
    assert re.match(rf"Attention of each token: of 6 layers {len(half)} are on the page; give more meg", told[0])
    none, told, blobs = put(net, images, 100)
    assert (none, blobs.texts) == ({}, [])
    assert re.match(r"Attention of each token: one layer takes 0\.0 MB", told[0])


def test_kept_layers_are_spread():
    names = list("abcdef")
    costs = dict.fromkeys(names, 10.0)
    assert [_fitting(names, costs, room) for room in (60, 30, 25, 10, 9)] == [names, list("bdf"), list("cf"), ["f"], []]


def test_networks_without_attention_say_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    assert put(net, torch.rand(1, 3, 8, 8), 1e6)[:2] == ({}, [])


class Unplaced(nn.Module):
    def forward(self, x):
        x = x.flatten(2).sort(-1).values[:, None, :, :5].mT
        return nn.functional.scaled_dot_product_attention(x, x, x).mean((1, 2))


def test_attention_of_tokens_without_a_place_is_told():
    found, told, _ = put(Unplaced(), torch.rand(1, 3, 8, 8), 1e6)
    assert found == {}
    assert told == [
        "Attention: the attention of the model cannot be shown: it is unknown where on the image the 5 keys are that "
        "it attends to."
    ]


def cait():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.create_model("cait_xxs24_224", **options).eval()


def test_what_is_left_out_is_told():
    found, told, _ = put(cait(), torch.rand(1, 3, 32, 32), 1e6)
    assert found == {}
    assert told == [
        "Attention: without blocks.0.attn, blocks.1.attn: its heads are mixed after the softmax (talking heads), "
        "before it meets values.",
        "Attention: without blocks_token_only.0.attn, blocks_token_only.1.attn: its queries are not the tokens that "
        "it attends to.",
    ]
    page = atlas(cait(), torch.rand(1, 3, 32, 32), methods=["saliency"])
    assert set(told) <= set(page.data["left_out"])


def test_attention_of_windows_is_that_of_the_image():
    net = SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=2).eval()
    found, told, _ = put(net, torch.rand(1, 3, 32, 32), 1e6)
    assert told == []
    assert [(each["rows"], each["tokens"], each["before"]) for each in found.values()] == [(8, 64, []), (4, 16, [])]


# In the browser.


def captions(shown):
    return [figure.inner_text().split("\n") for figure in shown.locator("#attention-heads figure").all()]


def check(shown, rows, close):
    """Captions and pixels of each head are those of these weights, `heads 17`."""
    for head, (said, row) in enumerate(zip(captions(shown), rows, strict=True)):
        assert said[0] == f"head {head}"
        assert close(said[1].removeprefix("up to "), row[1:].max())
        assert float(said[2].split(" ")[0].replace("<", "0")) == pytest.approx(100 * float(row[0]), abs=0.2)
        canvas = shown.locator(f'#attention-heads [data-head="{head}"] canvas')
        at = int(row[1:].argmax())
        pixel = canvas.evaluate("(c, [y, x]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]", divmod(at, 4))
        assert pixel[:3] == lut("viridis")[-1].tolist()


def test_the_class_token_comes_first_and_a_place_is_pointed_at(look, page, expect, close):
    file, weights, _ = page
    shown = look(f"layer={LAYER.format(1)}", file)
    expect(shown.locator("#attention-title")).to_have_text("What the class token attends to")
    check(shown, weights[LAYER.format(1)][0][:, 0], close)
    frame = shown.locator("#attention-asks .frame")
    box = frame.bounding_box()
    shown.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4)  # row 1, column 2
    expect(shown.locator("#attention-title")).to_have_text("What place 1, 2 attends to")
    check(shown, weights[LAYER.format(1)][0][:, 1 + 6], close)
    mark = frame.locator(".box").bounding_box()
    assert mark["x"] - box["x"] == pytest.approx(box["width"] / 2)
    assert mark["y"] - box["y"] == pytest.approx(box["height"] / 4)
    shown.get_by_role("button", name="class token").click()
    check(shown, weights[LAYER.format(1)][0][:, 0], close)
    assert not frame.locator(".box").is_visible()


def test_keys_go_from_place_to_place_and_layers_and_images_change(look, page, expect, close):
    file, weights, _ = page
    shown = look(f"layer={LAYER.format(0)}", file)
    expect(shown.locator("#attention-title")).to_have_text("What the class token attends to")
    shown.locator("#attention-asks .frame").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        shown.keyboard.press(key)
    expect(shown.locator("#attention-title")).to_have_text("What place 1, 2 attends to")
    expect(shown.locator("#say")).to_have_text("place 1, 2")
    check(shown, weights[LAYER.format(0)][0][:, 7], close)
    shown.get_by_role("radio", name="second.png").check()
    expect(shown.locator("#attention-asks .frame")).to_have_attribute(
        "aria-label", re.compile(r"^Places of second\.png")
    )
    expect(shown.locator("#attention-title")).to_have_text("What place 1, 2 attends to")
    check(shown, weights[LAYER.format(0)][1][:, 7], close)
    shown.goto(f"{shown.url.partition('#')[0]}#layer=conv_proj")
    expect(shown.locator("#attention")).to_be_hidden()


def test_it_can_be_read_aloud_and_names_are_no_markup(look, page, axe, expect):
    shown = look(f"layer={LAYER.format(0)}", page[0])
    expect(shown.locator("#attention-title")).to_have_text("What the class token attends to")
    frame = shown.locator("#attention-asks .frame")
    assert frame.get_attribute("aria-label") == f"Places of {NAMES[0]}; arrow keys go from place to place"
    assert shown.locator("#attention b").count() == 0
    found = axe.run(shown, options={"rules": {"target-size": {"enabled": True}}}).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
    assert (
        shown.locator("#attention-heads canvas")
        .first.get_attribute("aria-label")
        .startswith("Attention of class token")
    )
