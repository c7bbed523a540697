"""The kernels that are drawn, beside what the layers answer."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import LayerError
from torch_featviz.model.layers import names_of, unwrap
from torch_featviz.model.untouched import isolated
from torch_featviz.model.weights import planes_of
from torch_featviz.views.kernels import kernels

from .claims import Claim
from .impulses import Conv, Probe, apart, bare, impulses, off_by_noise
from .judged import Unknown, Wrong, by_other_means, judged, listed, many
from .subject import Subject

_KINDS, _CHANNELS = 8, 3  # kinds of layers of which each tap is looked at, and channels of each
_LARGEST = 5_000_000  # weights of such a layer


def claims_of_kernels(subject: Subject) -> list[Claim]:
    """That kernels are those that convolutions use now; each layer runs by itself, and the model does not.

    All weights of each convolution in two dimensions are held against its answer to noise, and of one layer of each
    kind (kernel, stride, padding, dilation, groups) the first channels of each tap against the answer to one 1.
    """
    words = "Kernels are those that each convolution answers with"
    return [judged("kernels", words, lambda: _kernels(unwrap(subject.model)))]


def _kernels(net: nn.Module) -> str:
    layers = {name: module for module, name in names_of(net).items() if isinstance(module, Conv)}
    if not layers:
        raise Unknown(f"{type(net).__name__} has no convolution in two dimensions")
    kinds: dict[Any, list[str]] = {}
    for name in sorted(layers, key=lambda name: _size(layers[name])):
        kinds.setdefault(_kind(layers[name]), []).append(name)
    refused: list[str] = []
    looked_at = 0
    for number, names in enumerate(kinds.values()):
        probe: Probe | None = None
        for name in names:
            try:
                weight = _drawn(net, name)
            except LayerError as error:
                refused.append(f"{name}: {error}")
                continue
            with by_other_means(), isolated():
                layer = bare(layers[name])
                shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
                if weight.shape != shape:
                    raise Wrong(f"{name}: {tuple(weight.shape)} drawn, {shape} answered")
                if probe is None:
                    probe = Probe.of(layer)
                    if number < _KINDS and _size(layer) <= _LARGEST * layer.groups:
                        expected = impulses(layer, probe, _CHANNELS)
                        off = apart(weight[:, : expected.shape[1]], expected)
                        _refuse(name, off, weight, "its impulse response")
                _refuse(name, off_by_noise(layer, probe, weight), weight, "its answer to noise")
            looked_at += 1
    if refused and not looked_at:
        raise Unknown(listed(refused))
    kind = many(min(len(kinds), _KINDS), "kind")
    text = f"{kind}; a 1 at each tap of one layer each, noise in {many(looked_at, 'layer')}"
    return text + (f"; {len(refused)} refused: {listed(refused)}" if refused else "")


def _drawn(net: nn.Module, name: str) -> Tensor:
    """The kernels that `fv.kernels` draws, as numbers: a picture of them has colours only."""
    kernels(net, name, limit=2)
    return planes_of(net, name).weight.detach()


def _refuse(name: str, off: float, weight: Tensor, what: str) -> None:
    precise = weight.dtype in (torch.float32, torch.float64)
    if not off <= (1e-4 if precise else 16 * torch.finfo(weight.dtype).eps):
        raise Wrong(f"{name}: {off:.2g} of the largest away from {what}")


def _size(layer: Conv) -> int:
    return layer.in_channels * layer.out_channels * prod(layer.kernel_size)


def _kind(layer: Conv) -> tuple[Any, ...]:
    words = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "output_padding")
    return (type(layer), *(getattr(layer, word, None) for word in words), layer.groups > 1)
