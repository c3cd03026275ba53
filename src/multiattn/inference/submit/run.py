"""From inputs to the submission folder: a submission run, as `multiattn submit` and the Kaggle notebook call it."""

import gc
import logging
import os
import pickle
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from multiattn.datasets.manifest import clips_below, is_video_name
from multiattn.inference.outside import read_answers
from multiattn.inference.predictor import out_of_fold_figures
from multiattn.inference.runs import TrainedModel, find_models, group_by_recipe, trained_on, with_tta
from multiattn.inference.runtimes import with_runtime
from multiattn.inference.scoring_file import read_answers_out_of_fold, require_rule_fits
from multiattn.inference.submit.classifier import by_importance
from multiattn.inference.submit.cluster import Cluster
from multiattn.inference.submit.delivery import (
    NOT_THERE,
    VIDEOS_AT_ONCE,
    Delivery,
    SubmitResult,
    reasons,
)
from multiattn.inference.submit.extraction import Work
from multiattn.inference.submit.frames import FrameFiles, frame_table
from multiattn.inference.submit.inputs import KAGGLE_WORKING, SubmitInputs
from multiattn.inference.submit.plan import Level, Plan, Rates, levels_of
from multiattn.inference.submit.predict import STAGES, PredictionPass, Setup, SystematicFailureError
from multiattn.inference.submit.results import SEARCHED, Facts, ResultStore, VideoResult, overall, results_work
from multiattn.model.precision import known_precision
from multiattn.runtime.devices import default_jobs, device_names, pick_devices
from multiattn.runtime.files import exclusive_folder
from multiattn.runtime.layout import VIDEO_HELD_OUT_FILE
from multiattn.runtime.processor import collect_seldom, process_seconds
from multiattn.runtime.signals import Interruption, listening
from multiattn.runtime.text_tables import counted
from multiattn.scoring.distances import Outside, crop_distances
from multiattn.tables import OUT_OF_FOLD, path_fault
from multiattn.video.extraction.extract import prediction_settings

logger = logging.getLogger(__name__)

KAGGLE_WORKING_BYTES = 19.5e9
"""Room that a notebook may write to; the disk below it is larger."""
BYTES_A_LOGIT, CROPS_A_FRAME = 64, 2
"""Bounds, as a rule, by which the journal and the table together are estimated."""
WRITINGS_APART = 10
"""Times that a writing of the submission takes, before the next one: of a million videos it takes half a minute."""


def run_submit(inputs: SubmitInputs, *, for_frames: bool = False) -> SubmitResult:
    """Predict every video to answer with every model, and write the submission folder, within the budget.

    README.md, A submission, says what it guarantees.

    Args:
        for_frames: its frame predictions are wanted, not the answers: the runs' out-of-fold predictions and folds are
            neither needed nor told of, and videos of which none shows a face are no failure.

    Raises:
        FileNotFoundError, ValueError: what it was given is not there, or does not fit together.
        SystematicFailureError: each of the first 20 videos (all, of fewer) failed, or none was predicted in the end.
        KeyboardInterrupt, SystemExit: it was asked to end; what is known is written.
    """
    sample = inputs.sample
    outside = read_answers(inputs.outside_files, sample["filename"]) if inputs.outside else None
    delivery = Delivery(sample, inputs.rule, inputs.out, outside)
    with listening(signal.SIGINT) as interruption, exclusive_folder(inputs.out):
        delivery.begin()
        models = with_tta(find_models(*inputs.runs, any_recipes=True), inputs.rule.tta)
        require_rule_fits(inputs.rule, models)
        # Before the hours of work: this needs files of the runs that the weights alone do not bring.
        history, held_out = {"seen_in_training": None, "out_of_fold": None}, None
        if not for_frames:
            history = training_history(inputs, models, sample)
            held_out = read_answers_out_of_fold(inputs.runs, inputs.scoring, inputs.rule)
        setup = set_up(inputs, models, sample, delivery.ids)
        require_room(inputs.out, most_results(setup))
        stores: list[ResultStore] = []
        for settings in setup.settings:
            stores.append(ResultStore(inputs.out, results_work(settings.recipe), stores))
        gc.freeze()  # else each collection goes through all that was imported: a sixth of a cluster driver's time
        collect_seldom()  # and through a million results kept: half a restart's time
        try:
            result = _Run(inputs, models, history, setup, stores, delivery, interruption, for_frames).run()
        finally:
            gc.unfreeze()
            for store in stores:
                store.close()
        if held_out is not None and result.delivered:
            OUT_OF_FOLD.write(held_out, inputs.out / VIDEO_HELD_OUT_FILE)
    return result


