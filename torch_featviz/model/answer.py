"""What a model says of each image: the scores in its output, what they mean, and the figure that is explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from torch_featviz.errors import DtypeError, OptionError, ShapeError

from .inputs import Inputs
from .labels import names_of
from .run import run
from .values import tensors

Target: TypeAlias = int | str | Sequence[int] | Sequence[str] | Tensor | Callable[[Any], Tensor] | None
Kind: TypeAlias = Literal["logits", "probabilities", "label_logits", "label_probabilities", "figures"]
End: TypeAlias = Literal["softmax", "sigmoid", "linear"]

KINDS: tuple[Kind, ...] = get_args(Kind)
LABELS: tuple[Kind, ...] = ("label_logits", "label_probabilities")
_SLACK = 1e-3  # by which probabilities may miss 0, 1 and their sum
_ROUNDED = 1e-2  # by which the sum of what was bfloat16 once, or has two digits, may miss 1 if nothing else tells
_HINT = "pass target= a callable that returns shape 'b', one value per image"
_SCORES = ("logits", "out")  # in dictionaries and dataclasses: transformers' word, and torchvision's

# Nodes of autograd's graph, without "Backward0".
_BY_NODE: dict[str, End] = {
    **dict.fromkeys(("Softmax", "SafeSoftmax"), "softmax"),
    "Sigmoid": "sigmoid",
    **dict.fromkeys(("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Addmv", "Mv", "Linear", "Convolution"), "linear"),
    **dict.fromkeys(("LogSoftmax", "LogSigmoid"), "linear"),  # below 0, and logits like any others
}
_PASSING = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "T", "Transpose", "Permute", "Select"),
        *("Slice", "Index", "Clone", "ToCopy", "Alias", "Expand", "Split", "SplitWithSizes", "Unbind", "AsStrided"),
        *("Mean", "Sum", "Cat", "Stack", "Add", "Sub", "Rsub", "Mul", "Div", "Neg"),
        *("UpsampleBilinear2D", "UpsampleNearest2D"),
    )
)


@dataclass(frozen=True, eq=False)
class Answer:
    """The scores of a model for some images, and what they mean.

    Args:
        scores: `b n`, as the model returned them.
        kind: `"logits"` or `"probabilities"` of classes that exclude each other; a single column is that of the second
            of two classes. `"label_logits"` or `"label_probabilities"` of independent labels. `"figures"` are numbers
            that are not probabilities, as in regression.
    """

    scores: Tensor
    kind: Kind

    @property
    def binary(self) -> bool:
        """Whether one column speaks of two classes."""
        return is_binary(self.scores, self.kind)

    @property
    def squashed(self) -> Literal["softmax", "sigmoid"] | None:
        """What makes `values` of the scores; None where they are shown as they are."""
        if self.kind == "label_logits" or (self.kind == "logits" and self.binary):
            return "sigmoid"
        return "softmax" if self.kind == "logits" else None

    @property
    def values(self) -> Tensor:
        """The probability of each class or label, or the figures: `b k`, floats; `k` is `n`, or 2 for one column."""
        scores = self.scores if self.scores.dtype == torch.float64 else self.scores.float()
        if self.squashed == "softmax":
            return scores.softmax(1)
        if self.squashed == "sigmoid":
            return _both(scores).sigmoid() if self.binary else scores.sigmoid()
        if self.kind == "figures":
            return scores
        scores = scores.clamp(0, 1)
        return torch.cat([1 - scores, scores], 1) if self.binary else scores

    def log_odds(self, classes: Tensor) -> Tensor:
        """The logarithm of `p / (1 - p)` of one class of each image, `b`.

        Its gradient has the direction of that of `log p`, and does not vanish where the model is all but sure.

        Args:
            classes: `b`, columns of `values`.
        Example:
            >>> Answer(torch.tensor([[200.0, 0.0, -500.0]]), "logits").log_odds(torch.tensor([0]))
            tensor([200.])
        """
        k = classes[:, None]
        scores = self.scores if self.scores.dtype == torch.float64 else self.scores.float()
        if self.squashed == "softmax":
            return scores.gather(1, k)[:, 0] - scores.scatter(1, k, -torch.inf).logsumexp(1)
        if self.squashed == "sigmoid":
            return (_both(scores) if self.binary else scores).gather(1, k)[:, 0]
        chances, tiny = self.values, torch.finfo(scores.dtype).tiny
        own = chances.gather(1, k)[:, 0]
        rest = 1 - own if self.kind in LABELS else chances.scatter(1, k, 0).sum(1)
        return own.clamp(min=tiny).log() - rest.clamp(min=tiny).log()

    def names(self, classes: Sequence[str] = (), published: Sequence[str] = ()) -> tuple[str, ...]:
        """Return a name for each column of `values`; the opposite of a single class is "not" and its name.

        Args:
            classes: names in the order of the outputs; empty to take those published, or to number them.
            published: names that come with a model, and are left out where they are not of these outputs.
        Raises:
            ShapeError: the number of names is wrong.
        Example:
            >>> Answer(torch.zeros(3, 1), "logits").names(["cat"])
            ('not cat', 'cat')
        """
        classes, n = names_of(classes), self.scores.shape[1]
        if not classes and len(published) in ((1, 2) if self.binary else (n,)):
            classes = published
        if not classes:
            word = "output" if self.kind == "figures" else "label" if self.kind.startswith("label") else "class"
            alone = word == "output" and n == 1
            return (word,) if alone else tuple(f"{word} {k}" for k in range(2 if self.binary else n))
        known = named_both(classes) if self.binary else tuple(classes)
        if len(known) != (2 if self.binary else n):
            what = "1 or 2, for a single logit or probability" if self.binary else str(n)
            raise ShapeError(f"classes must name {what}, as the model returns, got {len(classes)}.")
        return known


def named_both(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of two classes, of which only the second may have been named."""
    return (f"not {classes[0]}", classes[0]) if len(classes) == 1 else tuple(classes)


