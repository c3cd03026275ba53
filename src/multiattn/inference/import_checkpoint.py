"""A checkpoint the authors released -> a run folder that `predict`, `submit` and the notebook work with."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from multiattn.config import DataConfig, Experiment, LossConfig, ModelConfig, Padding, to_json
from multiattn.config.model import HALF
from multiattn.experiments import official
from multiattn.model.checkpoints import save_weights
from multiattn.model.network import MultiAttentionNet
from multiattn.model.official import IMAGE_SIZES, UNKNOWN, convert_state, read_layout, without_wrapper
from multiattn.runtime.environment import describe_environment
from multiattn.runtime.files import exclusive_folder, file_digest, read_json, write_json
from multiattn.runtime.layout import ANY_FOLD, BEST_WEIGHTS, ENVIRONMENT_FILE, EXPERIMENT_FILE, IMPORT_FILE, fold_folder
from multiattn.runtime.tensor_files import read_tensors
from multiattn.runtime.text_tables import counted
from multiattn.video.crops.recipe import CropRecipe, write_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImportedCheckpoint:
    """A run folder OUT/fold0 that an import wrote: its experiment, of the official profile, (h, w) of its maps, and
    `used` and `unused` as in `ConvertedState`."""

    path: Path
    experiment: Experiment
    grid: tuple[int, int]
    used: dict[str, str]
    unused: dict[str, str]

    def describe(self) -> str:
        """Lines on where the run is, its network and grid, and every tensor it left out."""
        model = self.experiment.model
        lines = [
            f"{self.path}: {model.backbone}, M = {model.num_maps}, texture {model.texture_stage}, attention "
            f"{model.attention_stage}, hidden width {model.hidden_size}",
            f"attention grid {self.grid[0]}x{self.grid[1]} ({model.padding} padding) at "
            f"{self.experiment.data.image_size} px",
            f"{counted(len(self.used), 'tensor')} used, {len(self.unused)} unused; the whole list is in {IMPORT_FILE}",
            *(f"unused {name}: {reason}" for name, reason in self.unused.items()),
        ]
        return "\n".join(lines)


def import_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    image_size: int | None = None,
    attention_grid: Literal["auto", Padding] = "auto",
    texture_stage: str | None = None,
    attention_stage: str | None = None,
) -> ImportedCheckpoint:
    """Turn a released checkpoint into the run folder `out/fold0`.

    The weights are written last, so that a killed import is no run yet; the same import may be repeated.

    Args:
        checkpoint: .pth with `{logs, state_dict, optimizer_state, scheduler_state}` or a bare state dict (also
            .safetensors); float32 or half precision. Only tensors are loaded, never a pickled object.
        out: the experiment's folder; its name becomes the experiment's.
        image_size: side of the crops in pixels; by default the one that the release trained the backbone on.
        attention_grid: how an EfficientNet pads (23x23 maps in B4 at 380 px when `static`, 24x24 when `dynamic`).
            `auto`: static for an EfficientNet, as the release was trained; Xception pads in one way only.
        texture_stage, attention_stage: as for `read_layout`.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a pickled object, no released checkpoint, a missing tensor, or another run in the folder.
    """
    state = without_wrapper(read_tensors(checkpoint))
    try:
        model, notes = read_layout(state, texture_stage=texture_stage, attention_stage=attention_stage)
        image_size = IMAGE_SIZES[model.backbone] if image_size is None else image_size
        experiment = _experiment(out.name, model, state, image_size, attention_grid)
        recipe = CropRecipe(size=image_size)
        network = MultiAttentionNet(experiment.model, load_weights=False).eval()
        converted = convert_state(state, network)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    network.load_state_dict(converted.state, strict=False)  # only counters of batches may be missing, checked above
    grid = _try_out(network, image_size, checkpoint)
    unknown = [f"{name}: {reason}" for name, reason in converted.unused.items() if reason == UNKNOWN]
    for note in (*notes, *unknown):
        logger.warning("%s", note)
    logger.info("Attention grid %dx%d at %d px: %s padding.", *grid, image_size, experiment.model.padding)
    source = {"file": checkpoint.name, "bytes": checkpoint.stat().st_size, "sha256": file_digest(checkpoint)}
    settings = ("backbone", "num_maps", "hidden_size", "texture_stage", "attention_stage")
    size = dict(zip(("height", "width"), grid, strict=True))
    record = {
        "source": source,
        "network": {name: getattr(experiment.model, name) for name in settings},
        "attention_grid": {"padding": experiment.model.padding, "image_size": image_size, **size},
        "notes": notes,
        "used": converted.used,
        "unused": converted.unused,
    }
    folder = fold_folder(out, 0)
    _require_free(out, record)
    with exclusive_folder(folder):
        write_json(folder / IMPORT_FILE, record)
        write_recipe(recipe, folder)
        write_json(folder / ENVIRONMENT_FILE, describe_environment(torch.device("cpu")))
        write_json(folder / EXPERIMENT_FILE, to_json(experiment))
        save_weights(network, folder / BEST_WEIGHTS, {"imported_from_sha256": source["sha256"]})
    return ImportedCheckpoint(
        path=folder, experiment=experiment, grid=grid, used=converted.used, unused=converted.unused
    )


def _experiment(
    name: str, model: ModelConfig, state: Mapping[str, Tensor], image_size: int, attention_grid: str
) -> Experiment:
    """The official profile with what the checkpoint says of itself."""
    profile = official(Experiment(name=name, model=model, data=DataConfig(image_size=image_size)))
    padding = profile.model.padding if attention_grid == "auto" else attention_grid
    return dataclasses.replace(
        profile,
        name=name,
        model=dataclasses.replace(profile.model, padding=padding, input_mean=HALF, input_std=HALF),
        loss=_loss(profile.loss, state),
    )


def _loss(loss: LossConfig, state: Mapping[str, Tensor]) -> LossConfig:
    """Margins and alpha of the checkpoint's loss, where it has them, rounded to the digits of float32."""
    margins, rate = state.get("auxiliary_loss.inner_margin"), state.get("auxiliary_loss.alpha")
    if margins is not None and margins.numel() == 2:
        real, fake = (float(f"{value:.6g}") for value in margins.flatten().tolist())
        loss = dataclasses.replace(loss, intra_margin_real=real, intra_margin_fake=fake)
    if rate is not None and rate.numel() == 1:
        loss = dataclasses.replace(loss, center_rate=float(f"{rate.item():.6g}"))
    return loss


