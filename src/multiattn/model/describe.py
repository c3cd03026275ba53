"""Shapes of a network's layers, its parameters and its FLOPs, measured by a forward pass on shapes alone."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from multiattn.config import AgdaConfig, Experiment, LossConfig, ModelConfig, to_json
from multiattn.config.model import HALF
from multiattn.model.backbone import settle_input
from multiattn.model.network import BaselineNet, MultiAttentionNet
from multiattn.model.texture import GroupedTextureEnhancement, TextureEnhancement

BATCH = 2
"""Images in the measured forward: the first axis of every tensor, left out of the shapes."""

RESIDUAL_TAKERS: dict[type, Callable[[nn.Module], nn.Module]] = {
    TextureEnhancement: lambda texture: texture.layers[0],
    GroupedTextureEnhancement: lambda texture: texture.first,
}
"""The first layer that T goes through, in each form of the texture block."""


@dataclass(frozen=True)
class Layer:
    """A tensor of the forward pass."""

    symbols: tuple[str, ...]
    """Its names in the paper: `f_2` and, where the stage has a part to play, `SL_t`."""
    meaning: str
    shape: tuple[int, ...]
    """Without the batch, which comes first."""
    stride: int | None = None
    """Input pixels a cell, of the backbone's stages (nominal); None elsewhere."""


@dataclass(frozen=True)
class Part:
    """One of the network's modules, or `pooling`: P, G and V, computed between them without parameters."""

    name: str
    parameters: int
    trained: int
    """Parameters that gradients reach, as the network stands."""
    weight_bytes: int
    """Memory of parameters and buffers."""
    flops: int
    """Those of an eval forward, for one image; a multiply-add counts as two. Convolutions and matrix products only."""


@dataclass(frozen=True)
class NetworkDescription:
    """The layers in the order of the computation, and the parts, which add up to `total`."""

    layers: tuple[Layer, ...]
    parts: tuple[Part, ...]
    total: Part

    def shape(self, symbol: str) -> tuple[int, ...]:
        return {name: layer.shape for layer in self.layers for name in layer.symbols}[symbol]


def describe_network(network: MultiAttentionNet | BaselineNet, image_size: int) -> NetworkDescription:
    """Shapes, parameters and FLOPs of an eval forward on crops of that many pixels a side, which computes nothing.

    The network is left as it was; it may live on the `meta` device, where it has no weights at all.
    """
    was_training, stages = network.training, network.backbone.stages
    network.eval()
    network.backbone.stages = network.backbone.names  # all of them, for this one forward
    counter = FlopCounterMode(display=False, depth=2)
    try:
        with FakeTensorMode(), torch.no_grad(), _watched(network) as seen:
            state = {
                name: torch.empty(value.shape, dtype=value.dtype)
                for name, value in (*network.named_parameters(), *network.named_buffers())
            }
            images = torch.empty(BATCH, 3, image_size, image_size)
            with counter:
                output = torch.func.functional_call(network, state, (images,))
    finally:
        network.train(was_training)
        network.backbone.stages = stages
    seen |= {"I": images, "A": output.attention, "V": output.parts, "logits": output.logits}
    shapes = {name: tuple(value.shape[1:]) for name, value in seen.items() if value is not None}
    parts, total = _parts(network, counter)
    return NetworkDescription(_layers(network, shapes), parts, total)


def departures(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Settings of network, losses and AGDA with another value than the paper's: name -> `found` and `paper`."""
    own = to_json(replace(experiment, model=settle_input(experiment.model)))
    return {
        f"{group}.{name}": {"found": own[group][name], "paper": value}
        for group, paper in (
            ("model", ModelConfig(input_mean=HALF, input_std=HALF)),
            ("loss", LossConfig()),
            ("agda", AgdaConfig()),
        )
        for name, value in to_json(paper).items()
        if own[group][name] != value
    }


@contextlib.contextmanager
def _watched(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The tensors between the modules, by symbol, filled in by the next forward."""
    seen: dict[str, Tensor] = {}
    hooks: list[RemovableHandle] = []

    def watch(module: nn.Module, names: Callable[[tuple, object], dict[str, Tensor]]) -> None:
        hooks.append(module.register_forward_hook(lambda _, inputs, output: seen.update(names(inputs, output))))

    watch(network.backbone, lambda _, output: {**output[0], "f_last": output[1]})
    if isinstance(network, MultiAttentionNet):
        if network.stem is not None:
            watch(network.stem, lambda _, output: {"f": output})
        watch(RESIDUAL_TAKERS[type(network.texture)](network.texture), lambda inputs, _: {"T": inputs[0]})
        watch(network.texture, lambda _, output: {"F": output[0], "D": output[1]})
        watch(network.classifier, lambda inputs, _: {"P": inputs[0], "G": inputs[1]})
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _layers(network: MultiAttentionNet | BaselineNet, shapes: dict[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    roles: dict[str, tuple[str, str]] = {}
    grouped = False
    if isinstance(network, MultiAttentionNet):
        config = network.config
        roles[config.texture_stage] = ("SL_t", ", the texture stage")
        roles[config.attention_stage] = ("SL_a", ", the attention stage")
        grouped = isinstance(network.texture, GroupedTextureEnhancement)
    found = [Layer(("I",), "face crops, RGB in [-1, 1]", shapes["I"], 1)]
    for name, stride in network.backbone.strides.items():
        symbol, words = roles.get(name, ("", ""))
        symbols = (f"f_{name.removeprefix('L')}", *([symbol] if symbol else []))
        found.append(Layer(symbols, f"stage {name}{words}", shapes[name], stride))
    meanings = {
        "f_last": "the backbone's last map",
        "f": "texture stage: a stem on I, and SL_t",
        "A": "attention maps",
        "D": "texture stage, averaged to A's grid",
        "T": "texture residuals, tanh(A_k) times each" if grouped else "texture residual",
        "F": "enhanced textures, one a map" if grouped else "enhanced texture",
        "P": "textural matrix, a row for each map",
        "G": "global vector",
        "V": "part vectors, for the auxiliary loss",
        "logits": "real, fake",
    }
    found += [Layer((name,), words, shapes[name]) for name, words in meanings.items() if name in shapes]
    return tuple(found)


def _parts(network: nn.Module, counter: FlopCounterMode) -> tuple[tuple[Part, ...], Part]:
    flops = {path: sum(kinds.values()) // BATCH for path, kinds in counter.get_flop_counts().items()}
    top = type(network).__name__
    parts = [_part(name, module, flops.get(f"{top}.{name}", 0)) for name, module in network.named_children()]
    total = _part("total", network, counter.get_total_flops() // BATCH)
    parts.append(Part("pooling", 0, 0, 0, total.flops - sum(part.flops for part in parts)))
    return tuple(part for part in parts if part.parameters or part.flops), total


def _part(name: str, module: nn.Module, flops: int) -> Part:
    weight_bytes = sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    return Part(name, sum(size for size, _ in sizes), trained, weight_bytes, flops)