def answer_of(
    output: Any,
    count: int,
    *,
    said: Kind | None = None,
    named: bool = True,
    ended: Callable[[], End | None] | None = None,
    unsure: Kind | None = None,
    hint: str = _HINT,
) -> Answer:
    """What a model answered to so many images; no other function judges it.

    What is said counts. Else rows that lie within 0 and 1 and sum to 1 are probabilities, and values outside of 0 and
    1 are logits. Values within 0 and 1 that do not sum to 1 may be either, or of several labels: the end of autograd's
    graph tells, and where there is none nobody can.

    Args:
        output: what the model returned.
        count: of images.
        said: what it is, by a user or a card.
        named: whether classes were named or asked for; else a single column is a figure.
        ended: asked where values do not tell: what the output was made by.
        unsure: taken where nothing tells.
        hint: what to do where there are no such rows.
    Raises:
        ShapeError, DtypeError: there is no row of scores for each image.
        OptionError: there is no such kind, the values do not fit it, or it cannot be told.
    Example:
        >>> answer_of(torch.tensor([[0.9, 0.1]]), 1).kind, answer_of(torch.tensor([[2.0, -1.0]]), 1).kind
        ('probabilities', 'logits')
    """
    scores = scores_of(output, count, hint)
    return Answer(scores, _kind(scores, said, named, ended, unsure))


def scores_of(output: Any, count: int, hint: str = _HINT) -> Tensor:
    """The scores in what a model returned for so many images, `b n`: a figure for each image is one column.

    Args:
        output: a tensor `b n` or `b`; or a dictionary, dataclass or tuple that holds it as `logits` or `out`, or holds
            no other tensor.
        count: of images.
        hint: what to do where there is no such tensor.
    Raises:
        ShapeError: its rows are not the images, or it is no row of scores for each.
        DtypeError: there is no such tensor, or several.
    """
    scores = _tensor_in(output)
    if scores is None or (scores is not output and not 1 <= scores.dim() <= 2):
        keys = ", ".join(map(repr, fields_of(output)))
        raise DtypeError(f"the model returns a {type(output).__name__}; {hint}{f' (it has {keys})' if keys else ''}.")
    if not scores.dim() and count == 1:
        scores = scores[None]
    if scores.dim() in (1, 2) and len(scores) != count:
        raise ShapeError(
            f"the model returns shape {tuple(scores.shape)} for {count} "
            f"image{'s' if count > 1 else ''}: the first axis "
            f"must be the batch. Keep the batch axis, with flatten(1) or squeeze(1); otherwise, {hint}."
        )
    if scores.dim() == 1:
        return scores[:, None]
    if scores.dim() != 2 or not scores.shape[1]:
        raise ShapeError(f"the model returns shape {tuple(scores.shape)}; {hint}.")
    return scores


