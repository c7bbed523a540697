"""What captured attention costs, on a network of the shape of ViT-B/16; all within one run.

pytest benchmarks/test_attention.py --benchmark-enable -s
"""

import copy

import pytest
import timm
import torch

from torch_featviz import Attention
from torch_featviz.bench import paired, settled
from torch_featviz.capture import capture

# At most: to the bare forward, and to the bare forward and the same attention computed in the eager way beside it.
BUDGET = {"one row": 1.05, "all rows": 1.0}
LAYERS, HEADS, TOKENS, SIZE = 12, 12, 197, 64


@pytest.fixture(autouse=True)
def _no_grad_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def nets():
    """The same network twice, over the same weights."""
    bare = timm.create_model("vit_base_patch16_224").eval()
    return bare, copy.deepcopy(bare, {id(tensor): tensor for tensor in bare.state_dict(keep_vars=True).values()})


def eager(query, key, value):
    """As transformers has it: the output, and the weights."""
    weights = torch.matmul(query, key.transpose(2, 3)) * SIZE**-0.5
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def test_one_row_of_each_layer(benchmark, nets):
    (bare, captured), x = nets, torch.randn(1, 3, 224, 224)
    with capture(captured, "blocks.*.attn", of=Attention(queries=[0])) as att:
        captured(x)  # followed once; what was learnt stays with the model
        benchmark.pedantic(captured, (x,), rounds=3)
        assert len(att) == LAYERS
        assert att["blocks.0.attn"].shape == (1, HEADS, 1, TOKENS)
        ratio = settled(
            lambda: paired(lambda: captured(x), lambda: bare(x), rounds=15),
            lambda ratio: ratio.median <= BUDGET["one row"],
        )
    print(f"\none row of {LAYERS} layers: {ratio} of the bare forward")
    benchmark.extra_info["of bare"] = str(ratio)
    assert ratio.within(BUDGET["one row"]), str(ratio)


def test_all_rows_of_each_layer(benchmark, nets):
    (bare, captured), x = nets, torch.randn(1, 3, 224, 224)
    made = [torch.randn(1, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0) for _ in range(LAYERS)]

    def and_eager():
        bare(x)
        kept = [eager(query, key, value)[1] for query, key, value in made]  # as output_attentions=True keeps them
        assert len(kept) == LAYERS

    with capture(captured, "blocks.*.attn", of="attention") as att:
        captured(x)
        benchmark.pedantic(captured, (x,), rounds=3)
        assert att["blocks.11.attn"].shape == (1, HEADS, TOKENS, TOKENS)
        ratio = settled(
            lambda: paired(lambda: captured(x), and_eager, rounds=15),
            lambda ratio: ratio.median <= BUDGET["all rows"],
        )
    print(f"\nall rows of {LAYERS} layers: {ratio} of the bare forward and eager attention beside it")
    benchmark.extra_info["of bare and eager"] = str(ratio)
    assert ratio.within(BUDGET["all rows"]), str(ratio)
