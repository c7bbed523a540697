"""What is read back, spoilt in one place: it is taken as it was, or refused in words."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.spoilt import spoilt
from torch_featviz.errors import DtypeError, FileError, OptionError
from torch_featviz.training import History, Monitor, Sample
from torch_featviz.training.findings import Findings, read_findings
from torch_featviz.training.history import Finding, read_lines
from torch_featviz.training.sinks import Record
from torch_featviz.training.sinks.folder import FolderSink
from torch_featviz.training.state import read_state

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def trained(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Monitor(net, every=1, bins=4, noise=True, **options) as watch:
        for _ in range(3):
            with watch.step() as step:
                loss = net(torch.randn(5, 3)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step.log(loss=loss, odd=math.inf)
    return net, watch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    _, watch = trained()
    sink = FolderSink(folder)
    for sample in watch.history:
        sink.write(Record(sample, (Finding(sample.step, "dead", ("0", "2"), "so"),)))
    return folder, [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def said(call, error):
    """What a call returns, or what its error says."""
    try:
        return call()
    except error as refused:
        return str(refused)


def write(folder, lines):
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@QUICK
@given(st.data())
def test_a_line_is_read_as_it_is_or_refused(run, tmp_path, data):
    lines = list(run[1])
    number = data.draw(st.integers(0, 2))
    lines[number] = spoilt(lines[number], data.draw)
    write(tmp_path, lines)
    read = said(lambda: list(read_lines(tmp_path)), FileError)
    if isinstance(read, str):
        after = isinstance(lines[number], dict) and f"line {number + 2}: step" in read  # which is no longer after it
        assert after or f"samples.jsonl' was not written by a Monitor of this version: line {number + 1}" in read
        return
    told = [Record(line.sample, line.findings).as_dict() for line in read]
    plain = [{"scalars": {}, "inputs": {}, "findings": [], **line} for line in lines]
    defaults = {"saturated": None, "grad_norm": None, "update_ratio": None, "grad_histogram": None}
    defaults |= {"outputs": None, "unreached": None, "frozen": False}
    for a, b in zip(told, plain, strict=True):
        for part in ("layers", "inputs", "parameters"):
            for name, figures in a[part].items():
                read_back = {**{key: defaults[key] for key in figures if key in defaults}, **b[part][name]}
                assert as_json(figures) == as_json(read_back)
        assert as_json([a["step"], a["scalars"], a["findings"]]) == as_json([b["step"], b["scalars"], b["findings"]])


def as_json(value):
    """Numbers as floats, and lists: as JSON does not tell them apart."""
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    return float(value) if type(value) is int else value


@QUICK
@given(st.binary(max_size=300), st.integers(0, 2), st.booleans())
def test_any_bytes_in_a_file_are_refused_in_words(run, tmp_path, noise, line, inside):
    good = [json.dumps(each).encode() for each in run[1]]
    good[line] = good[line][: len(noise)] + noise + good[line][len(noise) :] if inside else noise
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(good) + b"\n")
    for read in (History.load, read_findings):
        answer = said(lambda read=read: read(tmp_path), FileError)
        assert not isinstance(answer, str) or "line" in answer


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "value must be JSON that nests a few levels deep"),
        ("{" + '"a":' * 3, "value must be JSON, got"),
        ("[]", "value must be an object, got a list"),
        ('{"step": 1, "step": 2}', "step must be an object whose keys differ"),
        ('{"step": NaN}', "value must be JSON, which has no NaN; a number that is not finite is written as"),
        ('{"step": 1.0, "layers": {}, "parameters": {}}', r"step must be a whole number of at least 0, got 1\.0"),
        ('{"step": true, "layers": {}, "parameters": {}}', "step must be a whole number of at least 0, got True"),
        ('{"step": 1, "layers": [], "parameters": {}}', "layers must be an object, got a list of 0"),
        ('{"step": 1, "layers": {}}', "parameters must be there, but is missing"),
        ('{"step": 1, "layers": {}, "parameters": {}, "x": 1}', "x must be absent: 'x' is no field"),
        (
            '{"step": 1, "layers": {}, "parameters": {"a.b": {"size": -1, "norm": 0}}}',
            r"parameters\.a\.b\.size must",
        ),
        ('{"step": 1, "layers": {}, "parameters": {}, "scalars": {"a": "x"}}', r"scalars\.a must be a number, got 'x'"),
        ('{"step": 1, "layers": {}, "parameters": {}, "pictures": [1]}', r"pictures\[0\] must be a string, got 1"),
        ("9" * 5000, "value must be JSON, got"),
    ],
)
def test_line_and_field_are_named(tmp_path, text, says):
    start = '{"step": 0, "layers": {}, "parameters": {}}\n'
    (tmp_path / "samples.jsonl").write_text(start + text + "\n")
    with pytest.raises(FileError, match=rf"samples\.jsonl' was not written by .*: line 2: {says}"):
        History.load(tmp_path)


def test_steps_increase(run, tmp_path):
    for order, says in (((0, 2, 1), "line 3: step must be more than 2, .*, got 1"), ((0, 0), "line 2: .* got 0")):
        write(tmp_path, [run[1][i] for i in order])
        with pytest.raises(FileError, match=says):
            History.load(tmp_path)


@pytest.fixture(scope="module")
def state():
    return json.loads(json.dumps(trained()[1].state_dict(), allow_nan=False))


@QUICK
@given(st.data())
def test_a_state_is_taken_as_it_is_or_refused_and_nothing_changes(state, tmp_path, data):
    other = spoilt(state, data.draw)
    watch = Monitor(nn.Linear(1, 1), bins=4, noise=True)
    before = watch.state_dict()
    (tmp_path / "state.json").write_text(json.dumps(other))
    answer = said(lambda: watch.load_state_dict(other), OptionError if isinstance(other, dict) else DtypeError)
    if isinstance(answer, str):
        assert answer.startswith("state must be what state_dict() returned: " if isinstance(other, dict) else "state")
        assert watch.state_dict() == before
        with pytest.raises(FileError, match=r"state\.json' holds no state of a Monitor: .*; delete it to start anew"):
            read_state(tmp_path / "state.json")
        return
    assert read_state(tmp_path / "state.json") is not None
    now = watch.state_dict()
    for part in ("step", "samples"):
        if other.get(part) == state[part]:
            assert as_json(now[part]) == as_json(other[part])
    with watch.step():  # and it goes on
        pass
    assert str(watch.noise_scale)


def test_states_of_findings_have_lists_of_their_lengths():
    findings = Findings()
    good = findings.state_dict()
    for name, value in (("curve", [[1.0]]), ("rates", {"a": [1.0]}), ("ranges", {"a": [1.0, 2.0, 3.0]})):
        with pytest.raises(OptionError, match=rf"memory\.{name} must be made of lists of \d numbers"):
            findings.load_state_dict({**good, "memory": {**good["memory"], name: value}})
    with pytest.raises(OptionError, match=r"rows must be a list of .*, one for each rule, got 1"):
        findings.load_state_dict({**good, "rows": [{}]})
    assert findings.state_dict() == good


@pytest.mark.parametrize(
    ("bins", "says"),
    [
        ({"start": 0.0, "width": 0.0, "counts": [0, 1]}, "above 0, and at least .* got 0"),
        ({"start": 0.0, "width": "inf", "counts": [1]}, "above 0, .* got inf"),
        ({"start": 0.0, "width": "nan", "counts": [1]}, "above 0, .* got nan"),
        ({"start": "nan", "width": 1.0, "counts": [1]}, r".* \(start is nan\), got 1"),
        ({"start": 1.0, "width": 1e-300, "counts": [1, 1]}, r".* \(start is 1\), got 1e-300"),
    ],
)
def test_bins_that_cannot_be_told_apart(run, bins, says):
    layer = next(iter(run[1][0]["layers"]))
    figures = {**run[1][0]["layers"][layer], "histogram": bins}
    plain = {"step": 0, "parameters": {}, "layers": {layer: figures}}
    with pytest.raises(OptionError, match=rf"layers\.{layer}\.histogram\.width must be {says}"):
        Sample.from_dict(plain)
    empty = {**bins, "counts": [0] * len(bins["counts"])}
    assert Sample.from_dict({**plain, "layers": {layer: {**figures, "histogram": empty}}}).step == 0


def test_a_state_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*nothing"):
        read_state(tmp_path / "nothing")
