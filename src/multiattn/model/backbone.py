"""The backbone: a timm network that hands out the maps of its stages L1, L2, ... and its last map.

Any network with stages of maps that timm can build serves, and its vision transformers, whose blocks are stages of one
stride; also a network registered from outside by `timm.models.register_model`: see "Another backbone" in README.md.
"""

import functools
import inspect
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.xception import Xception
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multiattn.config import ModelConfig, Padding
from multiattn.config.model import HALF, Channels
from multiattn.config.settings import did_you_mean
from multiattn.model.backbone_weights import WAYS_OUT, load_backbone_file
from multiattn.model.rewrites import checkpoint_blocks, use_static_padding
from multiattn.runtime.tensor_files import first_line

logger = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 5.0
MAX_SIDE = 2**16
Maps = tuple[dict[str, Tensor], Tensor]
XCEPTION_STRIDES = (4, 8, 16, 16, 16, 16, 16, 16, 16, 16, 16, 32)
TOKEN_NETWORKS = (VisionTransformer, Eva, Beit)
"""timm's vision transformers of one stride: ViT, DeiT, DINOv2, CLIP, SigLIP; EVA-02, DINOv3, PE; BEiT."""


@dataclass(frozen=True)
class StageTable:
    """Stages of a network."""

    channels: dict[str, int]
    """Stage name L1, L2, ... -> channels of its map, finest stage first."""
    strides: dict[str, int]
    """Stage name -> input pixels a cell of its map (nominal: static padding and Xception's unpadded stem give slightly
    smaller grids than ceil(size / stride))."""
    num_features: int
    """Channels of the last map (after the trunk's last normalisation and activation, before pooling)."""
    run: Callable[[nn.Module, Tensor, tuple[str, ...]], Maps]
    """(network, images, stages) -> maps of those stages and the last map."""
    sizes: range | None = None
    """Sides of the square images that the network takes, in pixels; None where it takes any."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options that timm builds it with."""
    input_mean: Channels = HALF
    input_std: Channels = HALF
    """Per RGB channel in [0, 1], of the pixels that timm trained the weights on; 0.5 where it does not say."""

    def __str__(self) -> str:
        return ", ".join(f"{stage} {self.channels[stage]}ch /{self.strides[stage]}" for stage in self.channels)


