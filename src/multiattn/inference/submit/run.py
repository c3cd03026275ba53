"""From inputs to the submission folder: what `multiattn submit` and the Kaggle notebook both call."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from multiattn.config import to_json
from multiattn.datasets.manifest import video_files, video_id
from multiattn.inference.predictor import out_of_fold_figures
from multiattn.inference.runs import TrainedModel, find_models, trained_on
from multiattn.inference.scoring_file import require_rule_fits
from multiattn.inference.submit.classifier import as_picture, by_importance
from multiattn.inference.submit.delivery import Delivery, KernelResult, Statuses, frame_table, read_sample, reasons
from multiattn.inference.submit.inputs import KernelInputs
from multiattn.inference.submit.interruption import Interruption, listening, process_seconds
from multiattn.inference.submit.plan import Plan, PlanChange
from multiattn.inference.submit.predicting import STAGES, Judging, SystematicFailureError, Videos
from multiattn.inference.submit.store import TRIED_AGAIN, ResultStore, VideoResult
from multiattn.runtime.devices import default_jobs, pick_device, resolve_precision
from multiattn.runtime.files import exclusive_folder, file_digest
from multiattn.runtime.layout import BEST_WEIGHTS, PREDICTIONS_FILE, SUBMISSION_JOURNAL
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask

logger = logging.getLogger(__name__)


def run_kernel(inputs: KernelInputs) -> KernelResult:
    """Judge every video of the sample with every model, and write the submission folder, within the budget.

    A complete valid submission.csv lies in `inputs.out` from the start (the prior in each row) and is replaced every
    `write_seconds`, at the end, and before this process ends of SIGTERM or Ctrl-C. Results are kept there as they
    come, and the next run of the same work goes on from them. A video that cannot be read or judged, shows no face or
    is not there costs its own row only: it gets the prior, and is listed with the reason. With time left, videos that
    were judged with fewer frames or models, in this run or an earlier one, and those that an earlier run could not
    read for reasons that may have been the machine's, are looked at a second time.

    Returns:
        What was written to `inputs.out`.

    Raises:
        FileNotFoundError: no runs, no videos folder, no sample submission.
        ValueError: the sample is not one, none of its videos is in the folder, imported and trained runs in one, a rule
            that does not fit the runs, a detector without its weights, two videos whose names differ in their ending
            only, or another process is writing to the folder.
        SystematicFailureError: each of the first 20 videos (all, of fewer) failed, or not one was judged in the end.
            submission.csv holds priors then.
        KeyboardInterrupt, SystemExit: it was asked to end; what is known is written.
    """
    sample = read_sample(inputs.sample_submission)
    delivery = Delivery(sample, inputs.rule, inputs.out)
    with listening() as interruption, exclusive_folder(inputs.out):
        if not ((inputs.out / SUBMISSION_JOURNAL).is_file() and delivery.is_there):
            delivery.write_priors()
        run = _Run(inputs, sample, delivery, interruption)
        try:
            return run.run()
        finally:
            run.store.close()


class _Run:
    """One run of the kernel, from its checks to its delivery."""

    def __init__(
        self, inputs: KernelInputs, sample: pd.DataFrame, delivery: Delivery, interruption: Interruption
    ) -> None:
        self.inputs, self.delivery, self.interruption = inputs, delivery, interruption
        self.models = find_models(*inputs.runs)
        require_rule_fits(inputs.rule, self.models)
        # Before the hours of work: this needs files of the runs that the weights alone do not bring.
        self.history = _history(inputs, self.models, sample)
        self.device = pick_device(inputs.device)
        self.precision = resolve_precision(inputs.precision, self.device)
        recipe = self.models[0].recipe.for_prediction()
        self.settings = ExtractionSettings(recipe=recipe, device=str(self.device), weights=inputs.weights)
        self.paths = _present(sample, inputs)
        self.stamps = {video: _stamp(path) for video, path in self.paths.items()}
        work = {
            "models": {model.name: file_digest(model.path / BEST_WEIGHTS)[:16] for model in self.models},
            "crops": to_json(recipe),
            "precision": self.precision,
        }
        self.store = ResultStore(inputs.out, work)
        self.results = self._usable()
        self.earlier = dict(self.results)
        self.waiting: Statuses = {}
        self.looks: list[Judging] = []
        self._written = time.monotonic()

    def run(self) -> KernelResult:
        """Judge what is not judged yet, then what could be judged better, and deliver."""
        if not self.results:
            self.delivery.write_priors()  # whatever lies there is of other work
        todo = [video for video in self.paths if video not in self.results]
        if len(todo) < len(self.paths):
            logger.info("%d of %d videos are done already", len(self.paths) - len(todo), len(self.paths))
        self.waiting = dict.fromkeys(todo, ("late", "not judged yet"))
        if self.results:
            self._write_on_the_way()
        self._look(todo)
        again = self._worth_another_look()
        if again and not self.waiting:
            self._look(again, second=True)
        return self._deliver()

    def _look(self, todo: list[str], *, second: bool = False) -> None:
        """Judge these videos, as far as the time goes."""
        videos = self._videos([VideoTask(video_id=video, path=self.paths[video]) for video in todo])
        budget = None if self.inputs.budget_hours is None else 3600 * self.inputs.budget_hours
        plan = Plan(
            len(todo),
            frames=videos.everything.frames,
            models=videos.everything.models,
            workers=videos.workers,
            classifiers=videos.threads,
            elapsed=process_seconds,
            budget=budget,
            second_look=second,
            rates=self.looks[-1].plan.rates if self.looks else None,
        )
        if second and not plan.has_time:
            return
        label = "second look" if second else "submit"
        judging = Judging(videos, plan, label=label, keep=self._keep, tick=self._tick, interruption=self.interruption)
        self.looks.append(judging)
        logger.info(
            "%d models, %d videos to judge%s, of %d in the sample; %s, %s, %d workers, %d threads, %s",
            len(self.models), len(todo), " better" if second else "", len(self.delivery.sample), self.device,
            self.precision, videos.workers, videos.threads,
            f"{self.inputs.budget_hours:g} hours" if budget else "no time limit",
        )  # fmt: skip
        if todo:
            self._judge(judging)

    def _judge(self, judging: Judging) -> None:
        try:
            judging.run()
        except SystematicFailureError as error:
            self._write_on_the_way()
            raise SystematicFailureError(
                f"{error} {self._of_no_use()} Mend what the reasons name and run the same again."
            ) from error
        except BaseException:
            self._write_on_the_way()
            raise
        if self.interruption.signal is not None:
            self._write_on_the_way()
            logger.warning(
                "asked to end: %s holds what %d of %d videos gave; the same call goes on from here",
                self.delivery.path, len(self.results), len(self.paths),
            )  # fmt: skip
            self.interruption.end()

    def _usable(self) -> dict[str, VideoResult]:
        """Results of an earlier run: of these very files, and not of a machine that failed at everything."""
        usable = {
            video: result
            for video, result in self.store.results.items()
            if video in self.stamps
            and self.stamps[video]["file_bytes"] == result.file_bytes
            and result.status not in TRIED_AGAIN
        }
        return usable if any(result.status in ("ok", "no_face") for result in usable.values()) else {}

    def _worth_another_look(self) -> list[str]:
        """Videos of which more would be known by judging them again, those that had the least first."""
        chosen = [result for result in self.results.values() if self._is_reduced(result) or self._may_be_well(result)]
        return [it.video_id for it in sorted(chosen, key=lambda it: (len(it.models) * it.frames, it.video_id))]

    def _is_reduced(self, result: VideoResult) -> bool:
        """Whether it was looked at less thoroughly than there is time for without a budget."""
        few_models = result.status == "ok" and len(result.models) < len(self.models)
        few_frames = result.status in ("ok", "no_face") and result.frames < self.settings.recipe.num_frames
        return few_models or few_frames

    def _may_be_well(self, result: VideoResult) -> bool:
        """Whether an earlier run could not read it, and this one might."""
        changed = result.file_modified != self.stamps[result.video_id]["file_modified"]
        is_earlier = self.earlier.get(result.video_id) is result
        return result.status == "unreadable" and is_earlier and (result.again or changed)

    def _videos(self, todo: list[VideoTask]) -> Videos:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.inputs.jobs or min(default_jobs(str(self.device)), max(1, cores))
        return Videos(
            tasks=tuple(todo),
            stamps=self.stamps,
            models=tuple(by_importance(self.models, self.inputs.rule)),
            settings=self.settings,
            device=self.device,
            precision=self.precision,
            workers=max(1, min(workers, len(todo))),
            cores=cores,
            some_judged=bool(self.results),
        )

    def _keep(self, result: VideoResult) -> None:
        former = self.results.get(result.video_id)
        if former is not None and former.status == "ok" and result.status != "ok":
            logger.warning("%s: %s at the second look; the first answer stays", result.video_id, result.status)
            return
        self.store.add(result)
        self.results[result.video_id] = result
        self.waiting.pop(result.video_id, None)
        if result.status not in ("ok", "no_face"):
            logger.warning("%s: %s: %s", result.video_id, result.status, result.message)

    def _tick(self) -> None:
        if time.monotonic() - self._written >= self.inputs.write_seconds:
            self._write_on_the_way()

    def _write_on_the_way(self) -> None:
        self.store.sync()
        submission = self.delivery.build(self.results.values(), self.waiting)
        self.delivery.try_to_write(submission, self._card(submission.videos, complete=False))
        self._written = time.monotonic()

    def _deliver(self) -> KernelResult:
        for video in self.waiting:
            begun = any(video in look.begun for look in self.looks)
            self.waiting[video] = ("late", f"not {'finished' if begun else 'begun'} when the time was over")
        submission = self.delivery.build(self.results.values(), self.waiting)
        self.delivery.write(submission, self._card(submission.videos, complete=True))
        folds = {model.name: model.fold for model in self.models}
        table = frame_table(list(self.results.values()), folds)
        FRAME_PREDICTIONS.write(table, self.inputs.out / PREDICTIONS_FILE)
        logger.info("%s: %s", self.delivery.path, submission.coverage)
        if not submission.coverage["ok"]:
            self._say_no_use(submission.coverage)
        videos = self.looks[-1].videos
        return KernelResult(
            submission.submission,
            submission.videos,
            submission.rule,
            plan_changes=tuple(self._changes()),
            reduced=self._reduced(),
            rate=self._rate(),
            seconds=process_seconds(),
            stage_seconds=self._stages(),
            workers=videos.workers,
            threads=videos.threads,
            thumbnails={
                video: as_picture(result.thumbnail) for video, result in self.results.items() if result.thumbnail
            },
        )

    def _stages(self) -> dict[str, float]:
        return {name: sum(look.stages[name] for look in self.looks) for name in STAGES}

    def _rate(self) -> float:
        wall = self._stages()["wall"]
        return sum(look.done for look in self.looks) / wall if wall > 0 else 0.0

    def _changes(self) -> list[PlanChange]:
        return [change for look in self.looks for change in look.plan.changes]

    def _reduced(self) -> int:
        return sum(map(self._is_reduced, self.results.values()))

    def _say_no_use(self, coverage: dict[str, int]) -> None:
        """Not one video was judged: without a face in any, the detector is to blame, or the folder."""
        counts = ", ".join(f"{count} {status}" for status, count in coverage.items() if count)
        words = f"not one video was judged ({counts}). {self._of_no_use()}"
        if not coverage.get("late"):
            raise SystematicFailureError(words)
        logger.error("%s The time was too short.", words)  # what a budget allows is what was asked for

    def _of_no_use(self) -> str:
        return (
            f"{self.delivery.path} is complete, and holds the prior {self.delivery.rule.prior:g} in every row: do not "
            "hand it in."
        )

    def _card(self, videos: pd.DataFrame, *, complete: bool) -> dict[str, Any]:
        """What the card says beside commit, scoring rule and coverage.

        Args:
            complete: whether the kernel has come to its end, by itself or by its budget.
        """
        return {
            "runs": [model.name for model in self.models],
            **self.history,
            "kernel": {
                "complete": complete,
                "device": str(self.device),
                "precision": self.precision,
                "budget_hours": self.inputs.budget_hours,
                "minutes": round(process_seconds() / 60, 2),
                "videos_a_second": round(self._rate(), 4),
                "stage_seconds": {name: round(value, 2) for name, value in self._stages().items()},
                "plan_changes": [vars(change) for change in self._changes()],
                "reduced": self._reduced(),
                "not_judged": reasons(videos),
            },
        }


def _history(inputs: KernelInputs, models: list[TrainedModel], sample: pd.DataFrame) -> dict[str, Any]:
    """What the card says of the runs' training: their out-of-fold scores, and the sample's videos they have seen.

    An imported checkpoint brings neither held-out predictions nor a list of its training videos; a run trained here
    that lacks them is an error.
    """
    figures = out_of_fold_figures(models, inputs.runs, inputs.rule)
    if figures is None:
        return {"seen_in_training": None, "out_of_fold": None, "out_of_fold_reason": "imported"}
    names = set(sample["filename"].map(lambda name: Path(name).stem))
    seen = names & set().union(*(trained_on(run) for run in inputs.runs))
    return {"seen_in_training": len(seen), "out_of_fold": figures}


def _present(sample: pd.DataFrame, inputs: KernelInputs) -> dict[str, Path]:
    """video_id -> file of the sample's videos that are there, in the sample's order."""
    if not inputs.videos_dir.is_dir():
        raise FileNotFoundError(f"{inputs.videos_dir}: expected a folder of videos, found none.")
    present = set(video_files(inputs.videos_dir))
    names = [name for name in sample["filename"] if name in present]
    by_video: dict[str, str] = {}
    for name in names:
        if (other := by_video.setdefault(video_id("folder", name), name)) != name:
            raise ValueError(
                f"{inputs.sample_submission}: expected videos that differ in more than their ending, found {other} and "
                f"{name}. Rename one, in the folder and in the sample."
            )
    if not names:
        raise ValueError(
            f"{inputs.videos_dir}: none of the {len(sample)} videos of {inputs.sample_submission} is here, "
            "so every answer would be the prior."
        )
    return {video: inputs.videos_dir.absolute() / name for video, name in by_video.items()}


def _stamp(path: Path) -> dict[str, int]:
    try:
        facts = path.stat()
    except OSError:
        return {"file_bytes": -1, "file_modified": 0}
    return {"file_bytes": facts.st_size, "file_modified": facts.st_mtime_ns}
