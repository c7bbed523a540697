"""What a layer does to channels, by what it is."""

from __future__ import annotations

from torch import nn

from torch_featviz.torch_private import ACTIVATIONS, DROPOUTS, NORMS, PADS, POOLS, Convolution

_NORMS = (*NORMS, nn.GroupNorm, nn.LocalResponseNorm)
_MIXING = ("MultiheadAttention", "Softmax", "LogSoftmax", "Softmin", "Softmax2d", "GLU")
CHANNELS_FIRST = (*POOLS, *_NORMS)  # layers that take `b k ...`, as convolutions do
CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)  # layers that take `b ... k`
_CHANNELS_LAST = (*CHANNELS_LAST, nn.Embedding, nn.RNNBase, nn.Bilinear)
_ACTIVE = tuple(getattr(nn, name) for name in ACTIVATIONS if name not in _MIXING)

_POSITIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax, nn.Softmax2d)
_POSITIVE_CALLS = ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "softmax")
_CHANNELWISE_CALLS = frozenset(
    (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardtanh", "hardswish"),
        *("tanh", "dropout", "feature_dropout", "clamp"),
        *("sigmoid", "hardsigmoid", "softplus", "softsign", "logsigmoid"),
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d", "batch_norm"),
        *("instance_norm", "group_norm", "local_response_norm", "interpolate", "boolean_dispatch"),
    )
)
_MOVES = frozenset(
    (
        *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous", "expand", "expand_as", "t"),
        *("unsqueeze", "squeeze", "getitem", "chunk", "split", "unbind", "clone", "detach", "dropout", "to", "float"),
        *("type_as", "repeat", "pad", "movedim", "swapaxes", "narrow", "select", "view_as", "reshape_as", "rearrange"),
        *("zeros_like", "ones_like", "new_zeros", "as_tensor", "tensor", "arange", "size", "zeros", "ones", "full"),
    )
)


def call_of(name: str) -> str:
    """The function in the name of a call.

    Example:
        >>> call_of("layer1.0.bn2.add_#2")
        'add_'
    """
    return name.rpartition("#")[0].rpartition(".")[2] if "#" in name else name.rpartition(".")[2]


def moves_only(call: str) -> bool:
    """Whether a function computes nothing, and only moves, repeats or makes values."""
    return call.rstrip("_()") in _MOVES


def is_channelwise(module: nn.Module | None, call: str = "") -> bool:
    """Whether channel i of what is returned is channel i of what was given: pooled, bent, or weighed by a norm."""
    if module is None:
        return call.rstrip("_()") in _CHANNELWISE_CALLS
    return isinstance(module, (*POOLS, *_NORMS, *_ACTIVE, *PADS, *DROPOUTS, nn.Identity, nn.Upsample))


def channels_last_of(model: nn.Module) -> dict[str, bool]:
    """Whether each layer, by name, has its channels on the last axis, by its kind; of kinds that say nothing the layer
    registered before it decides."""
    last, answers = False, {}
    for name, module in model.named_modules():
        if isinstance(module, _CHANNELS_LAST):
            last = True
        elif isinstance(module, (Convolution, *CHANNELS_FIRST)):
            last = False
        answers[name] = last
    return answers


def is_positive(module: nn.Module | None, call: str) -> bool:
    """Whether nothing that is returned can be below 0."""
    return call.rstrip("_()") in _POSITIVE_CALLS if module is None else isinstance(module, _POSITIVE)


def is_sigmoid(module: nn.Module | None, call: str) -> bool:
    """Whether each thing that is returned is a probability of its own."""
    return call.rstrip("_()") == "sigmoid" if module is None else isinstance(module, nn.Sigmoid)
