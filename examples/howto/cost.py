"""
How do I gate the cost in CI?
=============================

A capture should cost almost nothing. The cost depends on your model, so measure it there and let CI fail when it rises.
The package has a pytest fixture for it; this is the whole test:

.. code-block:: python

    def test_capture_stays_cheap(capture_overhead):
        cost = capture_overhead(model, images, ["layer1", "layer4"])
        assert cost.ratio.within(1.05)

It fails if the ratio to the bare forward is above 1.05 with 97.5 % confidence: a noisy machine widens the interval and
does not fail the test. The test summary has one line per measurement. The same in a script:
"""

import torch

import torch_featviz as fv
from torch_featviz.bench import overhead

torch.manual_seed(0)
info = fv.zoo.card("cifar_cnn")
model, images = info.build().eval(), torch.rand(16, *info.input_size)
with torch.no_grad():
    cost = overhead(model, images)
print(cost)

# %%
# The output is the ratio of the captured to the bare forward (median and 95 % interval), the extra time per layer, and
# the memory that is held. :doc:`How it is measured </measured>` explains why these figures can be trusted.

print("may be at most 1.5:", cost.ratio.within(1.5))
print(sorted(cost.as_dict()))
