"""The stages of a timm network: how many, how wide, how coarse, and how to hand out their maps."""

import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from timm.models.efficientnet import EfficientNet
from timm.models.xception import Xception
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Maps = tuple[dict[str, Tensor], Tensor]
XCEPTION_STRIDES = (4, 8, 16, 16, 16, 16, 16, 16, 16, 16, 16, 32)


@dataclass(frozen=True)
class StageTable:
    """What a network can hand out.

    Attributes:
        channels: stage name L1, L2, ... -> channels of its map, finest stage first.
        strides: stage name -> input pixels a cell of its map.
        num_features: channels of the last map.
        run: (network, images, stages) -> maps of those stages and the last map.
    """

    channels: dict[str, int]
    strides: dict[str, int]
    num_features: int
    run: Callable[[nn.Module, Tensor, tuple[str, ...]], Maps]

    def __str__(self) -> str:
        return ", ".join(f"{stage} {self.channels[stage]}ch /{self.strides[stage]}" for stage in self.channels)


def create_network(name: str, *, drop_path_rate: float = 0.0, **options: object) -> nn.Module:
    """A timm network without pooling and, unless `options` say otherwise, without classifier.

    A family without stochastic depth (Xception, VGG, ...) is built without it, and the log says so.
    """
    options = {"num_classes": 0, "global_pool": "", **options}
    if drop_path_rate == 0:
        return timm.create_model(name, **options)
    try:
        return timm.create_model(name, drop_path_rate=drop_path_rate, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        logger.warning("%s has no stochastic depth; drop_path_rate %g is not used.", name, drop_path_rate)
        return timm.create_model(name, **options)


def read_stages(name: str) -> StageTable:
    """The stages of a timm model, read from a copy on the `meta` device: layers without memory.

    EfficientNets and their kin have one stage a group of blocks (L1..L7 in B0 to B7), Xception one a block (L1..L12,
    each before the ReLU that opens the next block), any other network those of timm's `feature_info`.

    Args:
        name: timm model, with or without a weights tag.

    Raises:
        ValueError: unknown name or tag, or a network that has no stages of spatial maps.
    """
    net = _plan(name)
    if isinstance(net, EfficientNet):
        channels = [stage[-1].feature_info("bottleneck")["num_chs"] for stage in net.blocks]
        return _table(channels, _efficientnet_strides(net), net.num_features, run_efficientnet)
    if isinstance(net, Xception):
        blocks = [getattr(net, f"block{number}") for number, _ in enumerate(XCEPTION_STRIDES, start=1)]
        channels = [[m for m in block.rep if isinstance(m, nn.BatchNorm2d)][-1].num_features for block in blocks]
        return _table(channels, XCEPTION_STRIDES, net.num_features, run_xception)
    maps, last = _trial(net, name)
    infos = list(net.feature_info)
    strides = [info["reduction"] for info in infos]
    return _table([features.shape[1] for features in maps], strides, last.shape[1], run_any)


def run_efficientnet(net: EfficientNet, images: Tensor, stages: tuple[str, ...]) -> Maps:
    """Maps after the groups of blocks asked for; the last after head convolution, normalisation and activation."""
    features = net.bn1(net.conv_stem(images))
    maps = {}
    for number, blocks in enumerate(net.blocks, start=1):
        features = blocks(features)
        if f"L{number}" in stages:
            maps[f"L{number}"] = features
    return maps, net.bn2(net.conv_head(features))


def run_xception(net: Xception, images: Tensor, stages: tuple[str, ...]) -> Maps:
    """Maps after the blocks asked for, before the next ReLU (which is not in place); the last after `act4`."""
    features = net.act1(net.bn1(net.conv1(images)))
    features = net.act2(net.bn2(net.conv2(features)))
    maps = {}
    for number, _ in enumerate(XCEPTION_STRIDES, start=1):
        features = getattr(net, f"block{number}")(features)
        if f"L{number}" in stages:
            maps[f"L{number}"] = features
    features = net.act3(net.bn3(net.conv3(features)))
    return maps, net.act4(net.bn4(net.conv4(features)))


def run_any(net: nn.Module, images: Tensor, stages: tuple[str, ...]) -> Maps:
    """timm's intermediate maps, and what the network puts out without pooling.

    The unpooled output includes a normalisation that timm applies after pooling (ConvNeXt): here it acts on each
    cell, so that the last map is normalised and no parameter of the network goes unused.
    """
    wanted = sorted({int(stage[1:]) - 1 for stage in stages})
    if wanted:
        features, maps = net.forward_intermediates(images, indices=wanted)
    else:
        features, maps = net.forward_features(images), []
    return {f"L{index + 1}": found for index, found in zip(wanted, maps, strict=True)}, _unpooled(net, features)


def _unpooled(net: nn.Module, features: Tensor) -> Tensor:
    last = net.forward_head(features)
    return last.permute(0, 3, 1, 2) if getattr(net, "output_fmt", None) == "NHWC" else last  # Swin and kin


def forbid_in_place(net: nn.Module) -> None:
    """Turn off in-place activations: one that opens the next stage would alter the map that was handed out."""
    for module in net.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False


def _plan(name: str) -> nn.Module:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{name!r}: timm {timm.__version__} has no such model.{hint}")
    try:
        with torch.device("meta"):
            return create_network(name).eval()
    except RuntimeError as error:
        known = timm.list_pretrained(f"{architecture}.*")
        if "tag" not in str(error):
            raise
        raise ValueError(f"{name!r}: {error} Weights of {architecture}: {', '.join(known) or 'none'}.") from error
    except (TypeError, AssertionError, ValueError) as error:  # families that cannot do without pooling
        raise _no_stages(name, f"timm cannot build it without pooling: {error}") from error


def _trial(net: nn.Module, name: str) -> Maps:
    """One image through a planned network, which must come out as maps; its stages as a list, and the last map."""
    if not hasattr(net, "forward_intermediates") or not getattr(net, "feature_info", None):
        raise _no_stages(name, "timm offers no intermediate maps of it")
    image = torch.zeros(1, *net.pretrained_cfg["input_size"], device="meta")
    try:
        with torch.no_grad():
            features, maps = net.forward_intermediates(image)
            last = _unpooled(net, features)
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:  # of any family
        raise _no_stages(name, f"a trial run failed: {error}") from error
    if not isinstance(last, Tensor) or last.ndim != 4:
        found = tuple(last.shape) if isinstance(last, Tensor) else type(last).__name__
        raise _no_stages(name, f"its output is {found}, tokens instead of one map")
    expected = [info["num_chs"] for info in net.feature_info]
    found = [features.shape[1] if features.ndim == 4 else None for features in maps]
    if found != expected:
        raise _no_stages(name, f"its intermediate maps have {found} channels instead of {expected}")
    if last.shape[1] not in (net.num_features, getattr(net, "head_hidden_size", None)):
        raise _no_stages(name, f"its last map is {tuple(last.shape)}, channels not second")
    return maps, last


def _no_stages(name: str, reason: str) -> ValueError:
    return ValueError(
        f"{name!r} cannot serve as a backbone: expected a convolutional network with stages of maps "
        f"(B, channels, H, W), such as tf_efficientnet_b4, legacy_xception, resnet50 or convnext_tiny; {reason}."
    )


def _table(channels: list[int], strides: list[int] | tuple[int, ...], num_features: int, run: Callable) -> StageTable:
    names = [f"L{number}" for number, _ in enumerate(channels, start=1)]
    return StageTable(
        dict(zip(names, channels, strict=True)), dict(zip(names, strides, strict=True)), num_features, run
    )


def _efficientnet_strides(net: EfficientNet) -> list[int]:
    # timm's feature_info names only the last stage of each stride, numbered from 1.
    ends = {info["stage"]: info["reduction"] for info in net.feature_info}
    return [min(ends[end] for end in ends if end >= number) for number, _ in enumerate(net.blocks, start=1)]
