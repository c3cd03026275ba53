"""Where a backbone's weights come from: a local file in one of three namings, or timm's hub. Strict, with a report."""

import logging
import os
import pickle
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from multiattn.model.backbone_stages import create_network
from multiattn.model.checkpoints import read_state
from multiattn.model.weight_names import RenamedState, rename_to_timm

logger = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 5.0
WAYS_OUT = "Pass `--model.weights FILE` with a local copy, or `--model.no-pretrained` to start from random weights."


def load_backbone_file(net: nn.Module, path: str | Path) -> RenamedState:
    """Fill a timm network from a file in the naming of timm, efficientnet_pytorch or Cadene's Xception.

    A classifier in the file is left out when the network has none, and the log says so; nothing else may differ,
    except `num_batches_tracked` counters, which older files do not have. The network is untouched unless all fits.

    Args:
        net: the network.
        path: safetensors or .pth; `state_dict` entry and `module.`, `net.`, `backbone.` prefixes allowed.

    Returns:
        What was matched with what.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or tensors missing, unexpected or of another shape.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such backbone weights file. {WAYS_OUT}")
    state = read_tensors(path)
    try:
        renamed = rename_to_timm(state, net)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if renamed.problems:
        raise ValueError(
            f"{path}: these are not the weights of the backbone: {'; '.join(renamed.problems)} "
            f"({renamed.naming} naming). Expected the model that `--model.backbone` names, in the naming of timm, "
            f"efficientnet_pytorch or Cadene's Xception, and nothing beside it. {WAYS_OUT}"
        )
    net.load_state_dict(renamed.state, strict=False)  # what may be missing was settled above
    logger.info("Backbone starts from %s: %s.", path, renamed)
    return renamed


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or a PyTorch file, on the CPU; of a training checkpoint its `state_dict`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, no state dict, or pickled objects, which are never unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file.")
    if path.suffix == ".safetensors":
        return read_state(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        if "GLOBAL" in str(error):
            raise ValueError(
                f"{path}: holds pickled Python objects, which are refused: unpickling runs code that the file names. "
                "Where you trust its origin, save its tensors alone: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)."
            ) from error
        raise ValueError(f"{path}: not a PyTorch file of plain tensors ({_first_line(error)}).") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict (name -> tensor), found {type(state).__name__}.")
    return dict(state)


def create_from_hub(name: str, drop_path_rate: float) -> nn.Module:
    """The pretrained network without its classifier: from the hub's local cache when it is there, else downloaded.

    Raises:
        ValueError: no such weights, or out of reach.
    """
    config = timm.get_pretrained_cfg(name)
    hub_id = config.hf_hub_id if config is not None else None
    cached = _cached_file(hub_id) if hub_id else None
    if hub_id and cached is None:
        _require_hub(name)
    # Built with the classifier of the weights: timm loads strictly then, and with strict=False into a net without one.
    options = {"pretrained": True, "num_classes": None, "global_pool": None}  # None: the model's own
    try:
        overlay = {"file": cached} if cached else None
        net = create_network(name, drop_path_rate=drop_path_rate, pretrained_cfg_overlay=overlay, **options)
    except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors, "no weights exist" a RuntimeError
        raise ValueError(f"{name}: cannot load ImageNet weights ({_first_line(error)}). {WAYS_OUT}") from error
    total = len(net.state_dict())
    net.reset_classifier(0, "")
    matched = len(net.state_dict())
    logger.info(
        "Backbone starts from timm's %s: %d tensors matched, %d left out (classifier).", name, matched, total - matched
    )
    return net


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


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
