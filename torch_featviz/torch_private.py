"""Every private name of PyTorch that this package uses, and what is done in a release that lacks it.

Nothing else in the package names a private part of PyTorch; a test holds that.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from types import CodeType, FrameType
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor, UntypedStorage, nn
from torch._C import _functorch
from torch._compile import _disable_dynamo
from torch._library import utils as _library_utils
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor  # noqa: PLC0414
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode  # noqa: PLC0414
from torch._subclasses.fake_tensor import unset_fake_temporarily as unset_fake_temporarily  # noqa: PLC0414
from torch.multiprocessing import reductions
from torch.nn.modules import module as _module
from torch.nn.modules.activation import __all__ as _activation_names
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils import _python_dispatch as _dispatch
from torch.utils._pytree import tree_leaves as tree_leaves  # noqa: PLC0414

# Kinds of layers

Convolution: TypeAlias = _ConvNd
ACTIVATIONS = tuple(_activation_names)  # names in torch.nn
DROPOUTS = (_DropoutNd,)
NORMS = (_NormBase,)
PADS = (_CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd)
POOLS = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd)

# Attributes of modules

CALL = "_call_impl"  # what `module(...)` runs: hooks and forward
COMPILED_CALL = "_compiled_call_impl"  # what it runs instead after `module.compile()`
CONV_FORWARD = "_conv_forward"  # what the forward of a convolution hands its weight to
ORIGINAL = "_orig_mod"  # the module that `torch.compile(module)` wraps
PACKED = "_packed_params"  # the weights of a quantised layer
GUARDS = "_guards_fn"  # the checks of a program that `torch.export` made


def is_optimized(module: nn.Module) -> bool:
    """Whether `module` is what `torch.compile(module)` returns, told without importing Dynamo."""
    return ORIGINAL in module._modules


# Hooks

_GLOBAL_HOOKS = tuple(f"_global_{kind}_hooks" for kind in ("forward_pre", "forward", "backward_pre", "backward"))


def any_global_hook() -> bool:
    """Whether hooks are registered for all modules at once."""
    ask = getattr(_module, "_has_any_global_hook", None)  # torch 2.7 and later
    if ask is not None:
        return bool(ask())
    return any(getattr(_module, name, None) for name in _GLOBAL_HOOKS)


P = ParamSpec("P")
R = TypeVar("R")

# Autograd and storages


def in_backward() -> bool:
    """Whether autograd's engine runs in this thread, as it does while a checkpoint is computed again."""
    return bool(torch._C._current_graph_task_id() != -1)


def viewed(tensor: Tensor) -> Tensor | None:
    """The tensor of which `tensor` is a view, for autograd; None where it is none."""
    return tensor._base


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Call `function` when the backward that runs now ends, after all that were asked for before it."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def storage_id(tensor: Tensor) -> int:
    """An identifier of the memory behind `tensor`, shared by all its views."""
    return int(tensor.untyped_storage()._cdata)


StorageWeakRef: Any = reductions.StorageWeakRef  # no other memory gets its identifier; the values may go
view_as = torch.Tensor._make_subclass  # (class, tensor, requires_grad): the same memory as a tensor of a class


def tensors_on(storage: UntypedStorage) -> int | None:
    """How many tensors hold this memory; None where PyTorch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return None if count is None else count(storage._cdata) - 1  # `storage` itself counts


# Many tensors in one launch


def clone_each(tensors: list[Tensor]) -> list[Tensor]:
    """A copy of each of some tensors of one dtype and device; on a GPU in a launch or two."""
    clone: Callable[[list[Tensor]], list[Tensor]] | None = getattr(torch, "_foreach_clone", None)
    if clone is not None:
        return clone(tensors)
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def subtract_each(tensors: list[Tensor], others: list[Tensor]) -> None:
    """Subtract from each of the first its counterpart, in place."""
    torch._foreach_sub_(tensors, others)


def norm_each(tensors: list[Tensor], dtype: torch.dtype = torch.float64) -> Sequence[Tensor]:
    """The Euclidean norm of each, added up in that dtype."""
    norms: Sequence[Tensor] = torch._foreach_norm(tensors, dtype=dtype) if tensors else ()
    return norms


# torch.func's wrappers

is_mapped = _functorch.is_functorch_wrapped_tensor


def unmapped(tensor: Tensor) -> Tensor:
    """What torch.func's grad, vmap and the like wrapped while they ran; the axes that vmap took away come first."""
    while is_mapped(tensor):
        axis = _functorch.maybe_get_bdim(tensor) if _functorch.is_batchedtensor(tensor) else 0
        tensor = _functorch.get_unwrapped(tensor)
        tensor = tensor.movedim(axis, 0) if axis else tensor
    return tensor


