"""The methods of attribution by name: Captum's classes behind one call each, and what each needs and takes."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torch_featviz.choices import check_method
from torch_featviz.errors import LayerError
from torch_featviz.inspect.cut import AnswerMap
from torch_featviz.model.layers import names_of
from torch_featviz.model.run import hooked, run

from .cam import cam
from .explained import Explained, chunks
from .rectify import Rectify, nonlinear, rectifies, refuse_others, word_of

Options = dict[str, Any]


class Job(NamedTuple):
    """One call of a method, on no more images than the memory holds."""

    explained: Explained
    where: AnswerMap  # the layers looked at
    at: str  # a single one of them in `explained.model`
    options: Options
    rows: int  # that may run at once

    @property
    def images(self) -> Tensor:
        """`b c ...`."""
        return self.explained.inputs.images


Run = Callable[[Job], Tensor]


class Method(NamedTuple):
    """How one method runs, and what it takes."""

    run: Run
    takes: frozenset[str]  # names of options
    layered: bool = False  # of one layer, which must be named
    rows: Callable[[Options], int] = lambda _: 1  # that one image needs
    at_once: int = 1  # of these, what cannot be run apart
    alone: bool = False  # each image by itself, lest its noise depend on the others


_OURS = frozenset(
    {"self", "forward_func", "model", "layer", "attribution_method", "inputs", "target", "additional_forward_args"}
    | {"return_convergence_delta", "show_progress", "internal_batch_size", "perturbations_per_eval"}
    | {"nt_samples_batch_size", "nt_type", "kwargs", "device_ids", "attribute_to_layer_input", "verbose"}
    | {"draw_baseline_from_distrib", "custom_attribution_func"}
)


@cache
def _captum() -> Any:
    import captum.attr  # type: ignore[import-untyped]  # noqa: PLC0415  it imports pyplot

    return captum.attr


def _captum_options(kind: str) -> tuple[frozenset[str], frozenset[str]]:
    """What the constructor takes, and what `attribute` takes."""
    cls = getattr(_captum(), kind)
    made, called = (frozenset(inspect.signature(f).parameters) - _OURS for f in (cls.__init__, cls.attribute))
    return made, called


def _direct(kind: str, batched: str | None = None) -> Run:
    """A method of Captum that is given the model and the images; `batched` is its word for the rows at once, or
    "gradients" where it has none."""

    def run(job: Job) -> Tensor:
        made, _ = _captum_options(kind)
        method = getattr(_captum(), kind)(job.explained, **{k: v for k, v in job.options.items() if k in made})
        given = {k: v for k, v in job.options.items() if k not in made}
        if batched == "gradients":
            _in_parts(method, job.rows)
        elif batched == "internal_batch_size":
            given[batched] = max(job.rows, len(job.images))
        elif batched is not None:
            given[batched] = max(1, job.rows // len(job.images))
        return _quietly(method, job, given)

    return run


def _quietly(method: Any, job: Job, given: Options) -> Tensor:
    """Captum warns that it hooks into the model; this one is ours to hook into."""
    target = job.explained.settle()
    if (numbers := job.explained.numbers) is not None:
        given = {**given, "additional_forward_args": (numbers,)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting .*backward hooks", UserWarning)
        attributions: Tensor = method.attribute(job.images.detach().requires_grad_(), target=target, **given)
    return attributions


def _in_parts(method: Any, rows: int) -> Any:
    """The method, with gradients of so many rows at once: Captum draws the noise of all, however little fits."""
    whole = method.gradient_func

    def gradients(forward: Any, inputs: Any, target: Any = None, more: Any = None) -> tuple[Tensor]:
        (images,) = inputs
        by_row = isinstance(target, Tensor) and target.numel() == len(images)
        parts = []
        for part in chunks(len(images), rows):
            wanted = target[part] if by_row else target
            extra = tuple(numbers[part] for numbers in more) if more else more
            parts.append(whole(forward, (images[part].detach().requires_grad_(),), wanted, extra)[0])
        return (torch.cat(parts),)

    method.gradient_func = gradients
    return method


def _smoothgrad(job: Job) -> Tensor:
    captum = _captum()
    noise = {"nt_samples": 25, "stdevs": 0.15 * float(job.images.max() - job.images.min()), "abs": True}
    tunnel = captum.NoiseTunnel(_in_parts(captum.Saliency(job.explained), job.rows))
    return _quietly(tunnel, job, {"nt_type": "smoothgrad", **noise, **job.options})


def _with(job: Job, run: Run, **defaults: Any) -> Tensor:
    return run(job._replace(options={**defaults, **job.options}))


def _gradient_shap(job: Job) -> Tensor:
    baselines = job.options.get("baselines", 0.0)
    if not isinstance(baselines, Tensor):
        baselines = torch.full_like(job.images, float(baselines))
    return _direct("GradientShap", "gradients")(job._replace(options={**job.options, "baselines": baselines}))


def _occlusion(job: Job) -> Tensor:
    channels, *sides = job.images.shape[1:]
    window = job.options.get("sliding_window_shapes", (channels, *(max(1, side // 8) for side in sides)))
    strides = (window[0], *(max(1, side // 2) for side in window[1:]))
    run = _direct("Occlusion", "perturbations_per_eval")
    return _with(job, run, sliding_window_shapes=window, strides=strides)


def _feature_ablation(job: Job) -> Tensor:
    return _with(job, _direct("FeatureAblation", "perturbations_per_eval"), feature_mask=squares(job.images))


def squares(images: Tensor) -> Tensor:
    """A feature mask that numbers eight parts along each axis of the images: `1 1 ...`, int64."""
    mask = torch.zeros((), dtype=torch.long, device=images.device)
    for side in images.shape[2:]:
        parts = min(8, side)
        mask = mask[..., None] * parts + torch.arange(side, device=images.device) * parts // side
    return mask[None, None]


def _rectified(job: Job, *, guided: bool) -> Tensor:
    leaf = job.images.detach().requires_grad_()
    with Rectify(guided=guided):
        figures = job.explained.score(leaf)
    refuse_others(figures)
    (gradient,) = torch.autograd.grad(figures.sum(), leaf)
    return gradient


def _guided_gradcam(job: Job) -> Tensor:
    maps = cam(job.explained, job.where, "gradcam", at=job.at).clamp(min=0)
    mode = job.options.get("interpolate_mode", "nearest")
    return F.interpolate(maps, job.images.shape[2:], mode=mode) * _rectified(job, guided=True)


def _deep_lift(job: Job) -> Tensor:
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR  # type: ignore[import-untyped]  # noqa: PLC0415

    job.explained.settle()  # that the model answers at all comes before how
    kinds = tuple(SUPPORTED_NON_LINEAR)
    _refuse_functions(job.explained, kinds)
    _refuse_reuse(job.explained, "deep_lift", lambda module: isinstance(module, kinds))
    return _direct("DeepLift")(job)


def _lrp(job: Job) -> Tensor:
    from captum.attr._core.lrp import SUPPORTED_NON_LINEAR_LAYERS  # type: ignore[import-untyped]  # noqa: PLC0415
    from captum.attr._utils.lrp_rules import EpsilonRule  # type: ignore[import-untyped]  # noqa: PLC0415

    classes, explained = job.explained.settle(), job.explained
    passing = tuple(SUPPORTED_NON_LINEAR_LAYERS)  # relevance passes them as it is, however often they run
    _refuse_reuse(job.explained, "lrp", lambda module: not (module._modules or isinstance(module, passing)))
    for module in job.explained.modules():
        if isinstance(module, (nn.Flatten, nn.Unflatten, nn.Identity)):  # the twin's; Captum knows no rule for them
            module.rule = EpsilonRule()
        for name, weight in module._parameters.items():
            if weight is not None:  # Captum writes to them, and the twin's lie in the model's own memory
                module._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
    sign: Tensor | float = 1.0
    if classes is not None and explained.binary:  # Captum multiplies by the output, and would take its sign twice
        explained.target = None
        sign = (2 * classes - 1).view(-1, *[1] * (job.images.dim() - 1))
    try:
        found = sign * _direct("LRP")(job)
    except (TypeError, AssertionError) as error:
        raise LayerError(f"lrp has no rule for a layer of this model; {error}") from error
    explained.classes = classes
    return found


def _refuse_reuse(explained: Explained, method: str, has_rule: Callable[[nn.Module], bool]) -> None:
    """Captum keeps one input and output for each layer, so that a second call would be explained by the other's."""
    names = {module: name for module, name in names_of(explained.model).items() if has_rule(module)}
    calls: Counter[nn.Module] = Counter()
    with hooked(names, before=lambda module, _inputs: calls.update([module])), torch.no_grad():
        run(explained.model, explained.inputs.rows(slice(1)))
    for module, times in calls.items():
        if times > 1:
            raise LayerError(
                f"{method} needs one layer per call, and layer {names[module]!r} ran {times} times in "
                "one forward; use one layer per call (weights can be shared), or choose integrated_gradients."
            )


