"""`prove()`: whether what this library says of captures and pictures is so for one model, claim by claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from torch_featviz.gate import gated
from torch_featviz.model.inputs import batch_of
from torch_featviz.model.layers import unwrap

from .claims import Claim, Proof
from .conservation import claims_of_conservation
from .figures import claims_of_figures
from .kernels import claims_of_kernels
from .maps import claims_of_maps
from .statistics import claims_of_statistics
from .subject import Subject, checked
from .untouched import untouched

CHECKS: tuple[Callable[[Subject], Claim | Iterable[Claim]], ...] = (
    untouched,
    claims_of_figures,
    claims_of_statistics,
    claims_of_kernels,
    claims_of_maps,
    claims_of_conservation,
)


@gated
def prove(
    model: nn.Module,
    images: Tensor,
    *,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> Proof:
    """Check on your own model that it is left as it was, and that what is shown of it is true.

    Each claim is held against another way of finding the same: a forward without capture, a note of what each layer
    returned that Python's profiler makes, arithmetic of its own. The model itself is run in evaluation, in training, in
    inference mode and under autocast, up to 4 forwards and 2 backwards each (3 where gradients disagree), and put back
    to the bit: weights, gradients, buffers, modes, attributes and random generators. A compiled model is run as it is
    and in eager mode.

    Args:
        model: any module; of a lazy one run a forward first.
        images: `b c h w`, what the model takes; a few are enough.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple.
        keywords: keyword arguments of `forward`.
    Returns:
        A `Proof`: `holds`, `claims`, and a line for each claim when it is printed. `holds` of a claim is None if it
        could not be checked: the model never does twice the same, or does not run in that way.
    Raises:
        DtypeError: `model` is no module, or `images` is no tensor.
        DeviceError: `images` are on the meta device, which has no values.
        ShapeError: the model does not accept such images.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 2))
        >>> proof = prove(net, torch.zeros(2, 1, 8, 8))
        >>> proof.holds
        True
        >>> print(proof.claims[0])
        holds        Outputs are the same with capture as without: eval, train, inference mode, autocast
    """
    subject = Subject(model, batch_of(model, images), additional_forward_args, keywords)
    claims = [claim for check in CHECKS for claim in checked(subject, check)]
    return Proof(type(unwrap(model)).__name__, tuple(claims))
