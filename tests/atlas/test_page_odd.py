"""Names that want to be markup, and networks and images at the ends of what there is."""

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import torch_featviz as fv
from torch_featviz.atlas import atlas

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028\u202e\n" + "ü" * 300


class Hostile(nn.Module):
    """Layers with names that are markup."""

    def __init__(self):
        super().__init__()
        self.add_module("<b>&\"'\u202e" + "x" * 300, nn.Conv2d(3, 4, 3))
        self.add_module("second\n<i>", nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)))

    def forward(self, x):
        for each in self.children():
            x = each(x)
        return x


def save(page, folder):
    return page.save(folder / "odd.html")


def test_names_stay_text(look, tmp_path):
    card = fv.ModelCard(HOSTILE, Hostile, (3, 8, 8), classes=(HOSTILE, "<u>"))
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8)
    file = save(atlas(Hostile(), images, card=card, names=[HOSTILE, "<s>\u0000"], methods=["gradcam"]), tmp_path)
    page = look(file=file)
    for width in (1400, 380):
        page.set_viewport_size({"width": width, "height": 900})
        for state in ("", "map=1&compare=1", "view=why"):
            page.evaluate("state => { location.hash = state }", state)
            page.wait_for_timeout(150)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("b:not(#findings b, #curves b), i, u, s, img[src='x']").count() == 0
    page.evaluate("location.hash = ''")
    name = page.locator("#list a").nth(1).locator("bdi")
    assert name.text_content() == name.get_attribute("title") == "<b>&\"'\u202e" + "x" * 300
    assert page.locator("#pictures figcaption bdi").get_attribute("title") == HOSTILE


def test_a_layer_with_a_hostile_name_has_a_link(look, tmp_path):
    file = save(atlas(Hostile(), torch.rand(1, 3, 8, 8)), tmp_path)
    page = look(file=file)
    page.locator("#list a").last.click()
    page.wait_for_timeout(150)
    name = page.locator("#layer-name").text_content()
    again = look(page.evaluate("location.hash.slice(1)"), file)
    assert again.locator("#layer-name").text_content() == name != "input"


class Wrong(nn.Module):
    """Returns a constant, NaN and infinities."""

    def forward(self, x):
        flat = torch.zeros_like(x[:, :1])
        odd = torch.stack([flat[:, 0], flat[:, 0] + torch.nan, flat[:, 0] + torch.inf, flat[:, 0] - torch.inf], dim=1)
        return torch.relu(odd)


class Last(nn.Module):
    """Its last layer gets what is not finite."""

    def __init__(self):
        super().__init__()
        self.wrong, self.pool = Wrong(), nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.wrong(x))


def test_what_is_not_finite_has_its_own_colour_and_is_counted(look, tmp_path):
    page = look("layer=pool&sort=channel", save(atlas(Last(), torch.rand(1, 3, 8, 8)), tmp_path))
    assert "16 NaN" in page.inner_text("#legend")
    assert "16 ∞" in page.inner_text("#legend")
    page.locator('#maps [data-place="1"] canvas').hover()
    assert page.inner_text("#value") == "NaN"
    page.locator('#maps [data-place="2"] canvas').hover()
    assert page.inner_text("#value") == "∞"
    page.locator('#maps [data-place="1"]').click()
    assert "no finite value" in page.inner_text("#histograms")
    page.locator("[data-state=scale]").select_option("own")
    page.wait_for_timeout(150)


@pytest.mark.parametrize(
    ("net", "shape", "layers"),
    [
        (nn.Conv2d(1, 2, 1), (1, 1, 1, 1), 2),
        (nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(300)]), (1, 1, 6, 6), 301),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2048)), (1, 3, 2, 2), 2),
        (nn.Sequential(nn.Conv2d(5, 512, 3, padding=1)), (3, 5, 14, 14), 2),
    ],
    ids=["one pixel", "300 layers", "2048 units", "512 maps"],
)
def test_small_long_and_wide(look, tmp_path, net, shape, layers):
    page = look(file=save(atlas(net, torch.rand(shape)), tmp_path))
    assert page.locator("#list li").count() == layers
    assert page.locator("#maps button").count() >= 1
    page.keyboard.press("ArrowRight")
    assert page.locator("#value").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#large-title").is_visible()
    page.keyboard.press("Escape")


