"""Heatmaps of boxes: the gradient is that of the head's own logit, on the image's own pixels."""

from collections import OrderedDict
from contextlib import contextmanager
from weakref import WeakSet

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

import torch_featviz as fv
from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.explain import attribute
from torch_featviz.explain.explained import held
from torch_featviz.model.inputs import Inputs


class Pyramid(nn.Module):
    """Maps of 1/4 and 1/8 of the image; with `more`, a third that is pooled from the second."""

    def __init__(self, more=False):
        super().__init__()
        self.out_channels = 32
        self.early, self.late = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, 2, 1)
        self.fpn, self.more = FeaturePyramidNetwork([16, 16], 32), more

    def forward(self, x):
        one = self.early(x).relu()
        maps = self.fpn(OrderedDict([("0", one), ("1", self.late(one).relu())]))
        if self.more:
            maps["2"] = F.max_pool2d(maps["1"], 2)
        return maps


RESIZED = {"min_size": 48, "max_size": 64}  # images of 60 × 45 become 64 × 48, and a batch of 64 × 64
LEVELS = "backbone.fpn.layer_blocks.0", "backbone.fpn.layer_blocks.1"


def fcos():
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    net = FCOS(
        Pyramid(), 4, anchor_generator=anchors, head=FCOSHead(32, 1, 4, 1), score_thresh=0, nms_thresh=0.3, **RESIZED
    )
    return net, lambda heads: heads["head"]["cls_logits"][0]


def retina():
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    net = RetinaNet(Pyramid(more=True), 4, anchor_generator=anchors, score_thresh=0, nms_thresh=0.3, **RESIZED)
    return net, lambda heads: heads["head"]["cls_logits"][0]


def faster():
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    pool = MultiScaleRoIAlign(["0", "1"], 3, 2)
    net = FasterRCNN(
        Pyramid(), 4, rpn_anchor_generator=anchors, box_roi_pool=pool, box_score_thresh=0, box_nms_thresh=0.3, **RESIZED
    )
    return net, lambda heads: heads["roi_heads.box_predictor"][0]


def ssd():
    anchors = DefaultBoxGenerator([[2]] * 2, scales=[0.2, 0.5, 0.9])
    head = SSDHead([32, 32], anchors.num_anchors_per_location(), 4)
    net = SSD(Pyramid(), anchors, (64, 64), 4, head=head, score_thresh=0, nms_thresh=0.3)
    return net, lambda heads: heads["head"]["cls_logits"][0]


BUILT = {"fcos": fcos, "retina": retina, "faster": faster, "ssd": ssd}


def made(build):
    """With weights so large that scores differ, and so small that none is 1."""
    torch.manual_seed(0)
    net, logits = build()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
    return net.eval(), logits


@contextmanager
def heard(net, names):
    """What these layers return."""
    kept = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: kept.update({name: output}))
        for name in names
    ]
    yield kept
    for hook in hooks:
        hook.remove()


def on_image(heat, kept, image):
    """A map of the padded batch, on the image's own pixels."""
    batch, (high, wide) = kept["transform"][0].tensors.shape[2:], kept["transform"][0].image_sizes[0]
    heat = F.interpolate(heat, batch, mode="bilinear")[:, :, :high, :wide]
    return F.interpolate(heat, image.shape[1:], mode="bilinear")[0, 0]


def by_hand(net, logits, image, top):
    """For each of the best boxes: the class, the score, and LayerCAM from the head's own logit, on the image."""
    names = ["transform", "backbone", *(["roi_heads.box_predictor"] if hasattr(net, "roi_heads") else ["head"])]
    with heard(net, names) as kept:
        (found,) = net(image[None].clone().requires_grad_())
        raw = logits(kept)
        own = raw.softmax(1) if isinstance(net, (FasterRCNN, SSD)) else raw.sigmoid()
        if isinstance(net, FCOS):
            own = (own * kept["head"]["bbox_ctrness"][0].sigmoid()).sqrt()
    for score, label in list(zip(found["scores"].tolist(), found["labels"].tolist(), strict=True))[:top]:
        near = (own[:, label] - score).abs()
        assert int((near < 1e-7).sum()) == 1
        row = int(near.argmin())
        heats = []
        maps = list(kept["backbone"].values())
        for values, gradient in zip(
            maps,
            torch.autograd.grad(raw[row, label], maps, retain_graph=True, allow_unused=True, materialize_grads=True),
            strict=True,
        ):
            if gradient.any():
                heats.append((gradient.clamp(min=0) * values).sum(1, keepdim=True).detach())
        heats = heats[-1:]  # what a level is pooled from is behind it
        yield label, score, on_image(heats[0], kept, image)


