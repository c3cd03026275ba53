"""State of one fold's training: network, optimiser, data and progress, prepared anew or restored from a saved state."""

import itertools
import logging
import random
import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from multiattn.config import Experiment, Phase
from multiattn.model.network import make_network
from multiattn.runtime.devices import seed_everything
from multiattn.runtime.layout import STATE_FILE
from multiattn.runtime.processor import tune_cpu
from multiattn.training.data.crops import FoldCrops, class_weights, training_loader, validation_loader
from multiattn.training.engine.apex import ApexScaler, initialize_apex_o1, require_amp
from multiattn.training.engine.averaging import moving_average
from multiattn.training.engine.budget import Budget
from multiattn.training.engine.guard import guard_crops
from multiattn.training.engine.optimizer import make_optimizer, make_schedule
from multiattn.training.engine.ranks import Ranks, gather_objects, gather_rows
from multiattn.training.engine.run_folder import RunFolder, start_from
from multiattn.training.engine.step import TrainingStep, set_trainable
from multiattn.training.engine.sync_norm import synchronise_norms

logger = logging.getLogger(__name__)


class PhaseSpan(NamedTuple):
    """A phase and its epochs of the run: from `first` until before `end`."""

    phase: Phase
    first: int
    end: int


def phase_spans(experiment: Experiment) -> list[PhaseSpan]:
    """The phases of an experiment, one after the other."""
    ends = itertools.accumulate((phase.epochs for phase in experiment.schedule), initial=0)
    epochs = zip(experiment.schedule, itertools.pairwise(ends), strict=True)
    return [PhaseSpan(phase, first, end) for phase, (first, end) in epochs]


def span_at(experiment: Experiment, epoch: int) -> PhaseSpan:
    """The phase an epoch of the run belongs to.

    Raises:
        ValueError: the run has no such epoch.
    """
    for span in phase_spans(experiment):
        if span.first <= epoch < span.end:
            return span
    raise ValueError(f"epoch {epoch}: expected 0 to {experiment.num_epochs - 1}.")


@dataclass
class Progress:
    """Where a fold's training stands."""

    epoch: int = 0  # the one that is trained or comes next
    batch: int = 0  # its batches that are done, by every rank
    is_validated: bool = True  # since the last update
    seconds: float = 0.0  # of the epoch so far
    waited: float = 0.0  # of them for data
    history: list[dict[str, Any]] = field(default_factory=list)  # a record for each validation
    best: dict[str, Any] = field(default_factory=dict)  # value and candidate of the best validation; empty before it
    since_best: int = 0  # validations after that one
    top: list[dict[str, Any]] = field(default_factory=list)  # value and step of those whose weights are averaged
    guard_threshold: float | None = None  # the P(fake) above which crops of the guard are false alarms


NEVER = 2**53
"""A step that no epoch reaches, exact as float64."""


class LossMeter:
    """Sums of the loss terms over the steps of an epoch, on the device. Adding never waits for it; `means` does."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.names, self.count = device, (), 0
        self._sums = self._first_bad = torch.zeros(0, dtype=torch.float64, device=device)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in the scalars of one step; with other terms than before, by changed settings, the sums begin anew."""
        if self.names != tuple(terms):
            self.names, self.count = tuple(terms), 0
            self._sums = torch.zeros(len(terms), dtype=torch.float64, device=self.device)
            self._first_bad = torch.full_like(self._sums, NEVER)
        values = torch.stack([terms[name].double() for name in self.names])
        self._sums += values
        self._first_bad = torch.where(values.isfinite(), self._first_bad, self._first_bad.clamp(max=self.count))
        self.count += 1

    def means(self, ranks: Ranks) -> tuple[dict[str, float], dict[str, int]]:
        """Mean of each term over steps and ranks, and the first step (from 0) at which a term was not finite.

        Every rank gets the same answer, so when one diverges all stop and none waits for the others.
        """
        rows = gather_rows(torch.cat([self._sums, self._first_bad]).cpu(), ranks)
        sums, first_bad = rows[:, : len(self.names)], rows[:, len(self.names) :]
        means = (sums.mean(dim=0) / max(self.count, 1)).tolist()
        bad = {name: int(step) for name, step in zip(self.names, first_bad.amin(dim=0), strict=True) if step < NEVER}
        return dict(zip(self.names, means, strict=True)), bad

    def state(self, ranks: Ranks) -> dict[str, object]:
        """Every rank's sums, for a continued epoch."""
        return {"names": list(self.names), "count": self.count, "sums": gather_rows(self._sums.cpu(), ranks)}

    def restore(self, state: dict, ranks: Ranks) -> None:
        """Go on from `state`; from the mean of its ranks where their number has changed."""
        self.names, self.count = tuple(state["names"]), state["count"]
        sums = state["sums"]
        own = sums[ranks.rank] if len(sums) == ranks.world_size else sums.mean(dim=0)
        self._sums = own.to(self.device, copy=True)
        self._first_bad = torch.full_like(self._sums, NEVER)


