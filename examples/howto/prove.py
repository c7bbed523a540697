"""
How do I know that looking changes nothing?
===========================================

You need not believe it: ``prove`` measures it on your model. It runs the model with a capture and without, in
evaluation, in training, in inference mode and under autocast, and compares all that there is to the bit. What layers
return is noted a second time by Python's profiler, which knows nothing of captures.
"""

import torch
from torch import nn

import torch_featviz as fv

torch.manual_seed(0)
info = fv.zoo.card("cifar_cnn")
model, images = info.build(), torch.rand(2, *info.input_size)
proof = fv.prove(model, images)
print(proof)

# %%
# Each line is a claim and where it was found to hold. In a script, ask ``holds``; from the shell,
# ``featviz prove MODEL --image cat.jpg`` ends with exit code 1 if a claim fails.

assert proof.holds

# %%
# A claim that fails says what is not so. This model writes to its own buffer where PyTorch cannot see it, so what was
# captured of it changes afterwards.


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("latest", torch.zeros(2, 3, 8, 8))

    def forward(self, images):
        self.latest.data.copy_(images)
        return self.latest


print(fv.prove(nn.Sequential(Remembers(), nn.Conv2d(3, 4, 3)), torch.rand(2, 3, 8, 8)))

# %%
# The remedy is to return a copy (``self.latest.clone()``), or to write without ``.data``: then a capture knows, and
# refuses to show the old value as if it were still there.