def test_all_of_many_units_are_shown_on_demand(look, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2048))
    page = look(file=save(atlas(net, torch.rand(1, 3, 2, 2)), tmp_path))
    assert page.locator("#maps .unit").count() == 200
    page.get_by_text("Show all 2048").click()
    assert page.locator("#maps .unit").count() == 2048


def test_tokens_are_one_matrix(look, tmp_path, close):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Flatten(2), nn.Linear(4, 9))
    images = torch.rand(1, 3, 8, 8)
    values = net(images)[0].detach()
    page = look("layer=2", save(atlas(net, images), tmp_path))
    box = page.locator("#maps canvas").bounding_box()
    page.mouse.move(box["x"] + 2.5 * box["width"] / 9, box["y"] + 4.5 * box["height"] / 6)
    assert close(page.inner_text("#value"), float(values[4, 2]))
    page.locator("#maps canvas").focus()
    page.keyboard.press("ArrowRight")
    assert "token" in page.inner_text("#place")


def test_tokens_of_a_vision_transformer_are_maps(look, tmp_path, close):
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    net = VisionTransformer(num_classes=3, **sizes).eval()
    values = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: values.update({name: out}))
    images = torch.rand(1, 3, 8, 8)
    file = save(atlas(net, images), tmp_path)
    with torch.no_grad():
        net(images)
    blocks = [f"encoder.layers.encoder_layer_{n}.{part}" for n in (0, 1) for part in ("ln_1", "mlp.0", "mlp.3")]
    for name in blocks:
        page = look(f"layer={name}", file)
        assert page.inner_text("#maps-note").startswith("Tokens as 2×2 places; 1 class token: not drawn.")
        assert page.locator("#maps .map").count() == values[name].shape[-1]
        cell = page.locator('#maps .map[data-place="1"] canvas')
        cell.scroll_into_view_if_needed()
        box = cell.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 3 * box["height"] / 4)
        assert page.inner_text("#place").startswith("channel 1, row 1, column 0 of")
        assert close(page.inner_text("#value"), float(values[name][0, 3, 1]))
        page.context.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Layers of more maps than are drawn at once, one of them in groups, another with very many filters."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 80, 3, padding=1, groups=2), nn.Conv2d(80, 8, 3))
    many = (nn.Conv2d(8, 2, 3), nn.Conv2d(2, 1300, 3, stride=9), nn.Flatten(), nn.Linear(1300, 10))
    return save(atlas(nn.Sequential(*layers, *many), torch.rand(2, 3, 14, 14)), tmp_path_factory.mktemp("large"))


def test_layers_chosen_faster_than_they_are_drawn(look, until, large):
    page = look("layer=0", large)
    for layer, maps in (("1", 96), ("2", 80), ("0", 96)):
        page.evaluate(
            """async (layer) => {
                for (const name of ["0", "1", layer]) {
                    document.querySelector(`#list a[data-layer="${name}"]`).click();
                    for (let i = 0; i < 40; i++) await null;
                }
            }""",
            layer,
        )
        until(page, f"document.querySelectorAll('#maps button.map').length === {maps}")
        page.wait_for_timeout(100)
        assert page.locator("#maps button.map").count() == maps
        drawn = page.evaluate(
            "new Set([...document.querySelectorAll('#maps button.map')].map(e => e.dataset.place)).size"
        )
        assert drawn == maps