@dataclass
class _Run:
    """The passes over the videos, and the files they write in the submission folder."""

    inputs: SubmitInputs
    models: list[TrainedModel]
    history: dict[str, Any]
    setup: Setup
    stores: list[ResultStore]
    """By the number of the recipe."""
    delivery: Delivery
    interruption: Interruption
    for_frames: bool = False
    begun: set[str] | None = None
    """Videos that workers were at when the time was over; None before."""
    passes: list[PredictionPass] = field(default_factory=list)

    def __post_init__(self) -> None:
        asked = "auto" if self.inputs.precision == "auto" else self.setup.precision
        setup = self.setup
        for recipe, store in enumerate(self.stores):
            names = (model.name for model, own in zip(setup.models, setup.recipe_of, strict=True) if own == recipe)
            store.use(setup.paths, {name: setup.fingerprints[name] for name in names}, asked)
        self.delivery.add_kept((video for video, _ in self._all_kept()), self._known)
        if anew := set().union(*(store.unused for store in self.stores)):
            number = counted(len(anew), "video is", "videos are")
            logger.info("%s predicted anew: what is kept is of other models, views, precision or files", number)
        # What an earlier run left is written when the workers are busy: of a million videos it takes half a minute.
        self._next_writing = time.monotonic() + (0 if self.answered else self.inputs.write_seconds)

    def run(self) -> SubmitResult:
        """Answer the videos without an answer, then those that could have a better one, and deliver."""
        setup = self.setup
        unreadable = {video for video, them in self._all_kept() if any(it.again for it in them.values())}
        todo = [video for video in setup.paths if not any(video in store.kept for store in self.stores)]
        if len(todo) < len(setup.paths):
            logger.info("%d of %s done already", len(setup.paths) - len(todo), counted(len(setup.paths), "video"))
        levels = levels_of(setup.everything.frames, setup.everything.models)
        self._predict(todo, levels)
        better = [video for video, them in self._all_kept() if video in unreadable or self._is_reduced(them)]
        done = {video: sum(it.models * it.frames for it in self._kept(video).values()) for video in better}
        better.sort(key=lambda video: (done[video], video))  # those with the least first
        if self.answered == len(setup.paths):
            self._predict(better, levels[:1], again=True)
        return self._deliver()

    def _predict(self, videos: list[str], levels: Sequence[Level], *, again: bool = False) -> None:
        """One pass over these videos, as far as the time goes."""
        setup, hours = self.setup, self.inputs.budget_hours
        plan = Plan(
            len(videos),
            levels,
            workers=min(setup.workers, max(1, len(videos))),
            classifiers=setup.threads,
            elapsed=process_seconds,
            budget=float("inf") if hours is None else 3600 * hours,
            rates=self.passes[-1].plan.rates if self.passes else Rates(),
        )
        if not videos or (again and not plan.has_time):
            return
        label = "second pass" if again else "submit"
        workers, threads = counted(plan.workers, "worker"), counted(plan.classifiers, "thread")
        logger.info(
            "%s: %s, %s, of %d rows; %s, %s",
            label, counted(len(self.models), "model"), counted(len(videos), "video"), len(self.delivery.sample),
            setup.cluster or f"{device_names(setup.devices)}, {setup.precision}, {workers}, {threads}",
            "no time limit" if hours is None else f"{hours:g} hours",
        )  # fmt: skip
        hooks = {"keep": self._keep, "tick": self._tick, "interruption": self.interruption, "known": self._known}
        self.passes.append(PredictionPass(setup, videos, plan, machine_works=self.answered > 0, label=label, **hooks))
        try:
            self.passes[-1].run()
        except BaseException as error:
            self._write_on_the_way()
            if isinstance(error, SystematicFailureError):
                raise SystematicFailureError(
                    f"{error} {self._of_no_use()} Mend what the reasons name and run the same again."
                ) from error
            raise
        if self.interruption.asked:
            self._write_on_the_way()
            logger.warning(
                "asked to end: %d of %d videos done, %s holds the answers to %d; the same call continues from here",
                self.answered, len(setup.paths), self.delivery.path, self.delivery.predicted,
            )  # fmt: skip
            self.interruption.exit_if_asked()

    @property
    def answered(self) -> int:
        """Number of videos with results."""
        return sum(1 for _ in self._all_kept())

    def _kept(self, video: str) -> dict[int, Facts]:
        """Facts of a video's results by recipe."""
        return {recipe: store.kept[video][0] for recipe, store in enumerate(self.stores) if video in store.kept}

    def _all_kept(self) -> Iterator[tuple[str, dict[int, Facts]]]:
        return ((video, kept) for video in self.setup.paths if (kept := self._kept(video)))

    def _known(self, video: str) -> dict[int, VideoResult]:
        return {recipe: self.stores[recipe].read(video) for recipe in self._kept(video)}

    def _status(self, video: str) -> tuple[str, str] | None:
        """Status and message of a video of the sample."""
        if kept := self._kept(video):
            return overall(kept.values(), len(self.stores))
        if video not in self.setup.paths:
            return self.setup.absent.get(video)
        if self.begun is None:
            return "late", "not answered yet"
        return "late", f"not {'finished' if video in self.begun else 'begun'} when the time was over"

    def _is_reduced(self, results: Mapping[int, Facts]) -> bool:
        """True where fewer frames, models or recipes were used of a video than there are."""
        return len(results) < len(self.stores) or any(
            result.is_reduced(self.setup.everything_of(recipe)) for recipe, result in results.items()
        )

    def _keep(self, video: str, results: dict[int, VideoResult]) -> None:
        known, new = self._kept(video), {}
        for recipe, result in results.items():
            if recipe in known and known[recipe].status == "ok" and result.status != "ok":
                logger.warning("%s: %s in the second pass; the first answer stays", video, result.status)
                continue
            self.stores[recipe].add(result)
            new[recipe] = result
            if result.status not in SEARCHED:
                logger.warning("%s: %s: %s", video, result.status, result.message)
        others = [self.stores[recipe].read(video) for recipe in known if recipe not in new]
        self.delivery.add(video, [*new.values(), *others])

    def _tick(self) -> None:
        if time.monotonic() >= self._next_writing:
            self._write_on_the_way()

    def _write_on_the_way(self) -> None:
        started = time.monotonic()
        for store in self.stores:
            store.sync()
        submission = self.delivery.build(self._status)
        self.delivery.try_to_write(submission, self._card(submission.videos, self._figures(), complete=False))
        now = time.monotonic()
        self._next_writing = now + max(self.inputs.write_seconds, WRITINGS_APART * (now - started))

    def _deliver(self) -> SubmitResult:
        self.begun = {video for each in self.passes for video in each.begun}
        submission, figures = self.delivery.build(self._status), self._figures()
        card = self._card(submission.videos, figures, complete=True)
        delivered = self.delivery.deliver(submission, card, self._write_frames)
        logger.info("%s: %s", self.delivery.path, submission.coverage)
        if not submission.coverage["ok"] and not self.for_frames:
            self._refuse_priors_only(submission.coverage)
        workers = self.passes[-1].plan.workers if self.passes else self.setup.workers
        machine = {"workers": workers, "threads": self.setup.threads, "delivered": delivered}
        answers = submission.submission, submission.videos, submission.rule
        return SubmitResult(*answers, **figures, **machine, surest_crop=self._surest_crop)

    def _write_frames(self, path: Path) -> dict[str, Any]:
        """Write the frame predictions of all videos; the card gets how many of their crops lie outside."""
        folds = {model.name: model.fold for model in self.models}
        frames, outside = FrameFiles(self.inputs.out, list(folds)), Outside(0, 0, 0)
        videos = iter(sorted(video for video, kept in self._all_kept() if any(it.models for it in kept.values())))
        while some := list(islice(videos, VIDEOS_AT_ONCE)):
            table = frame_table([result for video in some for result in self._known(video).values()], folds)
            frames.add(table)
            outside += Outside.count(crop_distances(table))
        frames.write(path)
        logger.log(logging.WARNING if outside.is_unusual else logging.INFO, "faces: %s", outside.describe())
        return {"faces": outside.as_card()}

    def _surest_crop(self, video: str) -> tuple[Work, int, int] | None:
        for recipe, result in self._known(video).items():  # of several recipes the first one's crop
            if result.logits:
                return self.setup.work(video, recipe, result.frames), *result.surest_crop()
        return None

    def _figures(self) -> dict[str, Any]:
        """Figures of this run so far, by their names in `SubmitResult`."""
        stages = {name: sum(each.stages[name] for each in self.passes) for name in STAGES}
        wall = stages["wall"]
        return {
            "plan_changes": tuple(change for each in self.passes for change in each.plan.changes),
            "reduced": sum(self._is_reduced(kept) for _, kept in self._all_kept()),
            "rate": sum(each.done for each in self.passes) / wall if wall > 0 else 0.0,
            "seconds": process_seconds(),
            "stage_seconds": stages,
        }

    def _card(self, videos: pd.DataFrame, figures: dict[str, Any], *, complete: bool) -> dict[str, Any]:
        """Entries of the card; `complete` where the run has come to its end, by itself or by its budget."""
        used = {name for _, kept in self._all_kept() for it in kept.values() for name in it.precisions}
        return {
            "runs": [model.name for model in self.models],
            **self.history,
            "kernel": {
                "complete": complete,
                "device": str(self.setup.cluster or device_names(self.setup.devices)),
                "precision": ", ".join(sorted(used)) or self.setup.precision,
                "runtime": self.inputs.runtime,
                "budget_hours": self.inputs.budget_hours,
                "minutes": round(figures["seconds"] / 60, 2),
                "videos_a_second": round(figures["rate"], 4),
                "stage_seconds": {name: round(value, 2) for name, value in figures["stage_seconds"].items()},
                "plan_changes": [vars(change) for change in figures["plan_changes"]],
                "reduced": figures["reduced"],
                "not_judged": reasons(videos),
            },
        }

    def _refuse_priors_only(self, coverage: dict[str, int]) -> None:
        """Raise where not one video shows a face: the detector is to blame, or the folder."""
        counts = ", ".join(f"{count} {status}" for status, count in coverage.items() if count)
        words = f"not one video was answered ({counts}). {self._of_no_use()}"
        if not coverage.get("late"):
            raise SystematicFailureError(words)
        logger.error("%s The time was too short.", words)  # what a budget allows is what was asked for

    def _of_no_use(self) -> str:
        if self.delivery.predicted:
            return f"{self.delivery.path} holds the answers of an earlier run to {self.delivery.predicted} videos."
        return (
            f"{self.delivery.path} is complete, and holds the prior {self.delivery.rule.prior:g} in every row: do not "
            "hand it in."
        )


