"""The authors' released checkpoints: the network that their tensors describe, and the tensors' names in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from multiattn.config import ModelConfig
from multiattn.config.model import MAX_MAPS, MAX_MARGIN
from multiattn.model.backbone import StageTable, read_stages
from multiattn.model.backbone_weights import rename_to_timm
from multiattn.model.network import NUM_CLASSES, MultiAttentionNet
from multiattn.model.rewrites import NOMINAL_SIZES
from multiattn.runtime.tensor_files import in_dtype_of, state_problems

EFFICIENTNETS = {
    (32, 1280, 16): "tf_efficientnet_b0",
    (32, 1280, 23): "tf_efficientnet_b1",
    (32, 1408, 23): "tf_efficientnet_b2",
    (40, 1536, 26): "tf_efficientnet_b3",
    (48, 1792, 32): "tf_efficientnet_b4",
    (48, 2048, 39): "tf_efficientnet_b5",
    (56, 2304, 45): "tf_efficientnet_b6",
    (64, 2560, 55): "tf_efficientnet_b7",
}
"""Channels of the stem, channels of the head, number of blocks -> timm's name."""
LARGER_EFFICIENTNETS = {(72, 2816, 61): "EfficientNet-B8", (136, 5504, 88): "EfficientNet-L2"}
XCEPTION = "legacy_xception"
IMAGE_SIZES = {**NOMINAL_SIZES, XCEPTION: 299}
"""Side in pixels of the crops that the release trained each backbone on."""

LAYERS = {
    "attentions": "attention",  # its mask
    "attentions.conv_extract": "attention.extract",
    "attentions.bn1": "attention.extract_norm",
    "attentions.conv2": "attention.conv",
    "attentions.bn2": "attention.norm",
    "texture_enhance.conv_extract": "texture.extract",
    "texture_enhance.conv0": "texture.first",
    **{f"texture_enhance.bn{i + 1}": f"texture.norms.{i}" for i in range(3)},
    **{f"texture_enhance.conv{i + 1}": f"texture.convs.{i}" for i in range(3)},
    "texture_enhance.bn4": "texture.last_norm",
    "texture_enhance.conv_last": "texture.last",
    "texture_enhance.bn_last": "texture.out_norm",
    "projection_local.0": "classifier.parts.0",
    "projection_local.2": "classifier.parts.2",
    "project_final": "classifier.whole.1",
    "ensemble_classifier_fc.0": "classifier.joint.0",
    "ensemble_classifier_fc.2": "classifier.joint.2",
}
"""Layers of the release -> layers of `MultiAttentionNet` with the official parts; `backbone_weights.py` has the
backbone's."""

BACKBONE_CLASSIFIER = "the backbone's own classifier, which the network does not use"
UNKNOWN = "no part of this network has a tensor of that name"
AUXILIARY = "of the auxiliary loss, which inference does not need"
LOSS_TENSORS = {
    "auxiliary_loss.feature_centers": "centres of the regional independence loss, which only training uses",
    "auxiliary_loss.alpha": "step of the centres; read into the run's loss settings, not used by the network",
    "auxiliary_loss.inner_margin": "margins of the loss; read into the run's loss settings, not used by the network",
}


@dataclass(frozen=True, kw_only=True)
class ConvertedState:
    """A released checkpoint in the names of `MultiAttentionNet`."""

    state: dict[str, Tensor]
    """Target name -> tensor; fills the network completely (but for batch counters an old file may lack)."""
    used: dict[str, str]
    """Source name -> target name."""
    unused: dict[str, str]
    """Source name -> reason; every source tensor stands in exactly one of the two."""


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the `module.` (or several) that DistributedDataParallel puts before every name."""
    state = dict(state)
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def target_name(source: str) -> str | None:
    """The name here of a released tensor beside the backbone's; None where there is no such layer."""
    layer, _, kind = source.rpartition(".")
    return f"{LAYERS[layer]}.{kind}" if layer in LAYERS else None


def read_layout(
    state: Mapping[str, Tensor], *, texture_stage: str | None = None, attention_stage: str | None = None
) -> tuple[ModelConfig, list[str]]:
    """Backbone, stages and widths of the network by names (without `module.`) and shapes, and sentences on what these
    leave open.

    The stages asked for decide where several are as wide as the texture block or the attention module; by default L2
    and L5. Refuses an unknown backbone, a missing part, and options of the release that this program does not have.
    """
    backbone = _backbone(state)
    table = read_stages(backbone)
    _refuse(_lacking(state, backbone, table))
    notes: list[str] = []
    texture, attention = (
        _stage(kind, asked, _shape(state, f"{layer}.conv_extract.weight")[1], table, notes)
        for kind, asked, layer in (
            ("texture", texture_stage, "texture_enhance"),
            ("attention", attention_stage, "attentions"),
        )
    )
    fine, coarse = table.strides[texture], table.strides[attention]
    if fine >= coarse:
        relation = "of equal strides" if fine == coarse else "with the coarser texture"
        _refuse([f"texture at {texture} and attention at {attention} {relation} ({fine} and {coarse} px)"])
    model = ModelConfig(
        backbone=backbone,
        pretrained=False,
        num_maps=_shape(state, "attentions.conv2.weight")[0],
        hidden_size=_shape(state, "projection_local.0.weight")[0],
        texture_stage=texture,
        attention_stage=attention,
    )
    return model, notes


