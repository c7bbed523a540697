"""
How do I capture activations in a training loop, and under torch.compile?
=========================================================================

``fv.capture`` is a ``with`` block around the code that runs the model. You choose what it keeps: outputs, gradients, or
statistics, which are computed on the device and cost next to nothing.
"""

import torch
from torch import nn

import torch_featviz as fv

torch.manual_seed(0)
layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()
model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4608, 10))
optimizer = torch.optim.SGD(model.parameters(), 0.01)
batches = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,))) for _ in range(20)]


def train(model):
    for images, labels in batches:
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


# %%
# **Outputs.** The block keeps those of the latest forward; ``every=10`` captures one forward in ten.

with fv.capture(model, [nn.Conv2d], every=10) as acts:
    train(model)
for layer, output in acts.items():
    print(layer, tuple(output.shape))

# %%
# **Statistics.** No output is stored, and nothing is copied to the CPU until you read it.

with fv.capture(model, [nn.ReLU], into=fv.Moments()) as stats:
    train(model)
for layer, moments in stats.items():
    dead = int(moments.dead.sum())
    print(
        f"{layer}: mean {moments.mean.mean():.3f}, {100 * moments.zero_share.mean():.0f} % zeros, {dead} dead channels"
    )
# %%
# **Gradients** of outputs. The backward must be inside the block.

with fv.capture(model, ["2"], of="grad") as grads:
    train(model)
print(grads["2"].norm())

# %%
# **Compiled models** need no other code. The capture becomes part of the compiled graph, without a graph break. After
# the block the original graph runs again.

compiled = torch.compile(model)
with torch.no_grad(), fv.capture(compiled, ["0", "2"]) as acts:
    compiled(batches[0][0])
with torch.no_grad(), fv.capture(model, ["0", "2"]) as plain:
    model(batches[0][0])
print({layer: bool(torch.allclose(acts[layer], plain[layer], atol=1e-5)) for layer in acts})