def classes_of(target: Target, output: Any, n: int, said: Kind | None = None) -> Tensor | None:
    """The class to explain for each of `n` images; None where the output itself is the figure.

    Args:
        target: a class, one for each image, a callable on the output, or None for the class predicted. Where the model
            returns one figure for each image, None is that figure, and classes are 0, its opposite, and 1.
        output: what the model returned for these images.
        n: how many images there are.
        said: what the scores are, where it is known.
    Returns:
        `n` int64, or None.
    Raises:
        ShapeError: the output has no classes or other rows, or there are fewer or more targets than images.
        OptionError: a class that the output does not have.
        DtypeError: `target` or the output is of a wrong type.
    """
    if callable(target):
        return None
    scores = scores_of(output, n)
    if target is None:
        return None if scores.shape[1] == 1 else scores.argmax(1)
    last = 1 if is_binary(scores, said) else scores.shape[1] - 1
    if type(target) is int and 0 <= target <= last:
        return torch.full((n,), target, device=scores.device)
    # what is no tensor becomes one on the CPU, where a look at it costs nothing
    try:
        chosen = target if isinstance(target, Tensor) else torch.as_tensor(target, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"target must be a class number, or one per image, got {target!r:.80}.") from error
    if chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
        raise DtypeError(f"target must be a class number, or one per image, got {target!r}.")
    if chosen.dim() and chosen.shape != (n,):
        raise ShapeError(f"target must be one class, or {n} classes, one per image; got shape {tuple(chosen.shape)}.")
    if bool(((chosen < 0) | (chosen > last)).any()):
        raise OptionError(f"target must be from 0 to {last}, got {chosen.expand(n).tolist()}.")
    if chosen.dim():
        return chosen.to(scores.device, torch.long, copy=True)
    return torch.full((n,), int(chosen), device=scores.device)


def columns(output: Any, rows: int, said: Kind | None = None) -> Tensor:
    """A figure for each class and each of so many rows, `b k`: of one logit or probability, its negative and itself."""
    scores = scores_of(output, rows)
    return _both(scores) if is_binary(scores, said) else scores


def figures(output: Any, target: Target, classes: Tensor | None, rows: int, said: Kind | None = None) -> Tensor:
    """One figure for each of so many rows of the output, `b`: the class's, or what the callable makes.

    Raises:
        ShapeError: the callable returns another shape than `b`, or the output has other rows.
        DtypeError: the callable returns no tensor of floats.
    """
    if not callable(target):
        if classes is None:
            return scores_of(output, rows)[:, 0]
        each = columns(output, rows, said)
        return each[:, target] if type(target) is int else each.gather(1, classes[:, None])[:, 0]
    made = target(output)
    if not isinstance(made, Tensor) or not made.is_floating_point():
        raise DtypeError(f"the target callable must return a tensor 'b' of floats, got {type(made).__name__}.")
    if made.dim() == 2 and made.shape[1] == 1:
        made = made[:, 0]
    if made.shape != (rows,):
        raise ShapeError(f"the target callable must return shape 'b', one value per image, got {tuple(made.shape)}.")
    return made


def ending(net: nn.Module, one: Inputs) -> End | None:
    """By what a model makes its scores, as autograd's graph of one image tells; None where it does not.

    Args:
        net: a twin.
        one: the inputs of one image.
    """
    with torch.enable_grad():
        image = one.images.detach().clone()
        image.requires_grad_(image.is_floating_point())
        return end_of(scores_of(run(net, one.with_images(image)), len(image)))