def most_results(setup: Setup) -> int:
    """Logits that a run may keep."""
    return len(setup.paths) * setup.everything.frames * CROPS_A_FRAME * len(setup.models)


def require_room(folder: Path, results: int) -> None:
    """Raise `ValueError` where the disk, or what Kaggle gives a notebook, has no room for so many logits."""
    needed, free, quota = results * BYTES_A_LOGIT, shutil.disk_usage(folder).free, ""
    if folder.resolve().is_relative_to(KAGGLE_WORKING):
        used = sum(path.lstat().st_size for path in KAGGLE_WORKING.rglob("*") if not path.is_dir())
        free, quota = min(free, KAGGLE_WORKING_BYTES - used), f" ({KAGGLE_WORKING_BYTES / 1e9:g} GB less what is there)"
    if free < needed:
        raise ValueError(
            f"{folder}: expected room for {needed / 1e6:,.0f} MB of results, found {max(0, free) / 1e6:,.0f} MB{quota}."
            " Delete what is not needed there, or choose another --out."
        )


def set_up(inputs: SubmitInputs, models: list[TrainedModel], sample: pd.DataFrame, ids: list[str]) -> Setup:
    """Videos, models and machine of a run; nothing is read but what decides them.

    Args:
        ids: `folder_ids` of the sample's filenames.
    """
    is_here = inputs.backend == "local"
    devices = pick_devices(inputs.device if is_here else "cpu")
    paths, absent = _locate(sample["filename"].tolist(), ids, inputs)  # before a runtime exports for minutes
    models, names = with_runtime(models, inputs.runtime, *devices), device_names(devices)
    groups = group_by_recipe(models)
    recipe_of = {model.name: number for number, group in enumerate(groups.values()) for model in group}
    important, weights, cluster = tuple(by_importance(models, inputs.rule)), inputs.weights, None
    if not is_here:  # its workers run in folders of their own
        weights = None if weights is None else weights.absolute()
        sent = pickle.dumps([replace(model, path=model.path.absolute()) for model in important])
        cluster = Cluster(inputs.backend, inputs.scheduler, sent, inputs.device, inputs.precision)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Setup(
        paths=paths,
        absent=absent,
        models=important,
        recipe_of=tuple(recipe_of[model.name] for model in important),
        fingerprints={model.name: model.fingerprint() for model in models},
        settings=tuple(prediction_settings(list(groups), devices=names, weights=weights)),
        devices=devices,
        precision=known_precision(inputs.precision, devices[0]) if is_here else inputs.precision,
        workers=inputs.jobs or min(default_jobs(names), max(1, cores)),
        cores=cores,
        cluster=cluster,
    )


