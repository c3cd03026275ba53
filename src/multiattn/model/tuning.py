"""Tuning a part of a backbone: the layers that are trained, LoRA, and checkpoints that hold what was tuned alone.

Parts of a timm network that are not trained get no gradients and stay in eval mode: no stochastic depth, no dropout,
and batch normalisation by the statistics they came with. Layers that are trained are in training mode: under `norms`
those of batch normalisation normalise by the batch, and their running statistics follow it.

Names of the factors in a state are peft's: `qkv.base_layer.weight`, `qkv.lora_A.default.weight`, `qkv.lora_B...`. A
merged state has the names and the shapes of a network without them.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from multiattn.config import ModelConfig, run_experiment
from multiattn.config.settings import registry
from multiattn.model.network import make_network
from multiattn.runtime.files import read_json
from multiattn.runtime.layout import EXPERIMENT_FILE
from multiattn.runtime.tensor_files import read_metadata, read_state

LORA_SCALE, LORA_DROPOUT = 2, 0.05
"""alpha / r, the factor on B A; the dropout before A."""
LORA_LAYERS = ("lora_A", "lora_B", "lora_dropout")
_FIRST, _SECOND, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."
_LINEAR = re.compile(r"(.+\.)?blocks\.\d+\.(.+\.)?(qkv|[qkv]_proj|attn\.proj|fc1|fc1_[gx]|fc2)")
"""Attention and MLPs of timm's transformers: ViT (DINO, CLIP, SigLIP, PE), EVA-02, BEiT, Swin."""
_NET = "backbone.net."
"""Before the names of the timm network's tensors in a network's state."""
BASE_DIGEST = "base_sha256"
"""Note in a checkpoint that holds what was tuned alone: the digest of the weights it was tuned from."""


def _norm_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Layers with weights of their own whose class says Norm, whatever they normalise over."""
    return {
        path: layer
        for path, layer in net.named_modules()
        if "Norm" in type(layer).__name__ and any(True for _ in layer.parameters(recurse=False))
    }


def _lora_layers(net: nn.Module) -> dict[str, nn.Module]:
    return {path: layer for path, layer in net.named_modules() if path.rpartition(".")[2] in LORA_LAYERS}


TRAINED_LAYERS: dict[str, Callable[[nn.Module], dict[str, nn.Module]]] = registry(
    ModelConfig,
    "tune",
    {"all": lambda net: {"": net}, "norms": _norm_layers, "lora": _lora_layers, "head": lambda _: {}},
)
"""Name -> the layers of a timm network that are trained, by their paths."""


def prepare_tuning(net: nn.Module, config: ModelConfig) -> None:
    """Give a timm network LoRA's factors where these are what is trained, in place; their product begins at 0.

    Raises:
        ValueError: the network has no layers of the kind that is to be trained, or peft is missing.
    """
    if config.tune == "lora":
        _add_lora(net, config)
    elif config.tune == "norms" and not _norm_layers(net):
        raise ValueError(f"{config.backbone}: tune norms needs normalisation layers with weights; it has none.")


def _add_lora(net: nn.Module, config: ModelConfig) -> None:
    modules = dict(net.named_modules())
    paths = [path for path, layer in modules.items() if isinstance(layer, nn.Linear) and _LINEAR.fullmatch(path)]
    if not paths:
        raise ValueError(
            f"{config.backbone}: tune lora needs the linear layers of a transformer's blocks (qkv, proj, fc1, fc2); it "
            "has none. Use `--model.tune norms` or `head`, or a vision transformer."
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"--model.tune lora: expected the package peft, found none that can be imported ({error}). "
            "`pip install peft`, with the bounds of requirements.txt, where you train; nothing else needs it."
        ) from error
    for layer in modules.values():
        if getattr(layer, "q_bias", None) is not None:  # EVA, BEiT and Swin v2 would pass by the wrapped layer
            if not hasattr(layer, "qkv_bias_separate"):
                raise ValueError(f"{config.backbone}: tune lora cannot reach its {type(layer).__name__}'s qkv layer.")
            layer.qkv_bias_separate = True
    rank, targets = config.lora_rank, "|".join(map(re.escape, paths))
    settings = {"r": rank, "lora_alpha": LORA_SCALE * rank, "lora_dropout": LORA_DROPOUT, "target_modules": targets}
    inject_adapter_in_model(LoraConfig(**settings), net)


def set_gradients(net: nn.Module, tune: str) -> None:
    """Let gradients reach the layers of a timm network that are trained, and no others."""
    net.requires_grad_(False)
    for layer in TRAINED_LAYERS[tune](net).values():
        layer.requires_grad_(True)


def set_modes(net: nn.Module, tune: str) -> None:
    """Training mode for the layers of a timm network that are trained, eval mode for the rest."""
    net.eval()
    for layer in TRAINED_LAYERS[tune](net).values():
        layer.train()


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state without LoRA's factors: W + (alpha / r) B A under the name of W; one without them as it is."""
    merged = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, first in state.items():
        if name.endswith(_FIRST):
            path = name.removesuffix(_FIRST)
            merged[f"{path}.weight"] = merged[f"{path}.weight"] + LORA_SCALE * (state[path + _SECOND] @ first)
    return merged


def tuned_state(network: nn.Module, tune: str) -> tuple[dict[str, Tensor], str]:
    """The part of a network's state that tuning may have changed, and the digest of the rest, its base.

    What the timm network holds beside its layers (positions, class and register tokens) comes along: it is small, and
    timm fits positions to the size of the crops when it loads them, not to the same bits on every machine.
    """
    trained = tuple(f"{_NET}{path}." if path else _NET for path in TRAINED_LAYERS[tune](network.backbone.net))
    kept, base = {}, {}
    for name, tensor in network.state_dict().items():
        is_base = name.startswith(_NET) and "." in name.removeprefix(_NET) and not name.startswith(trained)
        (base if is_base else kept)[name] = tensor
    return kept, _digest({name.replace(_BASE, "."): tensor for name, tensor in base.items()})


def whole_state(path: str | Path) -> dict[str, Tensor]:
    """The state of a whole network in a checkpoint; what holds the tuned part alone is completed by its base weights.

    Those are the ones that `model.weights` of the experiment.json beside it names, else those of timm's hub.

    Raises:
        FileNotFoundError: no checkpoint there, or no experiment.json beside a tuned part.
        ValueError: no safetensors file, or the base weights are out of reach, or others than it was tuned from.
    """
    state, digest = read_state(path), read_metadata(path).get(BASE_DIGEST)
    if digest is None:
        return state
    settings = Path(path).with_name(EXPERIMENT_FILE)
    model = run_experiment(read_json(settings), source=str(settings)).model
    place = model.weights or f"timm's hub ({model.backbone})"
    needs = f"{path}: holds what was tuned alone; {settings} says that the weights it was tuned from are in {place}"
    try:
        base = make_network(model).state_dict()
    except (OSError, ValueError) as error:
        raise ValueError(f"{needs}: {error} Put it there, or write its place into {EXPERIMENT_FILE}.") from error
    found = _digest({name: tensor for name, tensor in base.items() if name.startswith(_NET) and name not in state})
    if found != digest:
        raise ValueError(
            f"{needs}; found others there (sha256 of what was not tuned: expected {digest[:12]}, found {found[:12]}). "
            "Put the original file there. A bundle is whole, and needs none."
        )
    return merged_state(base | state)


def _digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of tensors and their names; without counters of batches, which not every file has."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