@pytest.mark.parametrize("size", [(60, 45), (48, 64)])
@pytest.mark.parametrize("build", BUILT)
def test_a_heatmap_is_layercam_of_the_heads_own_logit(build, size):
    net, logits = made(BUILT[build])
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    why = attribute(net, image, top=6)
    assert why.method == "layercam"
    assert len(why.boxes) == 6
    expected = list(by_hand(net, logits, image, 6))
    assert why.classes.tolist() == [label for label, _, _ in expected]
    torch.testing.assert_close(why.boxes.scores, torch.tensor([score for _, score, _ in expected]))
    for heatmap, (_, _, heat) in zip(why.heatmaps, expected, strict=True):
        torch.testing.assert_close(heatmap, heat, rtol=1e-3, atol=1e-5 * float(heat.abs().max()))
    assert why.heatmaps.shape == (6, *size)
    assert why.attributions.shape == (6, 1, *size)
    for layer in why.layers:
        assert layer in LEVELS or "max_pool2d" in layer


def detector(build):
    torch.manual_seed(0)
    return made(BUILT[build])[0] if build in BUILT else {"yolo": Yolo, "detr": detr}[build]()


@pytest.mark.parametrize("method", ["layercam", "gradcam", "input_x_gradient"])
@pytest.mark.parametrize("build", [*BUILT, "yolo", "detr"])
def test_images_that_run_together_have_the_heatmaps_that_each_has_alone(build, method):
    """The third is dark, and so has boxes of other scores, or none."""
    net, given = detector(build), {"method": method, "top": 4, "min_score": 0.01}
    images = torch.rand(4, 3, 60, 45, generator=torch.Generator().manual_seed(2))
    images[2] /= 8
    alone = [attribute(detector(build), image[None], **given) for image in images]
    for _ in range(2):  # of a detector that was not seen before, and of one that was
        with count_forwards(net) as forwards:
            together = attribute(net, images, **given)
        assert together.boxes.images.tolist() == [n for n, one in enumerate(alone) for _ in range(len(one.boxes))]
        assert min(len(alone[number].boxes) for number in (0, 1, 3)) > 0
        for name in ("xyxy", "classes", "scores"):
            own = torch.cat([getattr(one.boxes, name) for one in alone])
            torch.testing.assert_close(getattr(together.boxes, name), own, rtol=1e-4, atol=1e-4)
        for mine, own in zip(together.heatmaps, torch.cat([one.heatmaps for one in alone]), strict=True):
            torch.testing.assert_close(mine, own, rtol=1e-3, atol=1e-4 * float(own.abs().max()))
    assert forwards == [4]


@contextmanager
def count_forwards(net):
    """How many images each forward took, of the twins of this network too."""
    counts, kind = [], type(net)
    forward = kind.forward

    def counted(self, given, *args, **keywords):
        counts.append(len(given))
        return forward(self, given, *args, **keywords)

    kind.forward = counted
    try:
        yield counts
    finally:
        kind.forward = forward


class Mixing(nn.Module):
    """A detector in whose batches images change each other, or that takes one image at a time."""

    def __init__(self, how):
        super().__init__()
        self.yolo, self.how = Yolo(columns_first=True), how

    def forward(self, x):
        if self.how == "refused" and len(x) > 1:
            raise ValueError("one image, please")
        if self.how == "mean":
            x = x - 0.5 * x.detach().mean(0)
        if self.how == "frames":  # each sees the one before
            x = x + 0.5 * F.pad(x[:-1], (0, 0) * 3 + (1, 0))
        if self.how == "shared gradient":
            x = x + 0.1 * (x.mean(0) - x.mean(0).detach())
        rows = self.yolo(x)
        return rows.mean(0, keepdim=True) if self.how == "no rows" else rows


