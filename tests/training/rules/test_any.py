"""Whatever the figures, no rule raises, and what is remembered survives a checkpoint at any step."""

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.rules.samples import FINE, MOVED, account, layer, sample, weight
from torch_featviz.training import Bins, LayerFigures, ParameterFigures, Sample
from torch_featviz.training.account import Account
from torch_featviz.training.findings import Findings
from torch_featviz.training.records import StepRecord
from torch_featviz.training.rules import KINDS
from torch_featviz.training.watched import About

NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1e-3, -2.0, 5e-324, 1e-320, 1e-200, 3e38, 1e200, 1.7e308, -1e308]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.floats(1e-9, 1e5),
)
FINITE = NUMBERS.filter(math.isfinite)
COUNTS = st.sampled_from([0, 1, 3, 16, 64, 700])
LAYERS = st.sampled_from(["", "a", "a.b", "b", "act"])
PARAMETERS = st.sampled_from(["weight", "a.weight", "a.bias", "a.b.weight", "b.weight", "b.in_proj_weight"])


def layers_of(numbers):
    return st.builds(
        LayerFigures, numbers, numbers, numbers, numbers, zero_share=st.floats(0, 1), dead=COUNTS, channels=COUNTS,
        nan=st.sampled_from([0, 0, 0, 0, 0, 1]), inf=st.just(0),
        histogram=st.builds(Bins, FINITE, FINITE, st.tuples(COUNTS, COUNTS)),
        saturated=st.none() | st.floats(0, 1),
    )  # fmt: skip


def parameters_of(numbers):
    maybe = st.none() | numbers
    ratio = maybe | st.just(math.inf)  # of what began at 0
    return st.builds(
        ParameterFigures, st.integers(0, 3000), numbers, maybe, ratio, st.none(), st.none() | COUNTS, st.none() | COUNTS
    )


def names(strategy):
    return st.lists(strategy, max_size=4, unique=True).map(tuple)


def looks_of(numbers):
    accounts = st.builds(
        Account, about=st.dictionaries(PARAMETERS, st.builds(
            About, st.integers(0, 4), st.sampled_from(["float32", "bfloat16", "float16", "float64"]), st.booleans(),
            COUNTS, st.booleans())),
        stepped=st.booleans(), thrown_away=st.booleans(), unheld=names(PARAMETERS), optimizers=st.integers(0, 3),
        uncleared=st.booleans(), others=names(st.sampled_from(["SGD", "Adam"])), copies=st.booleans(),
        unreached=names(PARAMETERS), rates=st.dictionaries(PARAMETERS, numbers),
        groups=st.lists(numbers, max_size=3).map(tuple),
        before=st.dictionaries(PARAMETERS, numbers), drawn=names(PARAMETERS),
        idle_norms=names(LAYERS), leaves=names(LAYERS),
        records=st.lists(st.builds(StepRecord, st.integers(0, 9), st.none() | numbers, st.dictionaries(
            st.sampled_from(["loss", "accuracy"]), numbers)), max_size=3).map(tuple),
    )  # fmt: skip
    samples = st.builds(
        Sample, st.just(0), st.dictionaries(LAYERS, layers_of(numbers), max_size=4),
        st.dictionaries(PARAMETERS, parameters_of(numbers), max_size=5), st.just({}),
        st.dictionaries(st.sampled_from(["inputs", "inputs/1"]), layers_of(numbers)),
    )  # fmt: skip
    return st.lists(st.tuples(samples, st.none() | accounts), min_size=1, max_size=7)


def of_one_step(look, step):
    sample, account = look
    return Sample(step, sample.layers, sample.parameters, sample.scalars, sample.inputs), account


def check(looks, cut):
    whole, resumed = Findings(), Findings()
    for i, look in enumerate(looks):
        step = i * 40
        if i == cut:
            state = json.loads(json.dumps(resumed.state_dict(), allow_nan=False))
            resumed = Findings()
            resumed.load_state_dict(state)
        new = whole.look(*of_one_step(look, step))
        assert new == resumed.look(*of_one_step(look, step))
        for finding in new:
            assert finding.kind in KINDS
            assert finding.names
            assert all(isinstance(name, str) for name in finding.names)
            assert "{" not in finding.text
    told = [(each.kind, name) for each in whole.all for name in each.names]
    assert len(told) == len(set(told))  # each once
    assert str(whole.state_dict()) == str(resumed.state_dict())


def test_figures_whose_squares_are_infinite_raise_nothing():
    """As of a float64 model that diverges; and all of them survive a checkpoint."""
    huge = layer(mean=1e200, std=1e200, low=-1e300, high=1e300)
    known = account(losses=[1.7e308, 1.7e308], rate=math.inf)
    parameters = {**MOVED, "b.weight": weight(grad=1.7e308), "c.weight": weight(grad=1.7e308, ratio=math.inf)}
    look = sample(0, {**FINE, "c": huge}, parameters, {"inputs": huge}), known
    check([look] * 5, 3)
    calm = Findings()
    calm.look(*of_one_step(look, 0))
    assert "inf" in str(calm.state_dict()["memory"]["curve"])


@settings(max_examples=100)
@given(looks_of(NUMBERS), st.integers(0, 6))
def test_any_figures_raise_nothing(looks, cut):
    check(looks, cut)


@settings(max_examples=100)
@given(looks_of(FINITE), st.integers(0, 6))
def test_finite_figures_raise_nothing(looks, cut):
    """Rules are asked more often, as nothing is broken."""
    check(looks, cut)
