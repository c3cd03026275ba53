"""The work that `submit` would do, without writing into the submission folder: videos, models, time and memory."""

import signal
from dataclasses import replace

from multiattn.datasets.manifest import folder_ids
from multiattn.inference.outside import read_answers
from multiattn.inference.runs import find_models, with_tta
from multiattn.inference.runtimes import can_predict
from multiattn.inference.scoring_file import require_rule_fits
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.plan import Plan, levels_of
from multiattn.inference.submit.predict import PredictionPass, Setup, SystematicFailureError
from multiattn.inference.submit.results import SEARCHED, results_journals, results_work
from multiattn.inference.submit.run import most_results, require_room, set_up, training_history
from multiattn.runtime.devices import device_names, pick_devices
from multiattn.runtime.files import standing_folder
from multiattn.runtime.layout import SUBMISSION_FILE
from multiattn.runtime.processor import peak_memory
from multiattn.runtime.signals import listening
from multiattn.runtime.text_tables import counted, duration

TRIED_VIDEOS = 2


def describe_submit(inputs: SubmitInputs) -> list[str]:
    """Counts of videos and models, and hours and memory by the first videos without an answer, predicted in memory.

    Raises:
        As `run_submit`, which it asks of everything that it can know beforehand.
    """
    models, by_torch = find_models(*inputs.runs, any_recipes=True), ""
    devices = pick_devices(inputs.device if inputs.backend == "local" else "cpu")
    if not can_predict(models, inputs.runtime, *devices):
        by_torch = f"; by torch here, for the networks are not exported for {inputs.runtime} yet"
        inputs = replace(inputs, runtime="torch")
    sample, models = inputs.sample, with_tta(models, inputs.rule.tta)
    require_rule_fits(inputs.rule, models)
    if inputs.outside:
        read_answers(inputs.outside_files, sample["filename"])
    training_history(inputs, models, sample)
    setup = set_up(inputs, models, sample, folder_ids(sample["filename"]))
    require_room(standing_folder(inputs.out), most_results(setup))
    answered = _answered(inputs, setup)
    todo = [video for video in setup.paths if video not in answered]
    lines = [
        f"{counted(len(sample), 'row')}: {counted(len(setup.paths), 'video')} there, {len(answered)} of them answered "
        f"before (again, where file or models changed), {len(sample) - len(setup.paths)} without a file",
        f"{setup.everything}; {setup.cluster or device_names(setup.devices)}, {counted(setup.workers, 'worker')}"
        f"{by_torch if setup.cluster is None else ''}",
    ]
    if todo and setup.cluster is None:
        lines += _try_some(setup, todo)
    lines.append(f"would write {inputs.out} with {SUBMISSION_FILE}, card.json and tables. Nothing was written.")
    return lines


def _answered(inputs: SubmitInputs, setup: Setup) -> set[str]:
    """The videos that have a result by each recipe in the submission folder."""
    journals, found = results_journals(inputs.out), []
    for settings in setup.settings:
        own = (journal for journal in journals if journal.work() == results_work(settings.recipe))
        results = (result for journal in own for result in journal.records(skip_damaged=True))
        found.append({result.video_id for result in results if result.status in SEARCHED})
    return set.intersection(*found) & setup.paths.keys()


def _try_some(setup: Setup, todo: list[str]) -> list[str]:
    tried = todo[:TRIED_VIDEOS]
    levels = levels_of(setup.everything.frames, setup.everything.models)[:1]
    plan = Plan(
        len(tried), levels, workers=setup.workers, classifiers=setup.threads, elapsed=lambda: 0.0, budget=float("inf")
    )
    with listening(signal.SIGINT) as interruption:
        run = PredictionPass(
            setup, tried, plan, machine_works=False, label="tries", interruption=interruption,
            keep=lambda video, results: None, tick=lambda: None, known=lambda video: {},
        )  # fmt: skip
        try:
            run.run()
        except SystematicFailureError as error:
            return [f"time: not measured: {error}"]
        interruption.exit_if_asked()
    if not plan.rates.observed:
        return [f"time: not measured: none of {counted(len(tried), 'video')} could be predicted"]
    seconds = plan.seconds_a_video(plan.level) * len(todo) + plan.rates.latency(plan.level)
    return [
        f"time: {duration(seconds)}, by {counted(plan.rates.observed, 'video')} predicted here; some seconds to start",
        f"memory: {peak_memory(setup.devices[0]) / 1e9:.1f} GB in this process, by the same; the workers' beside it",
    ]