@pytest.mark.parametrize("how", ["mean", "frames", "shared gradient", "refused", "no rows"])
def test_images_that_change_each_other_run_one_by_one(how):
    torch.manual_seed(0)
    net, images = Mixing(how).eval(), torch.rand(3, 3, 32, 32)
    alone = [attribute(net, image[None], min_score=0.1, top=2) for image in images]
    with count_forwards(net) as forwards:
        for _ in range(2):
            together = attribute(net, images, min_score=0.1, top=2)
            torch.testing.assert_close(together.heatmaps, torch.cat([one.heatmaps for one in alone]))
    assert forwards[-3:] == [1, 1, 1]
    assert max(forwards) <= 2


class Looping(nn.Module):
    """A detector that takes two images at once, but not three, or one after the other, in two calls of one layer."""

    def __init__(self, how):
        super().__init__()
        self.stem, self.head, self.how = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 7, 3, 1, 1), how

    def forward(self, x):
        if self.how == "two at most" and len(x) > 2:
            raise ValueError("two images, please")
        maps = [self.stem(one).relu() for one in (x.split(1) if "loop" in self.how else [x])]
        if self.how == "loops twice":
            maps = [one + self.stem(0.5 * image).relu() for one, image in zip(maps, x.split(1), strict=True)]
        rows = self.head(torch.cat(maps)).flatten(2).sigmoid()
        return torch.cat([rows[:, :4] * 16, rows[:, 4:]], 1)


@pytest.mark.parametrize(
    ("how", "layer"), [("two at most", None), ("loops", None), ("loops", "stem"), ("loops twice", "stem#2")]
)
def test_images_whose_layers_run_one_by_one_are_explained_so(how, layer):
    torch.manual_seed(0)
    net, images = Looping(how).eval(), torch.rand(3, 3, 32, 32)
    alone = [attribute(net, image[None], layer=layer, min_score=0.1, top=2) for image in images]
    for _ in range(2):
        together = attribute(net, images, layer=layer, min_score=0.1, top=2)
        assert len(together.heatmaps) == len(together.boxes) > 3
        torch.testing.assert_close(together.heatmaps, torch.cat([one.heatmaps for one in alone]))


