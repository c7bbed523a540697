"""`Monitor`: record activations, gradients and updates during training, and report what goes wrong."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from operator import index
from pathlib import Path
from typing import Any, Literal

from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from torch_featviz.capture.session import check_every
from torch_featviz.displayed import Displayed, within
from torch_featviz.errors import FileError, LayerError, OptionError, ShapeError
from torch_featviz.gate import check, gate, gated
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import Layers, unwrap
from torch_featviz.picture import Picture, Scale
from torch_featviz.schema import checked_state

from .account import Accounts, Pending
from .accumulation import Accumulation
from .figures import range_of
from .film import Film
from .findings import Globs
from .frames import Seen, check_scales, kernels_now, why_now
from .history import Finding, History
from .log import Log
from .look import Look
from .maps import Maps
from .noise import GradientNoise, NoiseScale
from .optimizers import Listener, Optimizers
from .records import PendingRecords, StepRecorder
from .report import report
from .sampling import Sampling
from .sinks import sinks_for
from .sinks.folder import FolderSink
from .state import MonitorState
from .step import Step
from .updates import Gradients
from .watched import Watched
from .writer import Writer


class Monitor(Displayed):
    """Watch one training step in `every` and report what goes wrong. The steps between cost next to nothing.

    For each layer it records the mean, std, extremes, share of zeros, dead channels, NaN and infinities, and a
    histogram of its activations. For each parameter it records the norm, the norm and histogram of the gradient that
    the optimizer got, and the size of the update. All of it is computed on the device and copied to the CPU in one
    transfer at the end of the step. A GPU is not waited for: its figures are read, and findings reported, when the next
    step ends or when you ask. The training stays the same bit by bit: outputs, gradients, weights and random numbers.

    Every trainable parameter is checked, and the model's inputs have figures too. In the steps between, the norm of all
    gradients and the logged loss are kept, so that the first step with NaN is known.

    Args:
        model: any module, in any mode, compiled or wrapped, as `capture` takes it.
        layers: as in `capture`. Default: all layers with parameters of their own (convolutions, linear, recurrent and
            attention layers, norms, embeddings), adapters, and bounded activations (tanh, sigmoid, their hard forms,
            softsign), also as functions in your forward; if there is none, all leaf modules.
        every: watch one step in `every`, beginning with the first.
        probe: a fixed batch of inputs: images, a tuple of positional arguments, or a mapping of keywords, images first.
            The layers' maps of it, in evaluation mode, are kept for films and sinks, tokens as maps of their places. A
            warning names the layers whose places are not known.
        why: a method of `attribute`: its heatmaps of the probe are kept too. Each sample then costs a backward, or many
            forwards.
        to: where to write during training, one or several: a folder, a TensorBoard `SummaryWriter`, a W&B or MLflow
            run, a Lightning logger, or a `Sink`. An existing run folder is resumed.
        optimizer: the model's optimizers, one or several. Default: each is found when it first steps.
        check_finite: also check the gradients and the logged `loss` of the steps between for NaN and infinity, so that
            the first such step is known. It costs one norm of the gradients per step.
        noise: estimate the gradient noise scale at each watched step; see `noise_scale`.
        ignore: findings that are not reported, by kind and layer or parameter, such as `{"dead": ["head*"]}`.
        scales: colour scales of films, by `"kernels/<layer>"`, `"maps/<layer>"` or `"why/<method>"`. Default for a
            film: one scale for all frames, except those that blow up. Default for pictures written during training:
            symmetric about 0, four times as wide as the first step needs; values beyond it have their own colour and
            are counted.
        bins: bins of the histograms, an even number.
        keep: maximum number of samples; see `History`.
        group: the processes whose data form one batch. Default: all, if `model` is wrapped in DistributedDataParallel
            or its parameters are sharded. Each process needs a monitor; the first one writes and warns.
    Raises:
        LayerError: `model` has no such layer.
        OptionError: `every`, `why`, `bins`, `keep` or `to` is invalid.
        ShapeError: `probe` is empty.
        DtypeError: `model` is not a module, `probe` does not begin with a tensor, or `model` cannot be copied for it.
        ShapeError: `model` does not accept `probe`.
        FileError: the folder holds something else.
    Warns:
        FindingWarning: each finding, once.
        FeatvizWarning: a sink fails, existing steps are replaced, or a layer has no figures (it returns a dictionary,
            for instance); each once.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> optimizer, watch = torch.optim.SGD(net.parameters(), 0.1), Monitor(net, every=2)
        >>> for images in torch.randn(4, 5, 1, 8, 8):
        ...     with watch.step():
        ...         net(images).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> watch.history.steps, list(watch.history[0].layers)
        ([0, 2], ['0', '3'])
        >>> len(watch.history.values("3.weight", "update_ratio"))
        2
        >>> watch.report(title="a first look").numpy().dtype
        dtype('uint8')
    """

    @gate("every", "bins", "keep", "optimizer", "ignore", "scales")
    def __init__(
        self,
        model: nn.Module,
        layers: Layers = None,
        *,
        every: int = 100,
        probe: Any = None,
        why: str | None = None,
        to: Any = None,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        check_finite: bool = True,
        noise: bool = False,
        ignore: Mapping[str, Globs] | None = None,
        scales: Mapping[str, Scale] | None = None,
        bins: int = 64,
        keep: int = 512,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        check_every(every, "steps")
        if why is not None and probe is None:
            raise OptionError(f"why={why!r} needs images to explain; pass them as probe=.")
        self.every = every
        self._model, self._why = model, why
        self._probe = None if probe is None else Inputs.of_batch(probe).copied()
        if self._probe is not None and not self._probe.images.numel():
            raise ShapeError(f"probe must hold at least one input, got shape {tuple(self._probe.images.shape)}.")
        self._maps = Maps(model, self._probe)
        self._watched = Watched(model, layers, bins)
        self._gradients = Gradients(bins)
        self._optimizers = Optimizers(optimizer)
        weakref.finalize(self, self._optimizers.stop).atexit = False  # let go of amid a step, it listens no more
        self._accounts = Accounts(model, self._watched, self._optimizers)
        self._recorder = StepRecorder(on=check_finite)
        self._accumulation = Accumulation(self._optimizers)
        self._sampling: Sampling | None = None  # of the step that is looked at
        self._number = -1  # of the step that began last
        check("scales", scales, Mapping[str, Any] | None)
        scales = dict(scales or {})
        check_scales(scales, self._watched.layers)
        self._group = _group_of(model) if group is None else group
        self._noise = GradientNoise(model, self._group) if noise else None
        first = self._group is None or dist.get_rank(self._group) == 0
        sinks = sinks_for(to) if first else []
        self._log = Log(History(keep), scales, Writer(sinks) if sinks else None, tells=first, ignore=ignore)
        self._end: weakref.finalize[[Log, int], Monitor] | None = None  # while a step waits to be read
        self._step, self._open = 0, False
        self._find()
        if probe is not None:
            self._pictured()  # what is wrong with it is said now, and not in the training
            if first:
                self._maps.tell()
        for folder in (sink for sink in sinks if isinstance(sink, FolderSink) and sink.holds_samples()):
            self._go_on_with(folder.folder)
        if self._group is not None:  # all look at the same steps
            numbers = [self._step]
            dist.broadcast_object_list(numbers, dist.get_global_rank(self._group, 0), self._group)
            (self._step,) = numbers
            self._number = self._step - 1

    def __repr__(self) -> str:
        return within(f"Monitor({type(unwrap(self._model)).__name__}, ", self._state(), ")")

    def _state(self) -> list[str]:
        """In words, how far it has come; nothing is waited for."""
        looks, found = len(self._log.history), len(self._log.findings.all)
        return [
            f"every={self.every}",
            f"{self._step:,} steps seen",
            f"{looks:,} samples",
            f"{len(self._watched.layers):,} layers",
            f"{found} finding{'s' * (found != 1)}",
        ]

    @property
    def history(self) -> History:
        """The samples so far. If a step is still open, the last sample is incomplete."""
        self._settle()
        if self._sampling is None or self._open or self._group is not None:
            return self._log.history
        look = self._look(self._sampling, Pending({}, [], {}), PendingRecords([]), {})  # as far as it came
        return self._log.history.followed_by(look.read()[0])

    @property
    def noise_scale(self) -> NoiseScale:
        """The gradient noise scale over the last watched steps, with its interval: the batch size up to which more
        examples pay.

        Raises:
            OptionError: `noise=True` was not set, or the model mixes the examples of a batch, or is compiled.
        """
        if self._noise is None:
            raise OptionError("the noise scale was not estimated; use Monitor(..., noise=True).")
        self._settle()
        return self._noise.scale

    @property
    def unfinished(self) -> bool:
        """Whether the last step has gradients that its optimizer has not used yet."""
        return self._accumulation.unfinished and not self._optimizers.stepped

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, each reported once; see `Findings`."""
        self._settle()
        return self._log.findings.all

    @contextmanager
    def step(self, number: int | None = None) -> Iterator[Step]:
        """Put this around one training step: its forwards, the backward, and `optimizer.step()`.

        A step is an optimizer step. If a block has gradients but no optimizer step, as with gradient accumulation, the
        next blocks belong to the same step; a watched step then includes all its batches, and the gradients as the
        optimizer got them. If an optimizer steps several times in one block, the last step is recorded. If a block
        raises, what was recorded so far is kept. Forwards in evaluation mode are skipped, unless the model is in
        evaluation mode when the block begins.

        Args:
            number: number of this step, for a resumed run. Default: the last one plus 1, from 0.
        Yields:
            A `Step`: `step.log(loss=loss)` records your own scalars.
        Raises:
            OptionError: another block of this monitor is open, or the number is not an integer from 0 on.
        """
        if self._open:
            raise OptionError("a step of this monitor is already open; leave its block first.")
        step = self._begin(None if number is None else _counted(number))
        self._open, raised = True, True
        try:
            self._listen()
            if self._sampling is None:
                yield step
            else:
                around = self._noise.block() if self._noise else nullcontext()
                with self._sampling.block(), around:
                    yield step
            raised = False
        finally:
            self._open = False
            self._optimizers.stop()
            self._recorder.logged(step.close())
            if self._sampling is not None:
                self._sampling.criterion = self._sampling.criterion or step.criterion
            self._end_block(raised=raised)

    def close(self) -> None:
        """Wait until everything is written, and close the sinks. Calling it again does nothing."""
        if not self._open:
            self._complete()
        self._log.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, _kind: object = None, error: BaseException | None = None, _trace: object = None) -> None:
        with suppress(*[Exception] * (error is not None)):
            self._complete()
        self._log.finish(quietly=error is not None)
        self.close()

    @gated
    def report(self, *, title: str = "") -> Picture:
        """Draw the report: loss and other scalars on top, then one row per layer with histograms, spread, dead
        channels, gradients and updates.

        Findings are marked at their step and listed below, and so are frozen parameters.

        Raises:
            ShapeError: no step was watched yet, or no layer ran and no scalar was logged.
        """
        return report(self.history, self.findings, title=title)

    @gated
    def film(self, layer: str, of: Literal["kernels", "maps", "why"] = "kernels", *, names: Sequence[str] = ()) -> Film:
        """Make a film of a layer's kernels, or of its feature maps of the probe, over the steps, on one scale.

        The scale holds all frames except those that blow up, which are marked. At most 32 steps are kept, thinned like
        the history. After a resume the film has only the new steps.

        Args:
            layer: a watched layer; for `"why"`, the method.
            of: `"kernels"`, `"maps"`, or `"why"` for heatmaps of the probe.
            names: of the probe's images; default `image 0`, `image 1`, and so on.
        Raises:
            LayerError: nothing was recorded of that layer.
            OptionError: fewer names than images, or the same name twice.
        """
        self._log.finish()
        name, frames = f"{of}/{layer}", self._log.frames
        if name not in frames:
            known = ", ".join(each.partition("/")[2] for each in frames if each.startswith(f"{of}/"))
            why = f", since it {self._maps.left_out[layer]}" if of == "maps" and layer in self._maps.left_out else ""
            hint = " maps need a probe; pass probe=." if of == "maps" and self._probe is None else ""
            raise LayerError(f"no {of} of {layer!r} were recorded{why}; recorded: {known or 'none'}.{hint}")
        return frames[name].film(() if of == "kernels" else names)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: plain numbers, strings, lists and dicts."""
        history = self.history
        samples = {"items": [sample.as_dict() for sample in history], **history.thinning()}
        state = {"step": self._step, "samples": samples, "findings": self._log.findings.state_dict()}
        return state if self._noise is None else {**state, "noise": self._noise.state_dict()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Monitor:
        """Itself: a model that holds its monitor may be copied."""
        return self

    @gated
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            OptionError: `state` does not come from `state_dict`; the monitor stays as it was.
        """
        known = checked_state(MonitorState, state)
        self._log.findings.load_state_dict(state["findings"])
        self._step, self._number = known.step, known.step - 1
        history = History(self.history.keep)
        history.go_on_from(known.samples.items, known.samples.stride, known.samples.seen)
        self._log.history = history
        if self._noise is not None and known.noise is not None:
            self._noise.load_state_dict(state["noise"])

    def _go_on_with(self, folder: Path) -> None:
        """Continue the run that an earlier process wrote."""
        self._log.history = History.load(folder, self.history.keep)
        for sample in self.history[-1:]:
            self._step, self._number = sample.step + 1, sample.step
            if unknown := [name for name in sample.layers if name not in self._watched.layers and not range_of(name)]:
                raise FileError(
                    f"{str(folder)!r} holds a run of a model with other layers, such as {unknown[0]!r}; "
                    "choose another folder."
                )

    # The steps, and the looks at some of them

    def _settle(self) -> None:
        """All that is known is added, also of a step whose optimizer came after its block."""
        if self._accumulation.unfinished and self._optimizers.stepped and not self._open and self._group is None:
            self._complete()
        self._log.finish()

    def _begin(self, number: int | None) -> Step:
        """A block begins: of the step that goes on, or of the next one."""
        if self.unfinished and (number is None or number >= self._number):  # it may count blocks
            self._step = max(self._step, (number or 0) + 1)
            self._accumulation.begin_block()
            return Step(self._number, looks=self._sampling is not None)
        self._complete()
        number = self._step if number is None else number
        due = number % self.every == 0 or 0 <= self._number // self.every < number // self.every  # one was left out
        self._number, self._step = number, number + 1
        self._accumulation.begin_step()
        self._optimizers.begin()
        self._recorder.begin(number)
        if due:
            self._find()
            self._accounts.begin()
            self._sampling = Sampling(number, self._watched, self._gradients)
        self._recorder.updates = self._sampling.updates if self._sampling else None
        self._accumulation.begin_block()
        return Step(number, looks=due)

    def _find(self) -> None:
        """Look again what the model consists of."""
        self._watched.refresh()
        everything = self._watched.everything.values()
        self._optimizers.of(everything)
        self._accumulation.of(everything)

    def _listen(self) -> None:
        listeners: list[Listener] = [self._recorder]
        looked_at = self._sampling is not None
        if looked_at or (self._number + 1) % self.every == 0:  # the one before a look tells whether it clears gradients
            listeners.append(self._accumulation.clearing)
        if self._sampling is not None:
            listeners.insert(0, self._sampling.updates)  # the recorder uses its norms
        self._optimizers.listen(listeners, fully=len(listeners) > 1)

    def _end_block(self, *, raised: bool) -> None:
        """A block is over: so is its step, unless an optimizer is still to come."""
        sampled = self._sampling is not None
        if raised:
            self._accumulation.unfinished = False
            if self._group is None:  # where one rank is gone, the others cannot be asked
                with suppress(Exception):  # the training's own is the one to see
                    self._complete()
            elif self._sampling is not None:
                self._sampling.end()
            self._sampling = None
        else:
            self._accumulation.end_block()
            if self._accumulation.unfinished:
                self._listen()  # it may step after the block
            else:
                self._complete()
        if raised or not sampled:
            self._log.finish(quietly=raised)

    def _complete(self) -> None:
        """The step is over; where it was looked at, begin to fetch its figures. On a CPU, and of a group, they are read
        at once."""
        self._optimizers.stop()
        sampling, self._sampling = self._sampling, None
        self._accumulation.unfinished = False
        if sampling is None:
            return
        sampling.end()
        self._recorder.returned(sampling.losses)
        account = self._accounts.end(self._accumulation, sampling.criterion)
        look = self._look(sampling, account, self._recorder.take(), self._pictured(), self._noise)
        wait = look.is_on_its_way and self._group is None
        self._log.take(look, wait=wait)
        if self._end is not None:
            self._end.detach()
        self._end = weakref.finalize(self, _finish, self._log, os.getpid()) if wait else None

    def _look(
        self,
        sampling: Sampling,
        account: Pending,
        records: PendingRecords,
        pictured: dict[str, Seen],
        noise: GradientNoise | None = None,
    ) -> Look:
        seen, inputs, left_out = sampling.figures(self._group)
        named = {name: why for name, why in left_out.items() if self._watched.is_asked_for(name)}
        return Look(
            sampling.step, seen, sampling.updates.moves, self._watched,
            inputs=inputs, account=account, records=records, pictured=pictured, left_out=named, noise=noise,
            group=self._group,
        )  # fmt: skip

    def _pictured(self) -> dict[str, Seen]:
        """What is drawn of this step."""
        layers = self._watched.drawn
        found = {f"kernels/{name}": each for name, each in kernels_now(layers).items()}
        if self._probe is not None:
            found |= {f"maps/{name}": each for name, each in self._maps.now(layers).items()}
            if self._why is not None:
                found[f"why/{self._why}"] = why_now(self._model, self._why, self._probe)
        return found


def _finish(log: Log, process: int) -> None:
    """The monitor goes, or the interpreter ends: the last step is added. A fork has no part in it."""
    if os.getpid() == process:
        log.finish()


def _group_of(model: nn.Module) -> dist.ProcessGroup | None:
    """All processes, where the model's data are spread over them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return dist.group.WORLD if wrapped or sharded else None


def _counted(number: Any) -> int:
    try:
        count = index(number)
    except TypeError:
        count = -1
    if count < 0:
        raise OptionError(f"the number of a step must be an integer from 0 on, got {number!r}.")
    return count
