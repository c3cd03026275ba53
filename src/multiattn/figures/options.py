"""Options of `multiattn figures`, read before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import require_at_least
from multiattn.config.choices import MapScale
from multiattn.runtime.files import write_text


@dataclass(frozen=True, kw_only=True)
class FaceOptions:
    """Options that `figures attention` and `figures compare` share: which faces, and where the figure goes."""

    faces: Path
    """A faces folder. Without --videos, only videos the run was not trained on are shown."""
    out: Path
    """The folder the picture and the page go to."""
    videos: tuple[str, ...] = ()
    """video_ids to show, a row each, instead of the first ones of each type."""
    per_type: int = 1
    """Rows of each manipulation type."""
    crops: int = 64
    """At most so many crops, evenly spaced, are measured for the statistics."""
    scale: MapScale = "run"
    """One colour scale for all pictures of a run, or one for every map."""
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Losses, validation, learning rate and attention statistics of one or more runs: curves.png."""

    runs: tuple[Path, ...]
    """runs/<experiment>, one or several (all folds that have been validated), or single folds of them."""
    out: Path
    """The folder the picture goes to."""

    def draw(self) -> list[Path]:
        from multiattn.figures.curves import curves_figure, read_runs
        from multiattn.figures.page import write_png

        write_png(curves_figure(read_runs(self.runs)), self.out / "curves.png")
        return [self.out / "curves.png"]


@dataclass(frozen=True, kw_only=True)
class ContactSheet:
    """Thumbnails of a faces folder by video, status and track, the doubtful ones first: one HTML page."""

    faces: Path
    """A faces folder."""
    out: Path
    """The HTML file to write."""
    videos: tuple[str, ...] = ()
    """video_ids to show (default: the most doubtful ones)."""
    limit: int = 200
    """At most so many videos with crops, and so many without."""

    def draw(self) -> list[Path]:
        from multiattn.figures.faces import contact_sheet

        require_at_least(self, 1, "limit")
        write_text(self.out, contact_sheet(self.faces, videos=self.videos, limit=self.limit))
        return [self.out]