@pytest.mark.parametrize("how", ["in place", "numpy"])
def test_a_detector_may_refuse_images_that_want_a_gradient(how):
    """Torchvision's own begin behind what resizes them."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, _ = made(fcos)

        def forward(self, x):
            return self.net(x.mul_(0.5) if how == "in place" else torch.from_numpy(0.5 * x.numpy()))

    images = torch.rand(3, 3, 60, 45, generator=torch.Generator().manual_seed(2))
    kept, expected = images.clone(), attribute(made(fcos)[0], 0.5 * images, top=2)
    for _ in range(2):
        why = attribute(Scaled().eval(), images, top=2)
        torch.testing.assert_close(why.boxes.xyxy, expected.boxes.xyxy)
        torch.testing.assert_close(why.heatmaps, expected.heatmaps)
    assert torch.equal(images, kept)


def test_whether_images_change_each_other_is_asked_again_where_the_first_had_no_boxes():
    net, _ = made(retina)
    images = torch.rand(3, 3, 60, 45, generator=torch.Generator().manual_seed(2))
    net.score_thresh = 1.0
    assert len(attribute(net, images).boxes) == 0
    net.score_thresh = 0.0
    attribute(net, images)
    with count_forwards(net) as forwards:
        attribute(net, images)
    assert forwards == [3]


def test_as_many_images_run_together_as_is_said():
    net, _ = made(fcos)
    images = torch.rand(5, 3, 60, 45, generator=torch.Generator().manual_seed(2))
    attribute(net, images)
    for rows, wanted in ((1, [1] * 5), (2, [2, 2, 1]), (9, [5])):
        with count_forwards(net) as forwards:
            attribute(net, images, internal_batch_size=rows)
        assert forwards == wanted


@pytest.mark.parametrize("method", ["layercam", "saliency"])
def test_as_many_images_run_together_as_there_is_memory_for(method, monkeypatch):
    """Graphs of one run are gone before those of the next."""
    images = torch.rand(5, 3, 60, 45, generator=torch.Generator().manual_seed(2))
    most, forwards = {}, {}
    for budget, count in ((1, 1), (1, 3), (2.5, 2), (2.5, 5)):
        net, _ = made(fcos)
        attribute(net, images[:1], top=2)
        size = held(net, Inputs(images[:1]))
        monkeypatch.setattr("torch_featviz.explain.explained._CPU_BUDGET", int(budget * size))
        attribute(net, images[:count], method=method, top=2)
        with count_forwards(net) as counts:
            most[budget, count] = max(
                kept_alive(lambda n=count, net=net: attribute(net, images[:n], method=method, top=2))
            )
        forwards[budget, count] = counts
    assert list(forwards.values()) == [[1], [1, 1, 1], [2], [2, 2, 1]]
    assert most[1, 1] == most[1, 3] > 20
    assert most[2.5, 2] == most[2.5, 5] < 2.5 * most[1, 1]


def kept_alive(call):
    """How many tensors autograd keeps, each time that it keeps one more."""
    alive, counts = WeakSet(), []

    class Packed:
        def __init__(self, tensor):
            self.tensor = tensor.detach()
            alive.add(self)
            counts.append(len(alive))

    with torch.autograd.graph.saved_tensors_hooks(Packed, lambda packed: packed.tensor):
        call()
    return counts


def test_boxes_of_another_scale_than_before_are_explained_at_theirs():
    """The maps that are known are those of the boxes seen first; others are looked for where they do not do."""
    net, logits = made(retina)
    image, layers = torch.rand(3, 60, 45, generator=torch.Generator().manual_seed(0)), []
    for level in (1, 0, 1):
        with torch.no_grad():
            for k, block in enumerate(net.backbone.fpn.layer_blocks):
                block[0].weight.mul_(30 if k == level else 1 / 30 if layers else 1)
        why = attribute(net, image, top=2)
        layers.append(why.layers)
        for heatmap, (_, _, heat) in zip(why.heatmaps, by_hand(net, logits, image, 2), strict=True):
            torch.testing.assert_close(heatmap, heat, rtol=1e-3, atol=1e-5 * float(heat.abs().max()))
    assert layers[0] == layers[2] != layers[1]


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "saliency", "input_x_gradient"])
def test_other_methods(method):
    net, logits = made(retina)
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(1))
    why = attribute(net, image, method=method, top=1)
    given = image[None].clone().requires_grad_()
    with heard(net, ["backbone", "head", "transform"]) as kept:
        (found,) = net(given)
    raw = logits(kept)
    row = int((raw.sigmoid()[:, found["labels"][0]] - found["scores"][0]).abs().argmin())
    logit = raw[row, found["labels"][0]]
    if method in ("gradcam", "hirescam"):
        level = why.layers[0][-1]
        (gradient,) = torch.autograd.grad(logit, kept["backbone"][level])
        weights = gradient.mean((2, 3), keepdim=True) if method == "gradcam" else gradient
        heat = on_image((weights * kept["backbone"][level]).sum(1, keepdim=True), kept, image)[None]
    else:
        (gradient,) = torch.autograd.grad(logit, given)
        heat = gradient.abs().sum(1) if method == "saliency" else (gradient * given).sum(1)
        assert why.layers == ()
    torch.testing.assert_close(why.heatmaps, heat.detach(), rtol=1e-3, atol=1e-6)


def test_a_layer_of_ones_own():
    net, _ = made(fcos)
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(1))
    why = attribute(net, image, layer="backbone.early", top=1)
    assert why.where == "backbone.early"
    assert why.heatmaps.shape == (1, 48, 64)
    with pytest.raises(LayerError, match=r"a box does not depend on head.regression_head.conv.0#1; choose another"):
        attribute(net, image, layer="head.regression_head.conv.0#1", top=1)


@pytest.mark.parametrize("method", ["layercam", "saliency"])
def test_a_class_chooses_its_boxes(method):
    images, names = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1)), ["no", "cat", "dog", "cow"]
    net, _ = made(fcos)
    every = attribute(net, images, method=method, top=100)
    assert set(every.boxes.classes.tolist()) == {0, 1, 2, 3}
    card = fv.ModelCard("fcos", lambda: net, (3, 48, 64), classes=names)
    for asked, told, wanted in (
        ("dog", {"classes": names}, [2, 2]),
        ("dog", {"card": card}, [2, 2]),
        (["cow", 1], {"classes": names}, [3, 1]),
        (torch.tensor([3, 0]), {}, [3, 0]),
    ):
        net, _ = made(fcos)  # of which it is not known yet that it is a detector
        own = attribute(net, images, method=method, target=asked, top=100, **told)
        kept = every.boxes.classes == torch.tensor(wanted)[every.boxes.images]
        assert 0 < int(kept.sum()) < len(kept)
        assert torch.equal(own.boxes.xyxy, every.boxes.xyxy[kept])
        assert torch.equal(own.boxes.images, every.boxes.images[kept])
        assert torch.equal(own.boxes.classes, every.boxes.classes[kept])
        torch.testing.assert_close(own.heatmaps, every.heatmaps[kept])
        best = attribute(net, images, method=method, target=asked, top=1, **told)
        torch.testing.assert_close(best.boxes.scores[:1], own.boxes.scores[:1])
        assert len(best.boxes) == 2


def test_a_class_that_is_not_there_has_no_boxes():
    net, _ = made(fcos)
    why = attribute(net, torch.rand(3, 48, 64), target=77)
    assert len(why.boxes) == 0
    assert why.heatmaps.shape == (0, 48, 64)


# Networks of other families


class Yolo(nn.Module):
    """A one-stage detector as a person may write it: two scales, one tensor."""

    def __init__(self, columns_first=False, detached=False):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.place = nn.ModuleList([nn.Conv2d(8, 4, 3, 1, 1) for _ in range(2)])
        self.kind = nn.ModuleList([nn.Conv2d(8, 3, 3, 1, 1) for _ in range(2)])
        self.columns_first, self.detached = columns_first, detached

    def forward(self, x):
        one = self.stem(x).relu()
        rows = []
        for level, values in enumerate((one, self.down(one).relu())):
            given = values.detach() if self.detached else values
            places, kinds = self.place[level](given).sigmoid() * 16, self.kind[level](given)
            rows.append(torch.cat([places, kinds], 1).flatten(2))
        rows = torch.cat(rows, 2)
        rows = torch.cat([rows[:, :4], rows[:, 4:].sigmoid()], 1)
        return rows if self.columns_first else (rows.transpose(1, 2), [one])


@pytest.mark.parametrize("columns_first", [False, True])
def test_a_yolo_like_detector(columns_first):
    torch.manual_seed(0)
    net = Yolo(columns_first)
    image = torch.rand(1, 3, 32, 32)
    why = attribute(net, image, top=4, min_score=0.1)
    output = net(image) if columns_first else net(image)[0].transpose(1, 2)
    first = 4 if columns_first else 5
    for box, label, heatmap in zip(why.boxes.xyxy, why.classes, why.heatmaps, strict=True):
        middle = (box[:2] + box[2:]) / 2
        cell = int((output[0, :2] - middle[:, None]).abs().sum(0).argmin())
        level, cell = (0, cell) if cell < 64 else (1, cell - 64)
        maps = net.stem(image).relu()
        maps = net.down(maps).relu() if level else maps
        leaf = maps.detach().requires_grad_()
        logit = net.kind[level](leaf)[0, int(label) + first - 4].flatten()[cell]
        (gradient,) = torch.autograd.grad(logit, leaf)
        heat = F.interpolate((gradient.clamp(min=0) * leaf).sum(1, keepdim=True), (32, 32), mode="bilinear")[0, 0]
        torch.testing.assert_close(heatmap, heat.detach())
    assert len(why.boxes)


def detr(**options):
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    body = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    small = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 16))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "num_queries": 6}
    torch.manual_seed(0)
    config = DetrConfig(backbone_config=body, num_labels=3, backbone=None, use_timm_backbone=False, **small, **heads)
    return DetrForObjectDetection(config).eval()


def test_a_detr():
    net, image = detr(), torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    why = attribute(net, image, min_score=0, top=3)
    assert why.where == "model.encoder.layers.1, tokens as 8 × 6"
    with heard(net, ["model.encoder"]) as kept:
        output = net(image.clone().requires_grad_())
    memory = kept["model.encoder"].last_hidden_state
    scores, labels = output.logits[0].softmax(1)[:, :3].max(1)
    for query, heatmap, label in zip(scores.argsort(descending=True), why.heatmaps, why.classes, strict=False):
        assert label == labels[query]
        (gradient,) = torch.autograd.grad(output.logits[0, query, label], memory, retain_graph=True)
        heat = (gradient.clamp(min=0) * memory).sum(2).view(1, 1, 8, 6)
        torch.testing.assert_close(heatmap, F.interpolate(heat, (64, 48), mode="bilinear")[0, 0].detach())


def test_a_configuration_names_classes():
    net, image = detr(), torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    net.config.id2label = {0: "cat", 1: "dog", 2: "cow"}
    every = attribute(net, image, min_score=0, top=9)
    name = net.config.id2label[int(every.boxes.classes[0])]
    own = attribute(net, image, min_score=0, top=9, target=name)
    assert torch.equal(own.boxes.xyxy, every.boxes.xyxy[every.boxes.classes == every.boxes.classes[0]])


def test_names_tell_how_the_rows_of_a_yolo_are_read():
    """Of two classes as rows with an object, as the shape says; of three as rows without, as the names say."""
    torch.manual_seed(0)
    net, image = Yolo(), torch.rand(1, 3, 32, 32)
    rows = net(image)[0][0]
    for names, scores in (
        (None, rows[:, 4] * rows[:, 5:].amax(1)),
        ("ab", rows[:, 4] * rows[:, 5:].amax(1)),
        ("abc", rows[:, 4:].amax(1)),
    ):
        why = attribute(net, image, top=1, min_score=0.1, classes=names or ())
        torch.testing.assert_close(why.boxes.scores[0], scores.max().detach())
    with pytest.raises(ShapeError, match="classes must name 2 or 3, got 4: this model gives a box 7 columns"):
        attribute(net, image, classes="abcd")


def test_several_scales_are_joined():
    """All boxes of this detector read both maps."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.down, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(16, 35)

        def forward(self, x):
            one = self.stem(x).relu()
            two = self.down(one).relu()
            rows = self.head(torch.cat([one.amax(2).mean(2), two.amax(2).mean(2)], 1)).view(-1, 5, 7)
            return {"pred_logits": rows[..., :3], "pred_boxes": rows[..., 3:].sigmoid()}

    torch.manual_seed(0)
    net, image = Both(), torch.rand(1, 3, 16, 16)
    why = attribute(net, image, top=1, min_score=0)
    assert why.where == "stem.relu and down.relu: each by its own maximum, then the larger"
    one = net.stem(image).relu().detach().requires_grad_()
    two = net.down(one).relu()
    two_leaf = two.detach().requires_grad_()
    heats = []
    logits = net.head(torch.cat([one.amax(2).mean(2), two_leaf.amax(2).mean(2)], 1)).view(5, 7)[:, :3]
    scores, labels = logits.softmax(1)[:, :2].max(1)
    query = scores.argmax()
    first, second = torch.autograd.grad(logits[query, labels[query]], [one, two_leaf])
    back = torch.autograd.grad(two, one, second)[0]
    for values, gradient in ((one, first + back), (two_leaf, second)):
        heat = (gradient.clamp(min=0) * values).sum(1, keepdim=True).detach()
        heats.append(F.interpolate(heat / heat.abs().max(), (16, 16), mode="bilinear"))
    torch.testing.assert_close(why.heatmaps, torch.stack(heats).amax(0)[:, 0])


