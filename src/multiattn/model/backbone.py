"""A timm EfficientNet that hands out the maps of its stages L1, L2, ... and its last map."""

import difflib
import logging
import os
import pickle
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from multiattn.config import STAGES
from multiattn.model.checkpoints import read_state, state_problems

logger = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 5.0
WAYS_OUT = "Pass `--model.weights FILE` with a local copy, or `--model.no-pretrained` to start from random weights."


class Backbone(nn.Module):
    """Features of an EfficientNet-class network (EfficientNet, MnasNet, MobileNetV2, TinyNet, ... of timm).

    Attributes:
        channels: stage name -> channels of its map, for every stage: L1..L7 in EfficientNets, fewer in some kin.
        strides: stage name -> input pixels a cell of its map.
        num_features: channels of the last map (after head convolution, normalisation and activation).

    Departures: none; the paper's Xception is not offered here.
    """

    def __init__(
        self,
        name: str,
        *,
        stages: tuple[str, ...],
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        weights: str | Path | None = None,
    ) -> None:
        """Build the network and load its weights.

        Args:
            name: timm model, with or without a weights tag (`tf_efficientnet_b4.ap_in1k`).
            stages: the stages `forward` hands out.
            drop_path_rate: stochastic depth.
            pretrained: start from timm's hub, unless `weights` names a file.
            weights: a local safetensors or .pth file in timm's naming; used whenever it is given.

        Raises:
            ValueError: unknown name or stage, not an EfficientNet, weights that do not fit or a hub
                out of reach.
            FileNotFoundError: no file `weights`.
        """
        super().__init__()
        plan = _plan(name)
        self.names = STAGES[: len(plan.blocks)]
        unknown = [stage for stage in stages if stage not in self.names]
        if unknown:
            raise ValueError(f"{name}: no stage {unknown[0]!r}; expected one of {', '.join(self.names)}.")
        self.stages = tuple(stages)
        self.channels = dict(zip(self.names, (_out_channels(stage) for stage in plan.blocks), strict=True))
        self.strides = _strides(plan)
        self.num_features = plan.num_features
        if pretrained and weights is None:
            self.net = _from_hub(name, drop_path_rate)
        else:
            self.net = _create(name, drop_path_rate=drop_path_rate)
        if weights is not None:
            load_backbone_file(self.net, weights)

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Stage maps and the last map.

        Args:
            images: (B, 3, H, W), any size.

        Returns:
            {stage: (B, C_t, H_t, W_t)} of the stages asked for, and (B, num_features, H_7, W_7).
        """
        features = self.net.bn1(self.net.conv_stem(images))
        maps = {}
        for stage, blocks in zip(self.names, self.net.blocks, strict=True):
            features = blocks(features)
            if stage in self.stages:
                maps[stage] = features
        return maps, self.net.bn2(self.net.conv_head(features))


def load_backbone_file(net: EfficientNet, path: str | Path) -> None:
    """Fill an EfficientNet without classifier from a file in timm's naming.

    A classifier in the file (`classifier.*`) is left out, and the log says so; nothing else may differ, except
    `num_batches_tracked` counters, which older files do not have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or tensors missing, unexpected or of another shape.
    """
    state = _read_any(Path(path))
    head = [name for name in state if name.startswith("classifier.")]
    if head:
        logger.info("%s: the ImageNet classifier in the file is not used (%s).", path, ", ".join(head))
    state = {name: tensor for name, tensor in state.items() if name not in head}
    expected = {
        name: tensor
        for name, tensor in net.state_dict().items()
        if name in state or not name.endswith("num_batches_tracked")
    }
    problems = state_problems(expected, state)
    if problems:
        raise ValueError(
            f"{path}: these are not the weights of the backbone: {'; '.join(problems)}. Expected timm's naming and the "
            f"model that `--model.backbone` names. {WAYS_OUT}"
        )
    net.load_state_dict(state, strict=False)  # what may be missing was settled above
    logger.info("Backbone starts from %s (%d tensors).", path, len(state))


def _read_any(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such backbone weights file. {WAYS_OUT}")
    if path.suffix == ".safetensors":
        return read_state(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a PyTorch file of plain tensors ({_first_line(error)}).") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict (name -> tensor), found {type(state).__name__}.")
    return state


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _create(name: str, **options: object) -> EfficientNet:
    return timm.create_model(name, num_classes=0, global_pool="", **options)


def _plan(name: str) -> EfficientNet:
    """The network on the `meta` device: layers without memory, enough to check it and to read its widths."""
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{name!r}: timm {timm.__version__} has no such model.{hint}")
    try:
        with torch.device("meta"):
            plan = _create(name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{architecture}.*")
        if "tag" not in str(error):
            raise
        raise ValueError(f"{name!r}: {error} Weights of {architecture}: {', '.join(known) or 'none'}.") from error
    if not isinstance(plan, EfficientNet):
        raise ValueError(f"{name!r}: expected an EfficientNet-class model of timm, found {type(plan).__name__}.")
    if len(plan.blocks) > len(STAGES):
        raise ValueError(f"{name!r}: expected at most {len(STAGES)} stages, found {len(plan.blocks)}.")
    return plan


def _out_channels(stage: nn.Sequential) -> int:
    return stage[-1].feature_info("bottleneck")["num_chs"]


def _strides(plan: EfficientNet) -> dict[str, int]:
    # timm's feature_info names only the last stage of each stride, numbered from 1.
    ends = {info["stage"]: info["reduction"] for info in plan.feature_info}
    names = STAGES[: len(plan.blocks)]
    return {name: min(ends[end] for end in ends if end >= index) for index, name in enumerate(names, start=1)}


def _from_hub(name: str, drop_path_rate: float) -> EfficientNet:
    """The pretrained network: from the hub's local cache when it is there, else downloaded."""
    config = timm.get_pretrained_cfg(name)
    hub_id = config.hf_hub_id if config is not None else None
    cached = _cached_file(hub_id) if hub_id else None
    if hub_id and cached is None:
        _require_hub(name)
    try:
        overlay = {"file": cached} if cached else None
        return _create(name, drop_path_rate=drop_path_rate, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors, "no weights exist" a RuntimeError
        raise ValueError(f"{name}: cannot load ImageNet weights ({_first_line(error)}). {WAYS_OUT}") from error


def _cached_file(hub_id: str) -> str | None:
    # Asking the cache first makes a machine without network start at once; the hub client would retry for 25 s.
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "model.safetensors")
    return found if isinstance(found, str) else None


def _require_hub(name: str) -> None:
    """One quick request before timm's download, whose client tries twice six times (measured: 47 s without DNS)."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        # A certificate this Python does not know may be known to the hub's own client: let it try.
        if isinstance(getattr(error, "reason", error), ssl.SSLError):
            return
        raise ValueError(f"{name}: {endpoint} cannot be reached for ImageNet weights ({error}). {WAYS_OUT}") from error