def end_of(scores: Tensor) -> End | None:
    """What made all values that reach these scores by moves, sums, means and scaling; None if unlike or unknown.

    Example:
        >>> x = torch.rand(4, 3, requires_grad=True)
        >>> end_of((x @ x.T).softmax(1).mean(0)), end_of(x @ x.T), end_of(x.exp())
        ('softmax', 'linear', None)
    """
    found: set[End | None] = set()
    waiting, known = [scores.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        name = re.sub(r"Backward\d*$", "", node.name())
        if name in _PASSING:
            waiting += [parent for parent, _ in node.next_functions]
        elif "AccumulateGrad" not in name:  # what is learnt: a scale, a bias
            found.add(_BY_NODE.get(name))
    return found.pop() if len(found) == 1 else None


def _kind(
    scores: Tensor, said: Kind | None, named: bool, ended: Callable[[], End | None] | None, unsure: Kind | None
) -> Kind:
    several = scores.shape[1] > 1
    if said is None and not several and not named:
        return "figures"
    known = scores.detach()[~scores.detach().isnan().any(1)].double()  # a broken row says nothing of the others
    within = bool(len(known)) and bool(((known >= -_SLACK) & (known <= 1 + _SLACK)).all())
    if said is not None:
        _check_said(said, known, within)
        return said
    return _judged(known, ended, unsure) if within else "logits"


def _judged(known: Tensor, ended: Callable[[], End | None] | None, unsure: Kind | None) -> Kind:
    """Of rows that lie within 0 and 1."""
    several = known.shape[1] > 1
    off = float((known.sum(1) - 1).abs().max()) if several else torch.inf
    end = ended() if off > _SLACK and ended is not None else None
    if end is not None:
        alone: Kind = "label_probabilities" if several else "probabilities"
        return "logits" if end == "linear" else alone if end == "sigmoid" else "probabilities"
    if off <= _ROUNDED:
        return "probabilities"
    if unsure is not None:
        return unsure
    words = "answer='logits' or answer='probabilities'"
    if several:
        words = "answer='logits', or, of labels that may be true together, 'label_probabilities' or 'label_logits'"
    where = f"{_ends(known)}{' and rows do not sum to 1' if several else ''}"
    raise OptionError(f"scores lie {where}, which may be logits or probabilities; set {words}.")


def _check_said(said: Kind, known: Tensor, within: bool) -> None:
    if said not in KINDS:
        raise OptionError(f"answer must be one of {', '.join(KINDS)}, got {said!r}.")
    if not said.endswith("probabilities") or not len(known):
        return
    if not within:
        other = said.replace("probabilities", "logits")
        raise OptionError(
            f"answer={said!r}, but the scores lie {_ends(known)}; scores outside 0 to 1 need answer={other!r}."
        )
    most = float(known.sum(1).max())
    if said == "probabilities" and known.shape[1] > 1 and most > 1 + _ROUNDED:
        raise OptionError(
            f"answer='probabilities', but a row sums to {most:.3g} instead of 1; for independent labels set "
            "answer='label_probabilities'."
        )


def _ends(known: Tensor) -> str:
    low, high = (float(value) for value in known.aminmax())
    return f"from {low:.3g} to {high:.3g}"


def is_binary(scores: Tensor, kind: Kind | None) -> bool:
    """Whether one column speaks of two classes."""
    return scores.shape[1] == 1 and kind in (None, "logits", "probabilities")


def _both(logit: Tensor) -> Tensor:
    return torch.cat([-logit, logit], 1)


def _tensor_in(output: Any) -> Tensor | None:
    """The one tensor that can be meant."""
    if isinstance(output, Tensor):
        return output
    fields = fields_of(output)
    for name in _SCORES:
        if isinstance(found := fields.get(name), Tensor):
            return found
    found = list(tensors(output))
    return found[0] if len(found) == 1 else None


def fields_of(output: Any) -> dict[str, Any]:
    """What has a name in a dictionary, a named tuple or a dataclass."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    names: Any = getattr(output, "_fields", None) or getattr(output, "__dataclass_fields__", ())
    return {name: getattr(output, name, None) for name in names}