def made_by(node: Any) -> type | None:
    """The `torch.autograd.Function` whose backward a node of the graph is; None for those of torch itself."""
    return getattr(type(node), "_forward_cls", None)


def shape_of(node: Any) -> tuple[int, ...]:
    """Of what a node returned in the forward; empty where a release does not tell, and of nested tensors."""
    about = getattr(node, "_input_metadata", ())
    return tuple(about[0].shape) if about and not getattr(about[0], "is_nested_tensor", False) else ()


def results_of(node: Any) -> int:
    """How many results the operator returned whose gradients a node of autograd's graph is called with."""
    return len(getattr(node, "_input_metadata", (None,)))


def lower_bound(node: Any) -> Any:
    """The lower bound of a clamp, of which `node` is the backward; None where there is none."""
    return getattr(node, "_saved_min_val", getattr(node, "_saved_min", None))


def places_after_max_pool(node: Any) -> int | None:
    """Of the backward of a max pool, how many places it leaves of a channel; None where it chooses none, as if 1 × 1.

    None for all other nodes.
    """
    if "MaxPool" not in node.name():
        return None
    before, after = node._saved_self, getattr(node, "_saved_result1", getattr(node, "_saved_result", None))
    kernel = getattr(node, "_saved_kernel_size", None)  # of one number for all axes, too; none if adaptive
    if after is None or (before.shape == after.shape if kernel is None else set(kernel) == {1}):
        return None
    axes = int(node.name().split("MaxPool")[1][0])
    return int(after.shape[-axes:].numel())


# Operators


def schema_of(operator: Any) -> Any:
    """Name, arguments and what is written to."""
    return operator._schema


