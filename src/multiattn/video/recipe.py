"""How the crops of a faces folder were made; stored with them and copied into every run trained on them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from multiattn.config import from_json, to_json
from multiattn.runtime import read_json, write_json
from multiattn.video.align import TEMPLATE_NAME

RECIPE_FILE = "faces.json"


@dataclass(frozen=True, kw_only=True)
class CropRecipe:
    """Everything that decides which crops a video gives and what their pixels are."""

    num_frames: int = 32
    """Evenly spaced frames of each video; a shorter video gives all of its frames once."""
    size: int = 380
    """Side of the square crops in pixels."""
    detector: str = "mtcnn"
    threshold: float = 0.9
    """Faces with a lower detection score are left out."""
    jpeg_quality: int = 95
    """4:4:4, so chroma keeps its resolution."""
    template: str = TEMPLATE_NAME

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"--num-frames: expected at least 1, found {self.num_frames}.")
        if not 32 <= self.size <= 4096:
            raise ValueError(f"--size: expected 32 to 4096 pixels, found {self.size}.")
        if not 0 < self.threshold < 1:
            raise ValueError(f"--threshold: expected a score between 0 and 1, found {self.threshold}.")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"--jpeg-quality: expected 1 to 100, found {self.jpeg_quality}.")
        if self.template != TEMPLATE_NAME:
            raise ValueError(f"template: these crops are aligned to {self.template!r}, this code to {TEMPLATE_NAME!r}.")


def read_recipe(folder: Path) -> CropRecipe:
    """The recipe of a faces folder or a run folder.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: not a recipe, or one this code cannot follow.
    """
    path = Path(folder) / RECIPE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not a faces folder. Make it with `multiattn faces`.")
    return from_json(CropRecipe, read_json(path), source=str(path))


def write_recipe(recipe: CropRecipe, folder: Path) -> None:
    """Store the recipe in a faces folder or a run folder."""
    write_json(Path(folder) / RECIPE_FILE, to_json(recipe))


def describe_difference(expected: CropRecipe, found: CropRecipe) -> str:
    """`size: expected 380, found 224; ...`, empty when the pixels are made alike.

    `num_frames` is not compared: it changes how many crops there are, not what they look like.
    """
    names = [field.name for field in dataclasses.fields(CropRecipe) if field.name != "num_frames"]
    pairs = [(name, getattr(expected, name), getattr(found, name)) for name in names]
    return "; ".join(f"{name}: expected {mine}, found {other}" for name, mine, other in pairs if mine != other)
