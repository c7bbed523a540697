"""A small DETR that finds discs and squares: how it is built, and how it was trained.

python examples/shapes_detr.py trains it within some minutes on one core, and writes examples/shapes_detr.safetensors.
"""

import random
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.modeling_outputs import BackboneOutput

from examples.shapes import SIDE, scene, trained

WEIGHTS = Path(__file__).with_suffix(".safetensors")
GRID = 3  # queries along each side: each begins at a place of its own
CHANNELS = 4 * 24 + 2
NO_OBJECT = 2  # class of a query that finds nothing


class Body(nn.Module):
    """The convolutions of `examples/shapes.py`, 2 × 2 places as one, and two channels that tell the row and the column.

    Coordinates as channels (Liu et al. 2018) spare the days in which a large DETR learns where things are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(trained().backbone.features, nn.PixelUnshuffle(2)).requires_grad_(False)

    def forward(self, x: Tensor) -> BackboneOutput:
        maps = self.features(x)
        down, across = (torch.linspace(-2, 2, side, device=x.device) for side in maps.shape[2:])
        places = torch.stack(torch.meshgrid(down, across, indexing="ij")).expand(len(maps), -1, -1, -1)
        return BackboneOutput(feature_maps=(torch.cat([maps, places], 1),))


def shapes_detr() -> DetrForObjectDetection:
    """DETR of transformers with one layer of its encoder, two of its decoder, and nine queries."""
    stage = {"embedding_size": 8, "hidden_sizes": [CHANNELS], "depths": [1], "out_features": ["stage1"]}
    parts = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("ffn_dim", 96), ("layers", 2))}
    config = DetrConfig(
        backbone_config=ResNetConfig(layer_type="basic", **stage),
        backbone=None,
        use_timm_backbone=False,
        id2label={0: "disc", 1: "square"},
        **{"d_model": 48, "num_queries": GRID**2, "dropout": 0.0, "auxiliary_loss": True},
        **{**parts, "encoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    )
    net = DetrForObjectDetection(config)
    net.model.backbone.model = Body()
    return net


def begin_at_places(net: DetrForObjectDetection) -> None:
    """Before training, each query is most like the places around its own."""
    shape = torch.Size((1, 1, 2 * GRID, 2 * GRID))
    places = net.model.position_embedding(shape=shape, device="cpu", dtype=torch.float32)[0, :, ::2, ::2]
    with torch.no_grad():
        net.model.query_position_embeddings.weight.copy_(places.flatten(1).T)
        for layer in net.model.decoder.layers:
            nn.init.orthogonal_(layer.encoder_attn.q_proj.weight, gain=2)
            layer.encoder_attn.k_proj.weight.copy_(layer.encoder_attn.q_proj.weight)


def drawings(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images with one to three shapes; and for each query the class and the box that it is to find.

    DETR itself matches queries and boxes by their loss, which changes at each step. Here each shape belongs to the
    query whose place is closest, no two to one: this is the same at each step, so that training takes minutes.
    """
    middles = (torch.arange(GRID) + 0.5) / GRID
    places = torch.cartesian_prod(middles, middles).flip(1)
    images, dice = [], random.Random(0)
    classes, boxes = torch.full((count, GRID**2), NO_OBJECT), torch.zeros(count, GRID**2, 4)
    for number in range(count):
        image, truth = scene(1_000_000 + number, tuple(dice.choices((1, 2), k=dice.randint(1, 3))))
        images.append(image)
        middle = box_convert(truth["boxes"] / SIDE, "xyxy", "cxcywh")
        shapes, queries = linear_sum_assignment(torch.cdist(middle[:, :2], places).square())
        classes[number, queries] = truth["labels"][shapes] - 1
        boxes[number, queries] = middle[shapes]
    return normalised(torch.stack(images)), classes, boxes


def normalised(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


def loss_of(net: DetrForObjectDetection, hidden: Tensor, classes: Tensor, boxes: Tensor) -> Tensor:
    """DETR's loss of a layer of its decoder."""
    logits, own = net.class_labels_classifier(hidden), classes != NO_OBJECT
    found, true = net.bbox_predictor(hidden[own]).sigmoid(), boxes[own]
    apart = generalized_box_iou_loss(*(box_convert(each, "cxcywh", "xyxy") for each in (found, true)), reduction="mean")
    return F.cross_entropy(logits.flatten(0, 1), classes.flatten()) + 20 * F.l1_loss(found, true) + 2 * apart


def train(steps: int = 1500, batch: int = 24, count: int = 3000) -> DetrForObjectDetection:
    torch.manual_seed(0)
    net = shapes_detr().train()
    begin_at_places(net)
    images, classes, boxes = drawings(count)
    body = net.model.backbone.model.eval()
    features, body.features = body.features, nn.Identity()  # they stay as they are: computed once
    maps = torch.cat([features(part) for part in images.split(50)])
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        chosen = torch.randint(len(maps), (batch,))
        output = net.model(pixel_values=maps[chosen])
        layers = (*output.intermediate_hidden_states[:-1], output.last_hidden_state)
        loss = sum(loss_of(net, hidden, classes[chosen], boxes[chosen]) for hidden in layers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5}: loss {float(loss.detach()):.3f}", flush=True)
    body.features = features
    return net.eval()


def trained_detr() -> DetrForObjectDetection:
    """The DETR with the weights that `train` found."""
    from safetensors.torch import load_file  # noqa: PLC0415

    net = shapes_detr()
    net.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()}, strict=False)
    return net.eval()


if __name__ == "__main__":
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    learnt = {name: weight for name, weight in train().named_parameters() if weight.requires_grad}
    save_file({name: weight.detach().half() for name, weight in learnt.items()}, WEIGHTS)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1000:.0f} KB")