# What is refused, and what is empty


def test_an_image_without_boxes():
    net, _ = made(retina)
    net.score_thresh = 1.0
    why = attribute(net, torch.rand(2, 3, 60, 45))
    assert why.heatmaps.shape == (0, 60, 45)
    assert len(why.boxes) == 0
    assert why.where == ""
    assert attribute(net, torch.rand(3, 60, 45), method="saliency").heatmaps.shape == (0, 60, 45)


def test_lowest_score_and_number_of_boxes():
    net, image = detr(), torch.rand(1, 3, 64, 48)
    every = attribute(net, image, min_score=0, top=100)
    assert len(every.boxes) == 6
    least = float(every.boxes.scores.median())
    assert len(attribute(net, image, min_score=least).boxes) == int((every.boxes.scores >= least).sum())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"method": "occlusion"}, OptionError, "occlusion runs changed images, in which a detector finds other boxes"),
        ({"method": "lrp"}, OptionError, "for boxes there are layercam, hirescam, gradcam, saliency, input_x_gradient"),
        ({"method": "clairvoyance"}, OptionError, "no method 'clairvoyance'"),
        ({"top": 0}, OptionError, "top must be at least 1 and min_score from 0 to 1, got 0 and None"),
        ({"min_score": 2}, OptionError, "top must be at least 1"),
        ({"internal_batch_size": 0}, OptionError, "internal_batch_size must be at least 1, got 0"),
        ({"n_steps": 3}, OptionError, "layercam of boxes has no option 'n_steps'; it takes min_score, top"),
        ({"layer": "nothing"}, LayerError, "no layer 'nothing'"),
        ({"method": "saliency", "layer": "backbone"}, OptionError, "saliency uses no layer"),
        ({"target": 0.5}, DtypeError, "target must be a class, or one for each image, by number or name; got 0.5"),
        ({"target": [1, 2]}, ShapeError, "target must be one class, or 1 classes, one per image"),
        ({"target": -1}, OptionError, "target must be a class from 0, by number or name; got -1"),
        ({"target": 4, "classes": "abcd"}, OptionError, "target must be a class from 0 to 3, by number or name; got 4"),
        ({"target": "cat"}, OptionError, "'cat' is a name: tell the names of all classes with classes= or card="),
        ({"target": "cat", "classes": "abcd"}, OptionError, "the model has no class 'cat'"),
        ({"target": lambda output: output}, DtypeError, "the target callable must return a tensor 'b' of floats"),
    ],
)
def test_refusals(given, error, words):
    net, _ = made(fcos)
    if "n_steps" not in given:
        with pytest.raises(error, match=words):
            attribute(net, torch.rand(1, 3, 48, 64), **given)
    attribute(net, torch.rand(1, 3, 48, 64), top=1)  # from now on it is known as a detector
    with pytest.raises(error, match=words):
        attribute(net, torch.rand(1, 3, 48, 64), **given)