@torch.inference_mode()
def _try_out(network: MultiAttentionNet, image_size: int, checkpoint: Path) -> tuple[int, int]:
    """One grey image through the network: (h, w) of its attention maps."""
    output = network(torch.zeros(1, 3, image_size, image_size))
    if not torch.isfinite(output.logits).all():
        raise ValueError(f"{checkpoint}: its logits for a grey image are not finite; the file is damaged.")
    return tuple(output.attention.shape[-2:])


def _require_free(out: Path, record: dict[str, Any]) -> None:
    """Refuse a folder with runs in it, but for the one this very import wrote before."""
    advice = "Choose another --out, or delete that run."
    folder = fold_folder(out, 0)
    others = sorted(path.name for path in out.glob(ANY_FOLD) if path.is_dir() and path.name != folder.name)
    if others or (out / EXPERIMENT_FILE).is_file():
        raise ValueError(f"{out}: holds other runs already ({', '.join(others) or EXPERIMENT_FILE}). {advice}")
    kept = folder / IMPORT_FILE
    if not kept.is_file():
        if (folder / EXPERIMENT_FILE).is_file() or (folder / BEST_WEIGHTS).is_file():
            raise ValueError(f"{folder}: holds a run that was not imported. {advice}")
        return
    found = read_json(kept)
    if found != record:
        different = [name for name in record if not isinstance(found, dict) or found.get(name) != record[name]]
        raise ValueError(f"{folder}: holds another import (other {', '.join(different)}). {advice}")
