"""Videos or pictures -> P(fake) of each at once: a table, and with --report a page that shows why.

    multiattn score clip.mp4 --runs runs/dfdc_b4
    multiattn score clips/ portrait.jpg --runs runs/dfdc_b4 --report report.html

Exit code 0 if any file could be read; a file that could not be has its reason in the table.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multiattn.command_line import DetectorWeights, Device, Positional, Scoring, parse, results
from multiattn.config.settings import require
from multiattn.runtime.devices import pick_device
from multiattn.runtime.files import write_text
from multiattn.runtime.layout import folds_below, is_run_folder

if TYPE_CHECKING:
    import torch

    from multiattn.inference.runs import TrainedModel
    from multiattn.inference.score_files import ScoredFiles


@dataclass(frozen=True, kw_only=True)
class Options:
    files: Positional[tuple[Path, ...]] = ()
    """Videos and pictures (jpg, png, bmp, webp, tiff), or folders of them."""
    runs: tuple[Path, ...]
    """runs/<experiment>, or several, or single folds: fewer models are faster. Files may follow them."""
    report: Path | None = None
    """An HTML page to write: probability over time, the frames that decided, attention."""
    scoring: Scoring = None
    weights: DetectorWeights = None
    device: Device = "auto"
    fps: float | None = None
    """Take each folder of pictures as one clip of so many frames a second (default: each picture by itself)."""
    jobs: int | None = None
    """Processes that read files, where there are more than two (default: one a core)."""

    def __post_init__(self) -> None:
        require(self.fps is None or self.fps > 0, self, "fps", "frames a second above 0")


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="score", doc=__doc__)
    from multiattn.inference.runs import find_models
    from multiattn.inference.score_files import find_files, score_files, seen_notes, training_notes
    from multiattn.inference.scoring_file import choose_scoring

    # `--runs RUN clip.mp4`: an option of several values takes all that follow it.
    runs = tuple(path for path in options.runs if path == options.runs[0] or is_run_folder(path) or folds_below(path))
    files = find_files(
        [*options.files, *(path for path in options.runs if path not in runs)], frame_folders=bool(options.fps)
    )
    models = find_models(*runs)
    rule = choose_scoring(runs, options.scoring)
    device = pick_device(options.device)
    notes = [*training_notes(models), *seen_notes(models, files)]
    with tempfile.TemporaryDirectory(prefix="multiattn_score_") as folder:
        faces = Path(folder) / "faces"
        scored = score_files(
            files, models, rule, faces, device=device, weights=options.weights, jobs=options.jobs, fps=options.fps
        )
        results(scored.describe(), "", *notes)
        if options.report is not None:
            write_text(options.report, _page(scored, models, faces, device, notes))
            results(f"written: {options.report}")
    if scored.num_readable == 0:
        raise ValueError(f"none of {len(files)} files could be read; the table says why.")


def _page(
    scored: "ScoredFiles", models: "list[TrainedModel]", faces: Path, device: "torch.device", notes: list[str]
) -> str:
    from multiattn.figures.attention import RunMaps
    from multiattn.figures.score import score_page
    from multiattn.inference.attention_maps import extreme_crops, model_with_maps, predict_maps

    model = model_with_maps(models)
    shown = extreme_crops(scored.crops)
    with_maps = predict_maps(model, faces, shown, device=device)[0] if model is not None else []
    maps = RunMaps(model.name, with_maps, {}) if with_maps else None
    names = ", ".join(sorted({model.name.split("/", 1)[0] for model in models}))
    how = f"{len(models)} models of {names}; a crop's P(fake) is their mean, a file's that of the scoring rule."
    return score_page(f"Scores by {names}", scored, faces, [*notes, how], maps)
