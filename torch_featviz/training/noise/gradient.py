"""`GradientNoise`: how much single examples' gradients differ, and so which batch size serves a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from torch_featviz.capture.tap import Taps, take_back
from torch_featviz.errors import OptionError
from torch_featviz.gate import check_module
from torch_featviz.schema import SchemaError, checked_state
from torch_featviz.torch_private import COMPILED_CALL, is_optimized

from .apart import batch_second, mixing
from .by_example import ByExample
from .by_rank import ByRank
from .scale import Estimate, NoiseScale, Norms

EXAMPLES = (
    32  # of a forward; with more of them the estimate is hardly better, since that of the whole batch is as noisy
)
WINDOW = 100  # steps
_COMPILED = "the model is compiled, so that what its layers are given is not seen; train some steps uncompiled."


@dataclass(frozen=True)
class NoiseState:
    """What `GradientNoise.state_dict` returns."""

    layers: tuple[str, ...]
    looks: list[Norms]

    def __post_init__(self) -> None:
        for i, look in enumerate(self.looks):
            if not 0 < look.small < look.big:
                raise SchemaError(f"more than small={look.small}, got {look.big}", f".looks[{i}].big")
            if not look.usable():
                raise SchemaError("squared norms that are finite and not 0", f".looks[{i}]")


class GradientNoise:
    """Estimates the gradient noise scale from ordinary steps of a training: no second forward, and no second backward.

    Of linear layers and convolutions, the norm of each example's own part of the gradient follows from what the layer
    is given and from the gradient of what it returns. It is compared with the norm of the gradient of the whole batch,
    as the backward leaves it in `.grad`, before anything clips it. Of several ranks, each rank's gradient is compared
    with the mean of all, and each parameter counts.

    The loss is a mean or a sum over examples; several batches whose gradients are accumulated are one. What else it
    has in it is taken for what they all agree in, and not noticed: a penalty on weights, examples that are compared
    with each other, a weight that is also used beside its layer's calls. The training is bit for bit the same.

    Args:
        model: any module that is not compiled.
        group: ranks whose gradients DistributedDataParallel averages, with batches of one size.
        examples: of each forward so many are drawn, those with large gradients more often, and stand for all; None for
            all. The estimate is right on average in any case. Linear layers without tokens always have all.
        window: it is of the last so many steps.
    Raises:
        DtypeError: `model` is no module.
        OptionError: `examples` or `window` is below 1.
    Reference: McCandlish et al. 2018, arXiv 1812.06162.
    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> noise = GradientNoise(net)
        >>> for inputs in torch.randn(20, 16, 4):
        ...     with noise.block():
        ...         net(inputs).square().mean().backward()
        ...     noise.take([float(each) for each in noise.sums()])
        ...     net.zero_grad()
        >>> noise.scale.looks, noise.scale.batch, noise.scale.layers
        (20, 16, ('0', '2'))
        >>> noise.scale.low < noise.scale.value < noise.scale.high
        True
    """

    def __init__(
        self,
        model: nn.Module,
        group: dist.ProcessGroup | None = None,
        *,
        examples: int | None = EXAMPLES,
        window: int = WINDOW,
    ) -> None:
        check_module("model", model)
        if examples is not None and examples < 1:
            raise OptionError(f"examples must be at least 1, or None for all, got {examples}.")
        self._model, self._examples = model, examples
        self._group = group if group is not None and dist.get_world_size(group) > 1 else None
        self._estimate = Estimate(window)
        self._step: ByExample | ByRank | None = None
        self._open = False
        self._refused = ""
        self._compiled = False  # whether some layer ran in compiled code
        self._random = Random(0)  # not the one that the training draws from
        self._copied = set[str]()  # layers whose input does not last until the backward
        self._kind = 0  # counts up where other layers are measured than before
        self._layers: tuple[str, ...] = ()
        self._left_out: dict[str, str] = {}

    @contextmanager
    def block(self) -> Iterator[None]:
        """Around forwards and their backwards; several blocks may follow each other before `sums`.

        What a block that raises has seen is dropped, with the blocks before it.

        Raises:
            OptionError: a block is open already.
        """
        if self._open:
            raise OptionError("a block of this noise scale is already open; leave it first.")
        self._refused = self._why_refused()
        if self._refused:
            self._step = None
            yield
            return
        step = self._step = self._step or self._begun()
        taps, self._open = Taps(), True
        try:
            step.enter(taps)
            yield
        except BaseException:
            self._step = None
            raise
        finally:
            self._open = False
            take_back(taps)
            step.leave()
        if isinstance(step, ByExample) and step.compiled:
            self._compiled = True
            self._refused, self._step = _COMPILED, None
        elif self._group is None and (layer := mixing(self._model)):  # it was set to training within the block
            self._refused, self._step = _mixes(layer), None

    def sums(self) -> list[Tensor]:
        """What the blocks since the last call tell, for `take`: numbers, on their devices, not waited for.

        There are none where a step tells nothing; `scale.left_out` says why. With a `group`, all ranks ask at once.
        """
        step, self._step = self._step, None
        if step is None:
            return []
        with torch.no_grad():
            told = step.end()
        if isinstance(told, str):
            self._left_out = {**step.left_out, "the last step": told}
            return []
        if told.layers != self._layers:  # of other layers the scale is another one
            self._kind += 1
            self._estimate.looks.clear()
            self._layers = told.layers
        self._left_out = told.left_out
        known = [self._kind, told.small, told.big, told.scaled]
        return [*(torch.tensor(float(each), device="cpu") for each in known), told.of_small, told.of_big, told.before]

    def take(self, numbers: Sequence[float]) -> None:
        """Add one step to the estimate.

        Args:
            numbers: what became of one result of `sums` on the CPU.
        """
        if not numbers:
            return
        kind, small, big, scaled, of_small, of_big, before = map(float, numbers)
        if before:
            self._left_out = {**self._left_out, "the last step": "there were gradients before its first block"}
        elif kind == self._kind:
            self._estimate.add(Norms(int(small), of_small, int(big), of_big, bool(scaled)))

    @property
    def scale(self) -> NoiseScale:
        """The estimate over the last steps.

        Raises:
            OptionError: the model is compiled, mixes the examples of a batch, or takes the batch on its second axis.
        """
        if self._refused:
            raise OptionError(f"the noise scale cannot be estimated: {self._refused}")
        return self._estimate.scale(self._layers, dict(self._left_out))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers, strings, lists and dicts."""
        return {"layers": list(self._layers), "looks": self._estimate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` said.

        Raises:
            OptionError: `state` is something else.
        """
        known = checked_state(NoiseState, state)
        self._kind += 1
        self._layers = known.layers
        self._estimate.load_state_dict(state["looks"])

    def _begun(self) -> ByExample | ByRank:
        if self._group is not None:
            return ByRank(self._model, self._group)
        return ByExample(self._model, self._examples, self._random, self._copied)

    def _why_refused(self) -> str:
        modules = self._model.modules()
        if self._compiled or any(is_optimized(each) or each.__dict__.get(COMPILED_CALL) for each in modules):
            return _COMPILED
        if layer := mixing(self._model, over_ranks=self._group is not None):
            return _mixes(layer)
        if self._group is None and (layer := batch_second(self._model)):
            return f"{layer} takes the batch on its second axis; make it with batch_first=True."
        return ""


def _mixes(layer: str) -> str:
    return (
        f"a layer mixes the examples of a batch: {layer}, so that none has a gradient of its own. "
        "Use another normalisation, freeze it with eval(), or train over several ranks."
    )