class _Functions(TorchFunctionMode):
    """Notes nonlinear functions that are called outside of the layers of some kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.within = 0
        self.names: set[str] = set()

    def enter(self, *_: Any) -> None:
        """A layer of these kinds begins."""
        self.within += 1

    def leave(self, *_: Any) -> None:
        """It ends."""
        self.within -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = word_of(func)
        if not self.within and (nonlinear(name) or rectifies(name, args, kwargs)):
            self.names.add(name)
        return func(*args, **kwargs)


def _refuse_functions(explained: Explained, kinds: tuple[type[nn.Module], ...]) -> None:
    """DeepLift replaces the backward of layers; a nonlinearity that is none would pass the plain gradient."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in explained.modules()):
        raise LayerError("deep_lift does not work with scripted layers; pass the model before torch.jit.")
    mode = _Functions()
    layers = [module for module in explained.model.modules() if isinstance(module, kinds)]
    with hooked(layers, before=mode.enter, after=mode.leave), mode, torch.no_grad():
        run(explained.model, explained.inputs.rows(slice(1)))
    if mode.names:
        names = ", ".join(sorted(mode.names))
        raise LayerError(
            f"deep_lift has rules for layers only, and this model calls {names} as functions; use layers, such as "
            "nn.ReLU(), or choose integrated_gradients."
        )