def returns_views(operator: Any) -> bool:
    """Whether all that an operator returns lies in memory that it was given, and it writes nothing."""
    schema = schema_of(operator)
    returned = [each.alias_info for each in schema.returns]
    return not schema.is_mutable and bool(returned) and all(each is not None for each in returned)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which Dynamo does not compile, nor what it calls.

    PyTorch imports Dynamo for that, which takes seconds. Here it is kept out where it was imported.
    """
    disabled = _disable_dynamo(function, recursive=True)  # imports Dynamo when it is called

    @wraps(function)
    def either(*args: P.args, **kwargs: P.kwargs) -> R:
        return (disabled if dynamo_is_imported() else function)(*args, **kwargs)

    return either


def is_higher_order(operator: Any) -> bool:
    """Whether it is given functions, as `torch.cond` and `flex_attention` are; no mode sees what these do."""
    return isinstance(operator, HigherOrderOperator)


class TorchDispatchMode(_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode whose `__torch_dispatch__` sees every operator, and is not compiled."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]
        cls.__torch_dispatch__ = uncompiled(cls.__torch_dispatch__)  # type: ignore[method-assign]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> TorchDispatchMode:
        if dynamo_is_imported():
            for function in (type(self).__torch_dispatch__, type(self).__exit__, _flags.read, _flags.write):
                skip_in_dynamo(function.__code__)
        with _flags.lock:
            if not _flags.modes:
                _flags.read()
            super().__enter__()  # type: ignore[no-untyped-call]
            _flags.modes.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        with _flags.lock:
            _flags.modes.remove(self)
            super().__exit__(*error)  # type: ignore[no-untyped-call]
            _flags.write()


class _Flags:
    """Whether a dispatch mode is on: PyTorch's flags, one for all threads. While they are set, Dynamo compiles nothing.

    A mode of PyTorch's puts back, at its end, what it found at its beginning. Of two threads whose modes overlap, the
    one that ends last so leaves Dynamo off for good. Here the flags are told from the modes that are on.
    """

    KINDS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("_is_in_torch_dispatch_mode", lambda _mode: True),
        ("_is_in_non_infra_torch_dispatch_mode", lambda mode: not mode.is_infra_mode()),
        ("_is_in_any_mode_without_ignore_compile_internals", lambda mode: not mode.ignore_compile_internals()),
    )

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.modes: list[TorchDispatchMode] = []  # of this package, in all threads
        self._before: dict[str, bool] = {}

    def read(self) -> None:
        """No mode of this package is on."""
        self._before = {name: getattr(_dispatch, name) for name, _ in self.KINDS if hasattr(_dispatch, name)}

    def write(self) -> None:
        """A mode has ended."""
        for name, counts in self.KINDS:
            if name in self._before:  # the last one is not in torch 2.6
                setattr(_dispatch, name, self._before[name] or any(map(counts, self.modes)))
        tell = getattr(_dispatch, "set_is_in_mode_without_ignore_compile_internals", None)
        if tell is not None:  # it is also kept in C++
            tell(_dispatch._is_in_any_mode_without_ignore_compile_internals)


_flags = _Flags()


READS_A_VALUE = torch.ops.aten._local_scalar_dense.default  # on the host, as item() does
UNKNOWN_VALUES = (DataDependentOutputException, DynamicOutputShapeException)  # of a tensor that has none
no_modes: Callable[[], Any] = _dispatch._disable_current_modes  # a block that dispatch modes see nothing of

# Modes for functions


def is_innermost(mode: TorchFunctionMode) -> bool:
    """Whether `mode` is the function mode entered last of those that are on."""
    depth = torch._C._len_torch_function_stack()
    return depth > 0 and torch._C._get_function_stack_at(depth - 1) is mode


def pop_innermost() -> None:
    """Take off the function mode entered last."""
    _pop_mode()  # type: ignore[no-untyped-call]


def push(mode: TorchFunctionMode) -> None:
    """Enter a function mode again."""
    _push_mode(mode)  # type: ignore[no-untyped-call]


# Dynamo, which is asked only where it was imported: importing it takes seconds


DISABLING_TAKES_A_REASON = "reason" in signature(torch.compiler.disable).parameters  # for errors; torch 2.6 does not


def dynamo_is_imported() -> bool:
    return "torch._dynamo" in sys.modules


def optimized_kinds() -> tuple[type[nn.Module], ...]:
    """The class of what `torch.compile(module)` returns, if there can be any such."""
    return (sys.modules["torch._dynamo.eval_frame"].OptimizedModule,) if dynamo_is_imported() else ()


def dynamo_config() -> Any:
    return sys.modules["torch._dynamo.config"]


def skip_in_dynamo(code: CodeType) -> None:
    """Have Dynamo leave functions of this code to eager mode."""
    sys.modules["torch._dynamo"].eval_frame.skip_code(code)


def dynamo_wraps(function: Any) -> Any:
    """The function that `torch.compile` or `torch.compiler.disable` wrapped in `function`; None if neither did."""
    return getattr(function, "_torchdynamo_orig_callable", None)


def runs_dynamo(frame: FrameType) -> bool:
    """Whether a frame of the stack is one of Dynamo's own: what it calls is compiled code, or code kept from it."""
    return str(frame.f_globals.get("__name__")).startswith("torch._dynamo.")


def is_of_dynamo(error: BaseException) -> bool:
    return type(error).__module__.startswith("torch._dynamo")


def hooks_in_graphs() -> bool:
    """Whether a compiled graph may tell of gradients by an operator that returns nothing.

    Inductor of older releases leaves such an operator out.
    """
    return hasattr(_library_utils, "is_impure")


def is_given_to_graph(tensor: Tensor) -> bool:
    """While a graph is differentiated: whether `tensor` is one of its inputs."""
    return tensor.grad_fn is None or type(tensor.grad_fn).__name__ == "Error"  # raised if that were differentiated


# CUDA graphs would run such an operator once, and never again
UNSAFE_IN_CUDA_GRAPHS = tuple(tag for tag in [getattr(torch.Tag, "cudagraph_unsafe", None)] if tag is not None)


def in_graph_pool(tensor: Tensor) -> bool:
    """Whether `tensor` may be the output of a CUDA graph: there is no asking the tensor, so every one while any is."""
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is None or tensor.device.type != "cuda":
        return False
    return trees.get_manager(tensor.device.index, create_if_none_exists=False) is not None


def take_back(library: Any) -> None:
    """Take back what a `torch.library.Library` has defined."""
    library._destroy()
