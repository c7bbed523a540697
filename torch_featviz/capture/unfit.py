"""What stands in the way of a capture: layers that cannot be captured, and operators that would run several at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.fx import GraphModule

from torch_featviz.errors import LayerError, OptionError
from torch_featviz.model.layers import Layers, listed, split_call
from torch_featviz.torch_private import GUARDS


def refuse_scripted(kinds: set[type], layers: dict[str, nn.Module]) -> None:
    scripted = {kind for kind in kinds if issubclass(kind, torch.jit.ScriptModule)}
    for name, module in layers.items() if scripted else ():
        if type(module) in scripted:
            raise LayerError(
                f"layer {name!r} is a ScriptModule and cannot be captured; "
                f"capture the original model, before torch.jit."
            )


def refuse_flat(modules: list[nn.Module], kinds: set[type], layers: dict[str, nn.Module]) -> None:
    """A program that torch.export made has the layers as modules, for their weights, and calls none of them."""
    if not any(issubclass(kind, GraphModule) for kind in kinds):
        return
    for graph in modules:
        if isinstance(graph, GraphModule) and not any(
            node.op == "call_module" and node.target != GUARDS for node in graph.graph.nodes
        ):
            unused = set(graph.modules()) - {graph}
            for name, module in layers.items():
                if module in unused:
                    raise LayerError(
                        f"layer {name!r} is never called: torch.export flattened the model into one graph. Capture the "
                        "original model, or torch.export.unflatten(exported_program)."
                    )


def fused(modules: list[nn.Module], kinds: set[type], layers: dict[str, nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """Modules that would run captured layers in one fused operator, and the attribute that, when zero, prevents it."""
    switches = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
    if not any(issubclass(kind, tuple(switches)) for kind in kinds):
        return
    captured = set(layers.values())
    for module in modules:
        for kind, switch in switches.items():
            if isinstance(module, kind) and any(inner in captured for inner in module.modules() if inner is not module):
                yield module, switch


def refuse_calls(layers: Layers) -> None:
    """Statistics are of all calls of a layer, and `stop=True` ends at the first: a single call cannot be meant."""
    for layer in listed(layers):
        if isinstance(layer, str) and split_call(layer)[1] is not None:
            name = split_call(layer)[0]
            raise OptionError(
                f"{layer!r} is a single call of a layer; statistics and "
                f"stop=True need the whole layer. Use {name!r}, or "
                "leave out into= and stop=."
            )
