"""
How do I gate the cost in CI?
=============================

Watching should cost nothing that you notice. Whether it does depends on your model, so measure it there, and let CI
fail when it changes. The package brings a pytest fixture; this is the whole test:

.. code-block:: python

    def test_capture_stays_cheap(capture_overhead):
        cost = capture_overhead(model, images, ["layer1", "layer4"])
        assert cost.ratio.within(1.05)

It fails once the ratio to the bare forward is above 1.05 with 97.5 % confidence: a noisy machine widens the interval
and does not fail the test. The run's summary has a line for each measurement. The same in a script:
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
# Of the captured forward to the bare one: the median of the ratios, and its 95 % interval; then what each layer adds,
# and the memory that is held. :doc:`How it is measured </measured>` says why these figures can be trusted.

print("may be at most 1.5:", cost.ratio.within(1.5))
print(sorted(cost.as_dict()))
