"""Videos or pictures -> P(fake) of each file and of each person in it at once: a table, and files or a page of it all.

    multiattn score clip.mp4 --runs runs/dfdc_b4
    multiattn score clips/ portrait.jpg --runs runs/dfdc_b4 --report report.html --json answers.json --csv answers.csv

Exit code 0 if any file could be read; a file that could not be has its reason in the table.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import (
    DetectorWeights,
    Device,
    Positional,
    PredictPrecision,
    RuleTta,
    RuntimeName,
    Scoring,
    parse,
    require_apart,
    results,
)
from multiattn.config.settings import require
from multiattn.runtime.devices import runtime_precision
from multiattn.runtime.files import write_csv, write_json, write_text
from multiattn.runtime.layout import DEFAULT_RUN, folds_below, is_run_folder, named_run, packaged_run
from multiattn.runtime.text_tables import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    files: Positional[tuple[Path, ...]] = ()
    """Videos and pictures (jpg, png, bmp, webp, tiff), or folders of them."""
    runs: tuple[Path, ...] = ()
    """runs/<experiment>, or several, or single folds: fewer models are faster; or a packaged run by its name (default:
    dfdc_lite). Files may follow them."""
    report: Path | None = None
    """An HTML page to write: probability over time, the frames that decided, attention."""
    json: Path | None = None
    """A JSON file to write: all of each file, of each face with the times it was there, and of each frame."""
    csv: Path | None = None
    """The same as a table: a row a file, a face and a frame."""
    scoring: Scoring = None
    tta: RuleTta = None
    weights: DetectorWeights = None
    device: Device = "auto"
    fps: float | None = None
    """Take each folder of pictures as one clip of so many frames a second (default: each picture by itself)."""
    precision: PredictPrecision = "auto"
    runtime: RuntimeName = "torch"
    jobs: int | None = None
    """Processes that read files, where there are more than two (default: one a core)."""

    def __post_init__(self) -> None:
        require(self.fps is None or self.fps > 0, self, "fps", "frames a second above 0")
        runtime_precision(self.runtime, self.precision)


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="score", doc=__doc__)
    # `--runs RUN clip.mp4`: an option of several values takes all that follow it.
    found = {path: named_run(path) for path in options.runs}
    runs = [path for path in found if path == options.runs[0] or is_run_folder(found[path]) or folds_below(found[path])]
    if not runs:
        runs = [packaged_run()]  # or an error, before torch is imported
        results(f"no --runs: by the packaged run {DEFAULT_RUN}")
    from multiattn.inference.detector import DeepfakeDetector, answers_json, answers_table
    from multiattn.inference.score_files import find_files, seen_notes

    named = [*options.files, *(path for path in options.runs if path not in runs)]
    files = find_files(named, frame_folders=options.fps is not None)
    require_apart({"--report": options.report, "--json": options.json, "--csv": options.csv}, files)
    how = {"device": options.device, "precision": options.precision, "jobs": options.jobs, "tta": options.tta}
    how["runtime"] = options.runtime
    detector = DeepfakeDetector.load(*runs, scoring=options.scoring, weights=options.weights, **how)
    notes = [*detector.notes, *seen_notes(detector.training_names, files)]
    with tempfile.TemporaryDirectory(prefix="multiattn_score_") as folder:
        faces = Path(folder) / "faces"
        scored = detector.score(files, faces, fps=options.fps)
        notes += scored.outside_notes()
        results(scored.describe(), "", *notes)
        answers = detector.answers(files, scored)
        said = detector.in_words(answers)
        results("", *said)
        if options.json is not None:
            write_json(options.json, answers_json(detector, answers))
        if options.csv is not None:
            write_csv(options.csv, answers_table(answers))
        if options.report is not None:
            from multiattn.figures.score import attention_of, report_page

            maps = attention_of(scored, detector, faces)
            write_text(options.report, report_page(scored, detector, faces, [*said, *notes], maps))
    written = [str(path) for path in (options.report, options.json, options.csv) if path is not None]
    if written:
        results(f"written: {', '.join(written)}")
    if scored.num_readable == 0:
        raise ValueError(f"none of {counted(len(files), 'file')} could be read; the table says why.")
