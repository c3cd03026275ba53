"""A checkpoint the authors released -> a run folder for predict, submit and the notebook.

multiattn import-checkpoint CKPT.pth --out runs/official
multiattn import-checkpoint CKPT.pth --out runs/official --attention-grid dynamic --image-size 320
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multiattn.command_line import Positional, parse, results
from multiattn.config import Padding


@dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: Positional[Path]
    """The released .pth (or its tensors as .safetensors); a pickled object is refused."""
    out: Path
    """The experiment's folder, runs/NAME; the run is its fold0."""
    image_size: int | None = None
    """Side of the crops in pixels; by default the one that the release trained the backbone on: B0 224, B4 380,
    Xception 299, ..."""
    attention_grid: Literal["auto", Padding] = "auto"
    """Padding of an EfficientNet: in B4 at 380 px static gives 23x23 attention maps, dynamic 24x24. auto: static, as
    the release was trained; Xception has one way only."""
    texture_stage: str | None = None
    """L1, L2, ...: where several stages are as wide as the texture block (default then: L2)."""
    attention_stage: str | None = None
    """L1, L2, ...: where several stages are as wide as the attention module (default then: L5)."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="import-checkpoint", doc=__doc__)
    from multiattn.inference.import_checkpoint import import_checkpoint

    results(import_checkpoint(**vars(options)).describe())