@dataclass
class FoldTraining:
    """Network, losses, optimiser, data and progress of one fold."""

    experiment: Experiment
    crops: FoldCrops
    run: RunFolder
    ranks: Ranks
    device: torch.device
    precision: str
    step: TrainingStep
    loader: DataLoader
    validation: DataLoader
    scaler: torch.amp.GradScaler | ApexScaler
    average: ModelEmaV3 | None
    guard: DataLoader | None
    budget: Budget = field(default_factory=Budget)
    progress: Progress = field(default_factory=Progress)
    random_state: dict[str, Any] | None = None
    """This rank's generators, inside an epoch that is continued."""
    meter: LossMeter = field(init=False)
    span: PhaseSpan = field(init=False)
    module: nn.Module = field(init=False)
    optimizer: Optimizer = field(init=False)
    schedule: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.meter = LossMeter(self.device)

    def begin_phase(self, span: PhaseSpan) -> None:
        """Set up trainable weights, optimiser and schedule of a phase."""
        self.span = span
        self.step.zero_grad()  # of what is frozen from here on: clipping would count it until the run is continued
        set_trainable(self.step, span.phase)
        self.optimizer = make_optimizer(self.step, span.phase.optim)
        self.schedule = make_schedule(
            self.optimizer, span.phase.optim, steps_per_epoch=self.updates_in_epoch(span), epochs=span.phase.epochs
        )
        if self.precision == "apex-O1":
            _, self.optimizer, self.scaler = initialize_apex_o1(self.step, self.optimizer)
        self.module = self._wrap()

    def _wrap(self) -> nn.Module:
        if self.ranks.world_size == 1:
            return self.step
        # No static_graph: with it the first step's gradients were wrong (torch 2.14, gloo), and nothing was gained.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is new in torch 2.14
            return DistributedDataParallel(
                self.step,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # every rank computes the same ones: statistics and centres are synchronised
                gradient_as_bucket_view=True,
            )

    def updates_in_epoch(self, span: PhaseSpan) -> int:
        return -(-len(self.loader) // span.phase.optim.accumulate)

    @property
    def updates_of_phase(self) -> int:
        return (self.progress.epoch - self.span.first) * self.updates_in_epoch(self.span) + self.updates_of_epoch

    @property
    def updates_of_epoch(self) -> int:
        is_whole = self.progress.batch == len(self.loader)
        return self.updates_in_epoch(self.span) if is_whole else self.progress.batch // self.span.phase.optim.accumulate

    @property
    def updates(self) -> int:
        """Updates done in all phases."""
        earlier = [span for span in phase_spans(self.experiment) if span.end <= self.span.first]
        return sum(span.phase.epochs * self.updates_in_epoch(span) for span in earlier) + self.updates_of_phase

    @property
    def epochs_left(self) -> float:
        """Epochs of the run that are not trained yet."""
        return self.experiment.num_epochs - self.progress.epoch - self.progress.batch / len(self.loader)

    @property
    def global_batch(self) -> int:
        """Crops in one batch of all ranks."""
        return self.experiment.data.batch_size * self.ranks.world_size

    @property
    def learning_rate(self) -> float:
        """The highest of all groups of weights, now."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def samples_per_second(self) -> float:
        """Crops of all ranks in the epoch so far, by its time."""
        return self.progress.batch * self.global_batch / max(self.progress.seconds, 1e-9)

    @property
    def seconds_a_batch(self) -> float:
        """Mean of the epoch so far."""
        return self.progress.seconds / max(self.progress.batch, 1)

    @property
    def data_wait(self) -> float:
        """Share of the epoch's time that went into waiting for data."""
        return self.progress.waited / max(self.progress.seconds, 1e-9)

    @property
    def trains_backbone_alone(self) -> bool:
        """True where the present phase leaves the attention network out."""
        return self.span.phase.objective == "backbone"

    def end_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
        self.progress.seconds = self.progress.waited = 0.0
        self.meter = LossMeter(self.device)

    def state(self) -> dict[str, Any]:
        """All that training needs to go on, as tensors and plain types; a collective call of all ranks."""
        return {
            "step": self.step.state_dict(),
            "average": self.average.module.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.span.phase.optim.name.lower(),
            "parameters": self._parameter_names(),
            "phase": self.span.phase.name,
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state(self.ranks),
            "progress": vars(self.progress),
            "global_batch": self.global_batch,
            "random": gather_objects(random_state(self.device), self.ranks),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state, in the phase it belongs to; refuses the state of another experiment."""
        self.progress = progress_of(state, self.run)
        self.begin_phase(span_at(self.experiment, min(self.progress.epoch, self.experiment.num_epochs - 1)))
        try:
            self.step.load_state_dict(state["step"])
            if state["scaler"]:  # empty where nothing was scaled
                self.scaler.load_state_dict(state["scaler"])
            if self.average is not None:  # an average that was asked for on the way begins here
                self.average.module.load_state_dict(state["average"] or self.step.network.state_dict())
            self.meter.restore(state["meter"], self.ranks)
            # With another batch or more accumulated, which must have been allowed: the nearest place before.
            seen = min(self.progress.batch * state["global_batch"] // self.global_batch, len(self.loader))
            begun = seen % self.span.phase.optim.accumulate if seen < len(self.loader) else 0
            is_moved, self.progress.batch = seen - begun != self.progress.batch, seen - begun
            if not is_moved and 0 < self.progress.batch < len(self.loader):
                self.random_state = state["random"][self.ranks.rank]
            if state["phase"] == self.span.phase.name:  # a phase that begins has a new optimiser
                self._restore_optimizer(state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise not_this_state(self.run, error) from error

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Take up what the optimiser knows of each parameter; rates, decay and the like are those asked for now."""
        saved, fresh, names = state["optimizer"], self.optimizer.state_dict(), self._parameter_names()
        name, saved_names = self.span.phase.optim.name.lower(), state.get("parameters", names)
        is_same = state.get("optimizer_name", name) == name
        if "parameters" not in state:  # an earlier version's, which tells optimisers and layers apart by their looks
            looks = [
                [(len(group["params"]), {"betas", "momentum"} & set(group)) for group in one["param_groups"]]
                for one in (saved, fresh)
            ]
            is_same = looks[0] == looks[1]
        if not is_same:
            logger.warning("%s: the optimiser begins anew: what is saved is another one's.", self.run.model_name)
            return
        place = {name: number for number, name in enumerate(saved_names)}
        entries = {number: saved["state"].get(place.get(name)) for number, name in enumerate(names)}
        asked = ("params", "lr", "initial_lr", "lr_scale", "weight_decay")
        kept = {key: value for key, value in saved["param_groups"][0].items() if key not in asked}
        self.optimizer.load_state_dict(
            {
                "state": {number: entry for number, entry in entries.items() if entry is not None},
                "param_groups": [{**group, **kept} for group in fresh["param_groups"]],
            }
        )
        if self.updates_of_phase:
            self.schedule.step_update(self.updates_of_phase - 1)  # the rates of the latest update

    def _parameter_names(self) -> list[str]:
        """Names of the parameters in the optimiser's order."""
        names = {parameter: name for name, parameter in self.step.named_parameters()}
        return [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]


def progress_of(state: dict[str, Any], run: RunFolder) -> Progress:
    """The progress in a saved state; refuses the state of something else."""
    try:
        values = dict(state["progress"])
        if "is_judged" in values:  # its name in states of earlier versions
            values["is_validated"] = values.pop("is_judged")
        progress = Progress(**values)
        for name in ("epoch", "batch", "since_best"):
            if type(values.get(name, 0)) is not int or values.get(name, 0) < 0:
                raise TypeError(f"progress.{name}: expected a number from 0, found {values[name]!r}")
        return progress
    except (KeyError, TypeError, ValueError) as error:
        raise not_this_state(run, error) from error


def not_this_state(run: RunFolder, error: Exception) -> ValueError:
    return ValueError(
        f"{run.path / STATE_FILE}: not the state of this experiment: {error}. Is it the file of another run, or of an "
        "earlier version of the code? Delete it to train this fold from its beginning."
    )


def prepare(
    experiment: Experiment,
    crops: FoldCrops,
    run: RunFolder,
    *,
    device: torch.device,
    ranks: Ranks,
    state: dict[str, Any] | None,
) -> FoldTraining:
    """One fold's training, at its beginning or where `state` left it.

    Raises:
        ValueError: settings that do not fit the data, the machine or the state.
        FileNotFoundError: weights to start from that are not there.
    """
    if device.type == "cpu":
        tune_cpu()
    if experiment.precision == "apex-O1":
        require_amp(device)
    seed_everything(experiment.seed)
    load_weights = state is None and experiment.start_from is None
    weights = class_weights(crops, experiment.data)
    network = make_network(experiment.model, load_weights=load_weights)
    if state is None and experiment.start_from is not None:
        start_from(network, experiment.start_from, run.fold)
    step = TrainingStep(experiment, network=network, class_weights=weights).to(device)
    step = synchronise_norms(step, device)  # nothing in one process
    settings, average = experiment.average, None
    if settings.ema_decay > 0:
        average = moving_average(step.network, decay=settings.ema_decay, warmup=settings.ema_warmup)
    if experiment.compile:
        step.network.compile()
    precision, share = run.precision, {"rank": ranks.rank, "world_size": ranks.world_size}
    training = FoldTraining(
        experiment=experiment,
        crops=crops,
        run=run,
        ranks=ranks,
        device=device,
        precision=precision,
        step=step,
        loader=training_loader(crops, experiment.data, seed=experiment.seed, **share),
        validation=validation_loader(crops, experiment.data, **share),
        guard=guard_crops(experiment, run.path),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        average=average,
    )
    if state is None:
        training.begin_phase(span_at(experiment, 0))
    else:
        training.restore(state)
    return training


def random_state(device: torch.device) -> dict[str, Any]:
    """States of this process's generators, as plain types. What the loader's workers draw follows from the visit alone,
    so theirs need not be kept."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (libraries underneath draw from it)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where `random_state` was taken."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