def training_history(inputs: SubmitInputs, models: list[TrainedModel], sample: pd.DataFrame) -> dict[str, Any]:
    """Entries of the card about the runs' training: out-of-fold scores, and how many of the sample's videos they saw.

    An imported checkpoint brings neither; a run trained here that lacks them is an error.
    """
    figures = out_of_fold_figures(models, inputs.runs, inputs.rule)
    if figures is None:
        return {"seen_in_training": None, "out_of_fold": None, "out_of_fold_reason": "imported"}
    stems = (os.path.splitext(name)[0] for name in sample["filename"])  # noqa: PTH122 (a Path each takes 8 us)
    seen = {stem.rpartition("/")[2] for stem in stems} & set().union(*(trained_on(run) for run in inputs.runs))
    return {"seen_in_training": len(seen), "out_of_fold": figures}


def _locate(
    names: list[str], ids: list[str], inputs: SubmitInputs
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """video_id -> file of the sample's videos (`names`, with their `ids`), in their order, and the reasons of those
    that are not there.

    A file that lies in a folder below, or whose name has another ending or none, is taken where it is the only one of
    its name and no row's own; and so is a folder of pictures, which is a clip.
    """
    if not inputs.videos_dir.is_dir():
        raise FileNotFoundError(f"{inputs.videos_dir}: expected a folder of videos, found none.")
    folder = inputs.videos_dir.absolute()
    if inputs.sample_submission is None:  # each row is a file's own path
        return {video: f"{folder}/{name}" for video, name in zip(ids, names, strict=True)}, {}
    sound = {name for name in names if path_fault(name) is None}
    own = {name for name in sound if os.path.isfile(f"{folder}/{name}")}  # noqa: PTH113 (raises for a long one, slower)
    others: dict[str, list[str]] = {}
    for path in clips_below(folder) if len(own) < len(names) else []:
        if path not in own:
            others.setdefault(PurePosixPath(path).stem, []).append(path)
    paths, absent, elsewhere = {}, {}, {}
    for video, name in zip(ids, names, strict=True):
        if name in own:
            paths[video] = f"{folder}/{name}"
            continue
        stem = PurePosixPath(name).stem if is_video_name(name) else PurePosixPath(name).name
        found = others.get(stem, [])
        found = [path for path in found if PurePosixPath(path).name == PurePosixPath(name).name] or found
        if len(found) == 1:
            paths[video] = f"{folder}/{found[0]}"
            elsewhere[name] = found[0]
        elif found:
            absent[video] = ("missing", f"{NOT_THERE}; below it there are {' and '.join(found[:2])}")
        elif name in sound and os.path.lexists(folder / name):
            absent[video] = ("missing", f"{NOT_THERE} as a file: a link to nothing, a folder or a pipe")
    if not paths:
        held = ", ".join(path for same in others.values() for path in same[:1])[:200] or "no videos"
        raise ValueError(
            f"{inputs.videos_dir}: none of the {len(names)} videos of {inputs.sample_submission} is here, so every "
            f"answer would be the prior. The first is {names[0]}; the folder holds {held}."
        )
    if elsewhere:
        first = next(iter(elsewhere))
        number = counted(len(elsewhere), "video lies", "videos lie")
        logger.warning("%s elsewhere, the first: %s is %s", number, first, elsewhere[first])
    return paths, absent