def _cam(kind: str) -> Run:
    def run(job: Job) -> Tensor:
        return cam(job.explained, job.where, kind, at=job.at, **job.options)

    return run


_KINDS: dict[str, tuple[Run, str | None]] = {
    "saliency": (_direct("Saliency"), "Saliency"),
    "input_x_gradient": (_direct("InputXGradient"), "InputXGradient"),
    "integrated_gradients": (_direct("IntegratedGradients", "internal_batch_size"), "IntegratedGradients"),
    "smoothgrad": (_smoothgrad, "NoiseTunnel"),
    "deep_lift": (_deep_lift, "DeepLift"),
    "gradient_shap": (_gradient_shap, "GradientShap"),
    "guided_backprop": (partial(_rectified, guided=True), None),
    "deconvolution": (partial(_rectified, guided=False), None),
    "occlusion": (_occlusion, "Occlusion"),
    "feature_ablation": (_feature_ablation, "FeatureAblation"),
    "lrp": (_lrp, "LRP"),
    "layer_activation": (_cam("layer_activation"), None),
    "gradcam": (_cam("gradcam"), None),
    "hirescam": (_cam("hirescam"), None),
    "layercam": (_cam("layercam"), None),
    "guided_gradcam": (_guided_gradcam, None),
}
LAYERED = ("layer_activation", "gradcam", "hirescam", "layercam", "guided_gradcam")
_MANY: dict[str, Callable[[Options], int]] = {
    "integrated_gradients": lambda options: int(options.get("n_steps", 50)),
    "smoothgrad": lambda options: int(options.get("nt_samples", 25)),
    "gradient_shap": lambda options: int(options.get("n_samples", 5)),
    "deep_lift": lambda _: 2,
    "occlusion": lambda _: 1024,
    "feature_ablation": lambda _: 1024,
}


@cache
def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        OptionError: there is none.
    """
    check_method(name)
    run, captum = _KINDS[name]
    takes: frozenset[str] = frozenset()
    if captum is not None:
        takes = frozenset().union(*_captum_options(captum)) | ({"abs"} if name == "smoothgrad" else frozenset())
    elif name == "guided_gradcam":
        takes = frozenset({"interpolate_mode"})
    elif name in LAYERED:
        takes = frozenset({"reshape_transform"})
    at_once, alone = 2 if name == "deep_lift" else 1, name in ("smoothgrad", "gradient_shap")
    return Method(run, takes, name in LAYERED, _MANY.get(name, lambda _: 1), at_once, alone)
