"""Foreign names of backbone weights -> timm's: efficientnet_pytorch and Cadene's Xception.

Where a backbone's weights come from: a local file in one of three namings, or timm's hub. Strict, with a report.
"""

import logging
import os
import pickle
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
from timm.models.efficientnet import EfficientNet
from timm.models.xception import Xception
from torch import Tensor, nn

from multiattn.model.backbone_stages import create_network
from multiattn.model.checkpoints import read_state, state_problems

logger = logging.getLogger(__name__)

Naming = Literal["timm", "efficientnet_pytorch", "cadene_xception"]

WRAPPERS = ("module.", "net.", "backbone.")
"""Prefixes that a wrapper (DistributedDataParallel, a larger network) puts before every name."""

TENSORFLOW_EPSILON = 1e-3
_TRUNK = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""The first group's blocks, which expand nothing."""


@dataclass(frozen=True, kw_only=True)
class RenamedState:
    """A state dict in timm's names, and what became of every source tensor.

    Attributes:
        naming: the convention the source follows.
        state: target name -> tensor with the network's dtype; the source's shape, but for 2-D pointwise weights.
        targets: source name -> target name, of every tensor in `state`.
        unused: source names of the classifier, which the network does not have.
        problems: phrases on what is missing, unexpected or of another shape; empty when the state fills the network.
            `num_batches_tracked` counters may be missing, since older files do not have them.
    """

    naming: Naming
    state: dict[str, Tensor]
    targets: dict[str, str]
    unused: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        left_out = f"left out: {', '.join(self.unused)} (classifier)" if self.unused else "nothing left out"
        return f"{self.naming} naming, {len(self.targets)} tensors matched, {left_out}"


def rename_to_timm(state: Mapping[str, Tensor], net: nn.Module) -> RenamedState:
    """Match a state dict, in any of three namings, with a timm network; neither is changed.

    A `module.`, `net.` or `backbone.` (or several) that every name begins with is taken off first.

    Args:
        state: source name -> tensor, any float dtype (converted to the network's).
        net: the network to fill, with or without its classifier.

    Returns:
        The renamed state. It fills the network completely exactly if it has no `problems`.

    Raises:
        ValueError: efficientnet_pytorch weights for a network that would compute something else with them: no
            EfficientNet, or one with another batch-norm epsilon than TensorFlow's.
    """
    prefix = _wrapper(state, net)
    naming = _naming((name.removeprefix(prefix) for name in state), state, net)
    if naming == "efficientnet_pytorch":
        _require_tensorflow_style(net)
    expected = net.state_dict()
    classifiers = _classifiers(net)
    targets, renamed, unused, unexpected = {}, {}, [], {}
    for source, tensor in state.items():
        target = _target(source.removeprefix(prefix), naming, net)
        if target in expected:
            targets[source] = target
            renamed[target] = _fitted(tensor, expected[target], naming)
        elif target is not None and target.rpartition(".")[0] in classifiers:
            unused.append(source)
        else:
            unexpected[source] = tensor
    needed = {
        name: tensor for name, tensor in expected.items() if name in renamed or not name.endswith("num_batches_tracked")
    }
    problems = tuple(state_problems(needed, {**renamed, **unexpected}))
    return RenamedState(naming=naming, state=renamed, targets=targets, unused=tuple(unused), problems=problems)


def _wrapper(state: Mapping[str, Tensor], net: nn.Module) -> str:
    own = tuple(f"{name}." for name, _ in net.named_children())
    prefix = ""
    while state:
        found = [
            wrapper
            for wrapper in WRAPPERS
            if wrapper not in own and all(name.startswith(prefix + wrapper) for name in state)
        ]
        if not found:
            break
        prefix += found[0]
    return prefix


def _naming(names: object, state: Mapping[str, Tensor], net: nn.Module) -> Naming:
    names = list(names)
    if any(name.startswith(("_conv_stem.", "_blocks.")) for name in names):
        return "efficientnet_pytorch"
    flat = any(name.endswith("pointwise.weight") and tensor.ndim == 2 for name, tensor in state.items())
    if isinstance(net, Xception) and (flat or any(name.startswith("last_linear.") for name in names)):
        return "cadene_xception"
    return "timm"


def _require_tensorflow_style(net: nn.Module) -> None:
    if not isinstance(net, EfficientNet):
        raise ValueError(
            f"the weights are an EfficientNet's in efficientnet_pytorch naming; the network is a {type(net).__name__}. "
            "Name a tf_efficientnet_b0 to b7."
        )
    epsilon = getattr(net.bn1, "eps", None)
    if epsilon != TENSORFLOW_EPSILON:
        raise ValueError(
            "the weights are in efficientnet_pytorch naming: they need TensorFlow's SAME padding and a batch-norm "
            f"epsilon of {TENSORFLOW_EPSILON}, the network has {epsilon}. Name a tf_efficientnet_b0 to b7."
        )


def _classifiers(net: nn.Module) -> tuple[str, ...]:
    found = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _target(name: str, naming: Naming, net: nn.Module) -> str | None:
    """timm's name of a source tensor; None when the naming does not know it."""
    if naming == "timm":
        return name
    if naming == "cadene_xception":
        return re.sub(r"^last_linear\.", "fc.", name)
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found is None:
        layer, _, kind = name.rpartition(".")
        layer = {**_TRUNK, "_fc": "classifier"}.get(layer)
        return f"{layer}.{kind}" if layer else None
    places = [(group, index) for group, blocks in enumerate(net.blocks) for index, _ in enumerate(blocks)]
    if int(found[1]) >= len(places):
        return None
    group, index = places[int(found[1])]
    layers = _EXPANDED if hasattr(net.blocks[group][index], "conv_pwl") else _SEPARABLE
    layer = layers.get(found[2])
    return f"blocks.{group}.{index}.{layer}.{found[3]}" if layer else None


def _fitted(tensor: Tensor, expected: Tensor, naming: Naming) -> Tensor:
    # Cadene's first files hold the pointwise convolutions as matrices (out, in).
    if naming == "cadene_xception" and tensor.ndim == 2 and expected.ndim == 4 and expected.shape[2:] == (1, 1):
        tensor = tensor[:, :, None, None]
    return tensor.to(expected.dtype) if expected.dtype.is_floating_point and _is_float(tensor) else tensor


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