def test_a_map_of_the_layer_before_is_not_opened_in_the_next(look, large):
    page = look("layer=0", large)
    page.evaluate(
        """() => {
            document.querySelector('#list a[data-layer="3"]').click();
            document.querySelector("#maps button.map").click();
        }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("location.hash") == "#layer=3"
    assert page.locator("#large").is_hidden()


def test_a_map_that_there_is_not(look, large):
    page = look("layer=2&map=999", large)
    assert page.locator("#large").is_hidden()
    page.keyboard.press("ArrowRight")
    assert page.locator("#value").is_visible()


def test_channels_of_a_group_have_their_own_numbers(look, large):
    page = look("layer=2&map=60", large)
    sheet = page.locator("#filter-of .surround canvas").first
    sheet.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    sheet.hover(position={"x": 3, "y": 3})
    assert "filter 60, channel 48, row 0, column 0" in page.inner_text("#place")
    assert "one for each input channel of its group" in page.inner_text("#filter-of")


def test_very_many_filters_are_drawn(look, until, large):
    page = look("layer=5", large)
    sheet = page.locator("#kernels .surround canvas").first
    sheet.scroll_into_view_if_needed()
    height = sheet.evaluate("sheet => sheet.height")
    assert 3 * 1300 <= height < 2**15
    pixels = f"document.querySelector('#kernels .surround canvas').getContext('2d').getImageData(0, {height - 9}, 9, 9)"
    until(page, f"new Set({pixels}.data).size > 10")


def test_a_printer_does_not_wait_for_kernels(look, large):
    page = look("layer=2", large)
    page.wait_for_timeout(400)
    height = """() => {
        dispatchEvent(new Event("beforeprint"));
        const sheet = document.querySelector("#kernels .surround canvas");
        return new Set(sheet.getContext("2d").getImageData(0, 0, 60, 60).data).size;
    }"""
    assert page.evaluate(height) > 10


def test_bars_of_two_images_are_read_each(look, large):
    page = look("layer=7&compare=1", large)
    unit = page.locator("#maps .unit").first
    seen = []
    for n in (0, 1):
        unit.locator(".track").nth(n).hover()
        seen.append(page.inner_text("#reading"))
    assert [f"in image {n + 1} of 2" in seen[n] for n in (0, 1)] == [True, True]


def test_a_heatmap_of_zeros_says_that_it_is_empty(look, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(net[4].weight)
    page = look("view=why", save(atlas(net, torch.rand(1, 3, 8, 8), methods=["saliency"]), tmp_path))
    assert "nothing in the image speaks for or against" in page.inner_text("#why-says")
    assert "All values are 0" in page.inner_text("#why-legend")


def test_the_chosen_layer_of_a_long_list_is_in_sight(look, tmp_path):
    net = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(300)])
    file = save(atlas(net, torch.rand(1, 1, 6, 6)), tmp_path)
    for width in (1400, 320):
        page = look("layer=250", file, width=width)
        page.wait_for_timeout(300)
        listed, row = page.locator("#list").bounding_box(), page.locator('#list a[data-layer="250"]').bounding_box()
        assert listed["y"] <= row["y"] <= listed["y"] + listed["height"] - row["height"]


def test_a_frame_of_a_notebook(look, browser, made, close):
    page = browser.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_content(made.page._repr_html_())
    frame = page.frames[1]
    frame.locator('#list a[data-layer="3"]').click()
    frame.locator("#maps button").nth(11).wait_for()
    assert frame.locator("#layer-name").inner_text() == "3"
    assert wrong == []
    page.close()


def test_pixels_beyond_the_range_are_counted_beside_the_image(look, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    images = torch.rand(2, 3, 8, 8)
    images[0, :, 0, :3], images[0, 1, 5, 5] = 2.0, -1.0
    made = atlas(net, images, value_range="unit", names=["odd", "fine"], loader=[images])
    page = look("", save(made, tmp_path))
    assert page.locator("#pictures .clipped").all_inner_texts() == [
        "3 px above the images' range",
        "1 px below the images' range",
    ]
    swatch = page.locator("#pictures .swatch").first
    assert swatch.evaluate("each => getComputedStyle(each).backgroundColor") == "rgb(0, 0, 255)"
    assert (
        page.locator("#range")
        .inner_text()
        .startswith("images have values from −1 to 2, but value_range='unit' is 0 to 1")
    )
    page.get_by_role("radio", name="fine").check()
    assert page.locator("#pictures .clipped").count() == 0
    channel = next(key for key, unit in made.data["layers"][1]["units"]["channels"].items() if unit["clipped"])
    page = look(f"layer=0&map={channel}", tmp_path / "odd.html")
    assert "the images' range" in page.locator("#exemplars .clipped").first.inner_text()