def convert_state(state: Mapping[str, Tensor], network: MultiAttentionNet) -> ConvertedState:
    """Match a released state dict (without `module.`) with the network of its layout; neither is changed.

    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    expected = network.state_dict()
    prefix = "net."
    trunk = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    renamed = rename_to_timm(trunk, network.backbone.net)
    converted = {f"backbone.net.{name}": tensor for name, tensor in renamed.state.items()}
    used = {prefix + source: f"backbone.net.{target}" for source, target in renamed.targets.items()}
    unused = {prefix + source: BACKBONE_CLASSIFIER for source in renamed.unused}
    for source, tensor in state.items():
        target = target_name(source)
        if target in expected:
            used[source] = target
            converted[target] = in_dtype_of(expected[target], tensor)
        elif source not in used and source not in unused:
            other = AUXILIARY if source.startswith("auxiliary_loss.") else UNKNOWN
            unused[source] = LOSS_TENSORS.get(source, other)
    if problems := state_problems(expected, converted, counters=False):
        unknown = [name for name, reason in unused.items() if reason == UNKNOWN]
        raise ValueError(
            f"not a complete released checkpoint of {network.config.backbone}: {'; '.join(problems)} (in the names of "
            f"MultiAttentionNet). Of its {len(state)} tensors, {len(unknown)} are unknown: {unknown[:3]}."
        )
    return ConvertedState(
        state=converted,
        used={name: used[name] for name in state if name in used},
        unused={name: unused[name] for name in state if name in unused},
    )


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim < 2:
        plain = not any(key.startswith(("attentions.", "texture_enhance.")) for key in state)
        hint = "It holds a backbone alone: start an experiment from it with `--model.weights FILE`. " if plain else ""
        raise ValueError(
            f"not a released multi-attention checkpoint: no weight {name!r} among its {len(state)} tensors. {hint}"
            "Expected net.*, attentions.*, texture_enhance.*, projection_local.*, project_final.* and "
            "ensemble_classifier_fc.*."
        )
    return tuple(state[name].shape)


def _backbone(state: Mapping[str, Tensor]) -> str:
    if "net.block12.skip.weight" in state and "net.conv4.pointwise.weight" in state:
        return XCEPTION
    if "net._conv_stem.weight" not in state:
        raise ValueError(
            "not a released checkpoint: expected an EfficientNet (net._conv_stem.weight, net._blocks.*) or an Xception "
            f"(net.block1.* to net.block12.*), found {', '.join(list(state)[:3]) or 'no tensors'}, ..."
        )
    blocks = {found[1] for name in state if (found := re.match(r"net\._blocks\.(\d+)\.", name))}
    widths = (_shape(state, "net._conv_stem.weight")[0], _shape(state, "net._conv_head.weight")[0], len(blocks))
    if widths in LARGER_EFFICIENTNETS:
        _refuse([LARGER_EFFICIENTNETS[widths]])
    if widths not in EFFICIENTNETS:
        raise ValueError(
            f"an EfficientNet with {widths[0]} channels in its stem, {widths[1]} in its head and {widths[2]} blocks is "
            f"none of B0 to B7: expected one of {sorted(EFFICIENTNETS)}."
        )
    return EFFICIENTNETS[widths]


def _lacking(state: Mapping[str, Tensor], backbone: str, table: StageTable) -> list[str]:
    """Options of the release, as far as tensors tell them, that this program does not have."""
    stem = _shape(state, "net.conv2.weight" if backbone == XCEPTION else "net._conv_stem.weight")[0]
    others = {table.num_features: "`final`, the backbone's last map", stem: "`b0`, the output of its stem"}
    lacking = []
    for kind, layer in (("texture", "texture_enhance"), ("attention", "attentions")):
        channels = _shape(state, f"{layer}.conv_extract.weight")[1]
        if channels in others and channels not in table.channels.values():
            lacking.append(f"{kind} at {others[channels]}")
    num_classes = _shape(state, "ensemble_classifier_fc.2.weight")[0]
    if num_classes != NUM_CLASSES:
        lacking.append(f"{num_classes} classes in place of real and fake")
    num_maps = _shape(state, "attentions.conv2.weight")[0]
    if num_maps > MAX_MAPS:
        lacking.append(f"M = {num_maps} attention maps, more than {MAX_MAPS}")
    margins = state.get("auxiliary_loss.inner_margin")
    if margins is not None and not margins.is_meta and margins.numel() == 2:
        found = margins.double().flatten().tolist()
        if not all(abs(margin) <= MAX_MARGIN for margin in found):
            lacking.append(f"inner margins {found} beyond {MAX_MARGIN}")
    return lacking


def _refuse(options: list[str]) -> None:
    if options:
        raise ValueError(f"it uses options of the release that this program does not have: {'; '.join(options)}.")


def _stage(kind: str, asked: str | None, channels: int, table: StageTable, notes: list[str]) -> str:
    fitting = [stage for stage, width in table.channels.items() if width == channels]
    if not fitting:
        raise ValueError(f"the {kind} part takes {channels} channels; no stage of the backbone has as many: {table}.")
    if asked is not None and asked not in fitting:
        raise ValueError(
            f"--{kind}-stage {asked}: the {kind} part takes {channels} channels, so expected one of "
            f"{', '.join(fitting)}; the stages are {table}."
        )
    if asked is not None or len(fitting) == 1:
        return asked or fitting[0]
    default = {"texture": ModelConfig.texture_stage, "attention": ModelConfig.attention_stage}[kind]
    if default not in fitting:
        raise ValueError(f"--{kind}-stage: {', '.join(fitting)} all have {channels} channels; say which one it is.")
    notes.append(
        f"{kind} stage: {', '.join(fitting)} all have {channels} channels; took the default {default} "
        f"(--{kind}-stage overrides it)"
    )
    return default
