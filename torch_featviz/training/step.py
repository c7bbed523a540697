"""What a block of `Monitor.step()` yields: a place for scalars of one's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_featviz.errors import OptionError
from torch_featviz.torch_private import in_graph_pool, viewed

from .criterion import Criterion, mistake_of

OURS = ("learning_rate", "gradient_norm")  # scalars that a Monitor adds itself


class Step:
    """One training step, while its block is open.

    Example:
        >>> from torch import nn
        >>> from torch_featviz.training import Monitor
        >>> net = nn.Linear(2, 1)
        >>> watch = Monitor(net, every=1)
        >>> with watch.step() as step:
        ...     loss = net(torch.ones(3, 2)).square().mean()
        ...     step.log(loss=loss, accuracy=0.5)
        >>> watch.history.values("accuracy")
        array([0.5])
    """

    def __init__(self, number: int, *, looks: bool = False) -> None:
        self.number = number
        self.criterion: Criterion | None = None  # the mistake that the graph of the loss shows, in a step looked at
        self._looks = looks
        self._logged: dict[str, list[Tensor | float]] = {}
        self._open = True

    def log(self, **scalars: Any) -> None:
        """Log scalars of this step: each is a row of the report, and goes to every sink.

        A GPU is not waited for: values on it are read with the other figures. Several values in one step are averaged.
        A loss that the model itself returns is logged at each watched step if you log none.

        Args:
            scalars: by name, numbers or tensors of one number. `loss` is also checked: whether it is finite and falls,
                and, if it still has its autograd graph, whether it fits the model's output.
        Raises:
            OptionError: a value is not a number, the name is reserved, or the block is over.
        """
        if not self._open:
            raise OptionError(f"step {self.number} is over; call step.log inside its with block.")
        for name, value in scalars.items():
            if name.partition("/")[0] in OURS:
                raise OptionError(f"{name!r} is reserved: the monitor logs it itself. Choose another name.")
            number = _number(name, value)
            if self._looks and name == "loss" and isinstance(value, Tensor):
                self.criterion = self.criterion or mistake_of(value)
            self._logged.setdefault(name, []).append(number)

    def close(self) -> dict[str, list[Tensor | float]]:
        """The block is over: what was logged, by name."""
        self._open = False
        return self._logged


def _may_change(value: Tensor) -> bool:
    """Whether the tensor may hold another value when it is read, as a running sum does.

    A loss on a GPU does not, and to copy it would be one more launch; a part of a larger tensor is copied, too.
    """
    alone = value.is_cuda and value.grad_fn is not None and viewed(value) is None
    return not alone or in_graph_pool(value) or value.untyped_storage().nbytes() > 8


def _number(name: str, value: Any) -> Tensor | float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        single: Tensor = value.detach().reshape(())
        return single.clone() if _may_change(value) else single
    try:
        if not isinstance(value, (Tensor, str)):
            return float(value)
    except (TypeError, ValueError):
        pass
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise OptionError(f"step.log takes numbers, or tensors of one number; {name!r} is {given:.80}.")