class Backbone(nn.Module):
    """Features of an EfficientNet (or kin), an Xception, any timm network with stages of maps, or a vision transformer.

    `forward` hands out `stages`; names, channels and strides are those of every stage, as in `StageTable`. `net` is
    timm's network.

    Departures: the paper names EfficientNet-B4 and Xception; the others are ours.
    """

    def __init__(
        self,
        name: str,
        *,
        stages: tuple[str, ...],
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        weights: str | Path | None = None,
        padding: Padding = "dynamic",
        norm_momentum: float | None = None,
        checkpoint_activations: bool = False,
        input_mean: Channels | None = None,
        input_std: Channels | None = None,
        own_pooling: bool = False,
    ) -> None:
        """Build the network of that name in timm, with settings as those of `ModelConfig`, and load its weights.

        With `own_pooling` a vision transformer pools as its weights were trained to (class token, mean of the patch
        tokens or attention pooling), and that is its last map, of one cell; else it is the map of the patch tokens.

        Raises:
            ValueError: unknown name or stage, a network without stages of maps, static padding of a network without
                SAME padding, checkpointing of one without blocks, weights that do not fit or a hub out of reach.
            FileNotFoundError: no file `weights`.
        """
        super().__init__()
        table = read_stages(name)
        self.names = tuple(table.channels)
        unknown = [stage for stage in stages if stage not in self.names]
        if unknown:
            raise ValueError(f"{name}: no stage {unknown[0]!r}; expected one of {table}.")
        self.stages = tuple(stages)
        self.channels, self.strides, self.num_features = table.channels, table.strides, table.num_features
        self._run = table.run
        create = create_from_hub if pretrained and weights is None else create_network
        self.net = create(name, drop_path_rate=drop_path_rate, **table.options)
        if padding == "static":
            use_static_padding(self.net, name)
        for module in self.net.modules():
            # The other two open no stage with an in-place layer, which would alter the map before.
            if self._run is run_any and getattr(module, "inplace", False) is True:
                module.inplace = False
            if norm_momentum is not None and isinstance(module, _BatchNorm):
                module.momentum = norm_momentum
        if weights is not None:
            load_backbone_file(self.net, weights)
        if self._run is run_tokens and not own_pooling:
            self.net.reset_classifier(0, "")  # once the weights have filled it: drops the layers that pool
        if checkpoint_activations:
            checkpoint_blocks(self.net, name)
        ranges = input_mean or table.input_mean, input_std or table.input_std
        self.has_own_range = ranges != (HALF, HALF)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ranges)
        # ((x + 1) / 2 - mean) / std as one multiplication and one addition. Not persistent: settings, not weights.
        self.register_buffer("input_scale", 0.5 / std, persistent=False)
        self.register_buffer("input_shift", (0.5 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Maps of images (B, 3, H, W) in [-1, 1], which are brought to the network's own range first.

        Returns {stage: (B, C_t, H_t, W_t)}, finest first, and the last map (B, num_features, H_last, W_last).
        """
        if self.has_own_range:
            images = images * self.input_scale + self.input_shift
        return self._run(self.net, images, self.stages)


def settle_input(model: ModelConfig) -> ModelConfig:
    """The settings with the numbers that the input is normalised by: the backbone's where they name none."""
    if model.input_mean is not None:
        return model
    table = read_stages(model.backbone)
    return replace(model, input_mean=table.input_mean, input_std=table.input_std)


def require_image_size(name: str, image_size: int) -> None:
    """Raise `ValueError` where a network does not take square crops of that many pixels; names the nearest it does."""
    sizes = read_stages(name).sizes
    if sizes is None or image_size in sizes:
        return
    step = f"multiples of its patch of {sizes.step} px" if len(sizes) > 1 else f"{sizes[0]} px alone"
    near = " or ".join(map(str, sorted(sorted(sizes, key=lambda size: abs(size - image_size))[:2])))
    raise ValueError(
        f"--data.image-size {image_size}: {name} takes {step}. Give --data.image-size {near} (crops that are stored "
        "larger are averaged down)."
    )


@functools.cache
def read_stages(name: str) -> StageTable:
    """The stages of a timm model, read from a copy on the `meta` device: layers without memory.

    EfficientNets and their kin have one stage a group of blocks (L1..L7 in B0 to B7), Xception one a block (L1..L12,
    the authors' b1..b12, each before the ReLU that opens the next), a vision transformer one a block, any other network
    those of timm's `feature_info`.

    Raises:
        ValueError: unknown name or tag, or a network that has no stages of spatial maps.
    """
    net = _plan(name)
    if isinstance(net, EfficientNet):
        channels = [stage[-1].feature_info("bottleneck")["num_chs"] for stage in net.blocks]
        return _table(net, channels, _efficientnet_strides(net), net.num_features, run_efficientnet)
    if isinstance(net, Xception):
        blocks = [getattr(net, f"block{number}") for number, _ in enumerate(XCEPTION_STRIDES, start=1)]
        channels = [[m for m in block.rep if isinstance(m, nn.BatchNorm2d)][-1].num_features for block in blocks]
        return _table(net, channels, XCEPTION_STRIDES, net.num_features, run_xception)
    run = run_tokens if isinstance(net, TOKEN_NETWORKS) else run_any
    maps, last = _trial(net, name, run)
    strides = [info["reduction"] for info in net.feature_info]
    table = _table(net, [features.shape[1] for features in maps], strides, last.shape[1], run)
    embed = getattr(net, "patch_embed", None)
    if getattr(embed, "strict_img_size", False):  # Swin and BEiT too, whose positions are of one size
        table = replace(table, sizes=range(embed.img_size[-1], embed.img_size[-1] + 1))
    if run is run_any:
        return table
    # Built with its own pooling: timm chooses the place of the last normalisation by it.
    options = {"global_pool": None}
    if "dynamic_img_size" in inspect.signature(type(net).__init__).parameters:
        # The network learns no size: timm resizes the positions of the pretrained grid in every forward.
        options["dynamic_img_size"] = True
        table = replace(table, sizes=range(strides[0], MAX_SIDE, strides[0]))
    return replace(table, options=options)


def _plan(name: str) -> nn.Module:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models(), count=3)
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


def _trial(net: nn.Module, name: str, run: Callable) -> tuple[list[Tensor], Tensor]:
    """One image through a planned network, which must come out as maps; its stages as a list, and the last map."""
    if not hasattr(net, "forward_intermediates") or not getattr(net, "feature_info", None):
        raise _no_stages(name, "timm offers no intermediate maps of it")
    size = (getattr(net, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    image = torch.zeros(1, *size, device="meta")
    try:
        with torch.no_grad():
            found, last = run(net, image, tuple(f"L{number}" for number, _ in enumerate(net.feature_info, start=1)))
            maps = list(found.values())
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:  # of any family
        raise _no_stages(name, f"a trial run failed: {error}") from error
    if not isinstance(last, Tensor) or last.ndim != 4:
        found = tuple(last.shape) if isinstance(last, Tensor) else type(last).__name__
        raise _no_stages(name, f"its output is {found}, tokens instead of one map")
    if run is run_tokens and last.shape[-2:] != maps[-1].shape[-2:]:
        raise _no_stages(name, "it puts out no patch tokens without pooling")
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
        f"(B, channels, H, W), such as tf_efficientnet_b4, legacy_xception, resnet50 or convnext_tiny, or a vision "
        f"transformer such as vit_base_patch14_reg4_dinov2; {reason}."
    )


def _table(
    net: nn.Module, channels: list[int], strides: list[int] | tuple[int, ...], num_features: int, run: Callable
) -> StageTable:
    names = [f"L{number}" for number, _ in enumerate(channels, start=1)]
    weights = getattr(net, "pretrained_cfg", None) or {}
    return StageTable(
        dict(zip(names, channels, strict=True)),
        dict(zip(names, strides, strict=True)),
        num_features,
        run,
        input_mean=tuple(weights.get("mean") or HALF),
        input_std=tuple(weights.get("std") or HALF),
    )


def _efficientnet_strides(net: EfficientNet) -> list[int]:
    # timm's feature_info names only the last stage of each stride, numbered from 1.
    ends = {info["stage"]: info["reduction"] for info in net.feature_info}
    return [min(ends[end] for end in ends if end >= number) for number, _ in enumerate(net.blocks, start=1)]


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
    features, maps = _intermediates(net, images, stages)
    last = net.forward_head(features)
    return maps, last.permute(0, 3, 1, 2) if getattr(net, "output_fmt", None) == "NHWC" else last  # Swin and kin


def run_tokens(net: nn.Module, images: Tensor, stages: tuple[str, ...]) -> Maps:
    """timm's maps of the blocks asked for, class and register tokens apart, and the last map.

    That is the patch tokens after the last normalisation, also where timm applies it after pooling; or, where the
    network has kept its own pooling, the pooled features as a map of one cell.
    """
    features, maps = _intermediates(net, images, stages)
    found = net.forward_head(features, pre_logits=True)  # (B, tokens, C) without pooling
    if found.ndim == 2:
        return maps, found[:, :, None, None]
    grid = net.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
    return maps, found[:, net.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)


def _intermediates(net: nn.Module, images: Tensor, stages: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """timm's features of an image before the head, and the maps of these stages."""
    wanted = sorted({int(stage[1:]) - 1 for stage in stages})
    if not wanted:
        return net.forward_features(images), {}
    features, maps = net.forward_intermediates(images, indices=wanted)
    return features, {f"L{index + 1}": found for index, found in zip(wanted, maps, strict=True)}


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


def create_from_hub(name: str, drop_path_rate: float, *, global_pool: str | None = "", **options: object) -> nn.Module:
    """The pretrained network without its classifier: from the hub's local cache when it is there, else downloaded.

    Pooled by `global_pool`, None being the network's own.

    Raises:
        ValueError: no such weights, or out of reach.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"{name}: timm knows no pretrained weights of it. {WAYS_OUT}")
    hub_id = config.hf_hub_id
    cached = _cached_file(hub_id) if hub_id else None
    if hub_id and cached is None:
        _require_hub(name)
    # Built with the classifier of the weights: timm loads strictly then, and with strict=False into a net without one.
    options |= {"pretrained": True, "num_classes": None, "global_pool": None}  # None: the model's own
    try:
        overlay = {"file": cached} if cached else None
        net = create_network(name, drop_path_rate=drop_path_rate, pretrained_cfg_overlay=overlay, **options)
    except (OSError, RuntimeError) as error:  # of the hub and of a file that does not fit
        raise ValueError(f"{name}: cannot load pretrained weights ({first_line(error)}). {WAYS_OUT}") from error
    total = len(net.state_dict())
    net.reset_classifier(0, global_pool)
    matched = len(net.state_dict())
    logger.info(
        "Backbone starts from timm's %s: %d tensors matched, %d left out (classifier).", name, matched, total - matched
    )
    return net


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
        raise ValueError(f"{name}: {endpoint} cannot be reached for weights ({error}). {WAYS_OUT}") from error