def test_scores_of_detached_features_are_refused():
    with pytest.raises(OptionError, match="no gradient reaches the scores of the boxes"):
        attribute(Yolo(detached=True), torch.rand(1, 3, 32, 32), min_score=0)


def test_boxes_without_a_map_are_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(192, 14)

        def forward(self, x):
            rows = self.linear(x.flatten(1)).view(-1, 2, 7)
            return {"logits": rows[..., :3], "pred_boxes": rows[..., 3:].sigmoid()}

    net, image = Flat(), torch.rand(1, 3, 8, 8)
    with pytest.raises(LayerError, match="the boxes of Flat depend on no feature map that is known; choose layers"):
        attribute(net, image, min_score=0)
    assert bool(attribute(net, image, min_score=0, method="saliency").heatmaps.any())


def test_what_is_no_detector_is_told_as_before():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2))  # maps as tokens
    with pytest.raises(ShapeError, match="pass target= a callable"):
        attribute(net, torch.randn(1, 3, 8, 8))
    with pytest.raises(OptionError, match="gradcam has no option 'top'"):
        attribute(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), torch.rand(1, 3, 8, 8), top=2)


def test_the_faithfulness_of_boxes_is_refused():
    net, _ = made(fcos)
    image = torch.rand(1, 3, 48, 64)
    with pytest.raises(OptionError, match="the faithfulness of boxes is not measured"):
        fv.faithfulness(net, image, attribute(net, image, top=1))


def test_a_callable_explains_one_candidate_by_any_method():
    net, image = detr(), torch.rand(1, 3, 64, 48)
    own = attribute(net, image, min_score=0, top=1)
    query = int(net(image).logits[0].softmax(1)[:, :3].max(1)[0].argmax())
    label = int(own.classes[0])
    why = attribute(net, image, target=lambda output: output.logits[:, query, label], method="saliency")
    same = attribute(net, image, min_score=0, top=1, method="saliency")
    torch.testing.assert_close(why.heatmaps / 1, same.heatmaps)
