"""Samples and accounts made by hand, and what is told of them."""

from torch_featviz.training import Bins, LayerFigures, ParameterFigures, Sample
from torch_featviz.training.account import Account
from torch_featviz.training.findings import Findings
from torch_featviz.training.records import StepRecord
from torch_featviz.training.watched import About


def layer(mean=0.0, std=1.0, low=-2.0, high=2.0, n=640, channels=10, nan=0, inf=0, saturated=None):
    return LayerFigures(mean, std, low, high, 0.0, 0, channels, nan, inf, Bins(-2.0, 4.0, (n,)), saturated)


def weight(grad=1.0, ratio=1e-3, unreached=0, size=100, norm=1.0, rows=64):
    return ParameterFigures(size, norm, grad, ratio, None, rows, unreached)


def still(norm=1.0, size=100):
    """A parameter that no optimizer moved."""
    return ParameterFigures(size, norm)


def about(axes=2, dtype="float32", table=False, rows=64, frozen=False):
    return About(axes, dtype, table, rows, frozen)


NAMES = ("a", "b", "c")
FINE = {name: layer() for name in NAMES}
MOVED = {f"{name}.weight": weight() for name in NAMES}
ABOUT = {name: about() for name in MOVED}


def account(*, rate=0.1, losses=(), start=0, **facts):
    """One of which the optimizer steps and reaches everything, unless `facts` say otherwise; losses of its records."""
    rates = facts.pop("rates", dict.fromkeys(MOVED, rate))
    records = tuple(StepRecord(start + i, 1.0, {} if loss is None else {"loss": loss}) for i, loss in enumerate(losses))
    return Account(**{"about": ABOUT, "rates": rates, "groups": (rate,), "leaves": NAMES, "records": records, **facts})


def sample(step=0, layers=None, parameters=None, inputs=None):
    return Sample(
        step, FINE if layers is None else layers, MOVED if parameters is None else parameters, {}, inputs or {}
    )


def told(*looks, every=100, findings=None, **options):
    """`(step, kind, names)` of each finding over looks: `(sample's parts, account)`, or one of the two."""
    findings = findings or Findings(**options)
    for i, look in enumerate(looks):
        parts, known = look if isinstance(look, tuple) else ((look, None) if isinstance(look, dict) else ({}, look))
        findings.look(sample(i * every, **parts), known or account())
    return [(each.step, each.kind, each.names) for each in findings.all]


def text(*looks, **options):
    """The text of the only finding."""
    findings = Findings()
    told(*looks, findings=findings, **options)
    (found,) = findings.all
    return found.text
