"""What a training step of a tuned network may change, and a tuned run from its first step to its use."""

import dataclasses
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from multiattn.config import (
    AverageConfig,
    DataConfig,
    Experiment,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Phase,
    ValidationConfig,
)
from multiattn.experiments import get_experiment
from multiattn.inference.kit.half_weights import crops_to_compare, store_weights
from multiattn.inference.runs import find_models, load_run
from multiattn.model import network, tuning
from multiattn.model.checkpoints import save_weights
from multiattn.model.network import make_network
from multiattn.model.rewrites import checkpoint_blocks
from multiattn.runtime.crop_files import crops_root
from multiattn.runtime.tensor_files import read_metadata, read_state
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.training.engine.memory import Alive, step_memory
from multiattn.training.engine.optimizer import make_optimizer
from multiattn.training.engine.run_folder import load_state
from multiattn.training.engine.step import TrainingStep, backward_passes, set_train_mode, set_trainable
from multiattn.video.crops.images import read_crop
from multiattn.video.extraction.faces_folder import read_faces_folder
from pipeline import after, killed_when, train_fold_zero
from small_vit import SIZE, SmallVit, vit_experiment

PHASE = Phase(name="train", epochs=1, optim=OptimConfig(name="adamw", lr=1e-2, weight_decay=0.1, layer_decay=0.9))
CNN = Experiment(name="cnn", model=ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3"))
TOKENS = dataclasses.replace(
    CNN,
    model=ModelConfig(backbone="test_vit", pretrained=False, lora_rank=2, texture_stage="L2", attention_stage="L5"),
)
UNSCALED = torch.amp.GradScaler("cpu", enabled=False)
KINDS = [
    *(pytest.param(tune, "vit", id=f"{tune} of a ViT") for tune in ("all", "norms", "lora", "head")),
    *(pytest.param(tune, "cnn", id=f"{tune} of a CNN") for tune in ("all", "norms", "head")),
    *(pytest.param(tune, "tokens", id=f"{tune} of a ViT with attention maps") for tune in ("norms", "lora")),
]


def make_step(tune: str, kind: str = "vit", phase: Phase = PHASE) -> TrainingStep:
    if tune == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(0)
    if kind == "vit":
        experiment = vit_experiment(tune)
        step = TrainingStep(experiment, network=SmallVit(experiment.model))
    else:
        experiment = {"cnn": CNN, "tokens": TOKENS}[kind]
        step = TrainingStep(dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, tune=tune)))
    set_trainable(step, phase)
    set_train_mode(step, step, phase)
    return step


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator), torch.arange(4) % 2


def may_change(name: str, tune: str, norms: set[str]) -> bool:
    """By names alone, as somebody would say it who has not seen how the code finds the layers."""
    if not name.startswith("network.backbone.net.") or tune == "all":
        return True
    return {"norms": name.rpartition(".")[0] in norms, "lora": ".lora_" in name, "head": False}[tune]


@pytest.mark.parametrize(("tune", "kind"), KINDS)
def test_steps_change_what_is_tuned_to_the_bit_and_nothing_else(tune, kind):
    step = make_step(tune, kind)
    norms = {path for path, layer in step.named_modules() if isinstance(layer, nn.LayerNorm | nn.BatchNorm2d)}
    allowed = {name for name in step.state_dict() if may_change(name, tune, norms)}
    optimizer = make_optimizer(step, PHASE.optim)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(step.named_parameters())
    assert {name for name, parameter in parameters.items() if id(parameter) in held} == parameters.keys() & allowed
    before = {name: tensor.clone() for name, tensor in step.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        backward_passes(step, step, *batch(), scaler=UNSCALED)
        reached = {name for name, parameter in parameters.items() if parameter.grad is not None}
        assert reached == parameters.keys() & allowed
        optimizer.step()
    changed = {name for name, tensor in step.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= allowed
    assert parameters.keys() & allowed <= changed
    statistics = {name for name in step.state_dict() if "backbone" in name and name.endswith("running_mean")}
    assert bool(statistics & changed) == (kind == "cnn" and tune in ("all", "norms"))
    drawn = [m for m in step.network.backbone.net.modules() if type(m).__name__ in ("DropPath", "Dropout")]
    assert tune in ("all", "lora") or not any(layer.training for layer in drawn)


@pytest.mark.parametrize("tune", ["norms", "lora"])
def test_a_phase_that_freezes_the_backbone_freezes_its_tuned_layers_too(tune):
    frozen = dataclasses.replace(PHASE, freeze_backbone=True)
    step = make_step(tune, phase=frozen)
    assert not any(parameter.requires_grad for parameter in step.network.backbone.parameters())
    assert not any(module.training for module in step.network.backbone.modules())
    set_trainable(step, PHASE)
    assert any(parameter.requires_grad for parameter in step.network.backbone.parameters())


def test_a_trunk_that_is_frozen_whole_leaves_no_graph():
    step, seen = make_step("head"), []
    step.network.backbone.net.register_forward_hook(lambda *call: seen.append(call[-1]))
    backward_passes(step, step, *batch(), scaler=UNSCALED)
    assert seen[0].grad_fn is None


def test_recomputed_blocks_are_tuned_alike_and_keep_less():
    """The blocks are in eval mode but for their norms: recomputing must not take that for evaluation."""
    kept, gradients = [], []
    for recompute in (False, True):
        step, saved = make_step("norms"), []
        if recompute:
            checkpoint_blocks(step.network.backbone.net, "test_vit")
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.nbytes) or x, lambda x: x):
            loss = step(*batch()).terms["loss"]
        loss.backward()
        kept.append(sum(saved))
        gradients.append([p.grad for p in step.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)) and len(gradients[0]) > 20
    assert kept[1] < 0.2 * kept[0]


TINY = get_experiment("demo", tiny=True)
WITH_LORA = dataclasses.replace(
    vit_experiment("lora"),
    data=dataclasses.replace(TINY.data, frames_per_video=4),
    optim=dataclasses.replace(TINY.optim, name="adamw", lr=1e-2),
    validation=ValidationConfig(every_steps=2),
    average=AverageConfig(ema_decay=0.5, best=2),
    epochs=1,
    save_minutes=1e-9,
)


@pytest.mark.slow
def test_a_lora_run_continues_to_the_same_bits_and_its_checkpoints_know_nothing_of_lora(
    pipeline, tmp_path, monkeypatch
):
    pytest.importorskip("peft")
    monkeypatch.setitem(network.NETWORKS, "baseline", SmallVit)
    undisturbed = train_fold_zero(pipeline, tmp_path / "undisturbed", WITH_LORA)
    with killed_when(after(2)):
        train_fold_zero(pipeline, tmp_path, WITH_LORA)
    torch.manual_seed(99)
    folder = train_fold_zero(pipeline, tmp_path, WITH_LORA)
    states = [load_state(path)["step"] for path in (folder, undisturbed)]
    assert [name for name, tensor in states[1].items() if not torch.equal(tensor, states[0][name])] == []
    assert any(".lora_A." in name for name in states[0])
    assert (folder / "best.safetensors").read_bytes() == (undisturbed / "best.safetensors").read_bytes()
    assert read_state(folder / "last.safetensors").keys() == SmallVit(WITH_LORA.model).state_dict().keys()
    (model,), crops = find_models(folder), crops_of(pipeline, folder)
    probabilities = load_run(folder).predict(crops)
    assert np.abs(probabilities - oof_of(folder)).max() < 1e-5
    start = dataclasses.replace(WITH_LORA, name="second", start_from=str(folder), average=AverageConfig())
    second = train_fold_zero(pipeline, tmp_path, start)
    base = "backbone.net.blocks.0.attn.qkv"
    kept = load_state(second)["step"][f"network.{base}.base_layer.weight"]
    assert torch.equal(kept, read_state(model.path / "best.safetensors")[f"{base}.weight"])


def crops_of(pipeline, folder: Path) -> np.ndarray:
    """The held-out crops, in the order of oof.parquet."""
    table = FRAME_PREDICTIONS.read(folder / "oof.parquet")
    faces = read_faces_folder(pipeline.faces)[0].set_index(["video_id", "frame_index", "track"])["crop"]
    keys = table[["video_id", "frame_index", "track"]].itertuples(index=False, name=None)
    return np.stack([read_crop(crops_root(pipeline.faces) / faces[key], SIZE) for key in keys])


def oof_of(folder: Path) -> np.ndarray:
    return FRAME_PREDICTIONS.read(folder / "oof.parquet")["probability"].to_numpy()


def test_a_run_that_saves_what_was_tuned_predicts_and_is_bundled_whole(pipeline, tmp_path):
    base = tmp_path / "base.safetensors"
    save_weights(make_network(TINY.model).backbone.net, base, {})
    model = dataclasses.replace(TINY.model, weights=str(base), tune="norms")
    experiment = dataclasses.replace(TINY, model=model, save="tuned")
    folder = train_fold_zero(pipeline, tmp_path, experiment)
    held = read_state(folder / "best.safetensors")
    assert {name.split(".")[0] for name in held} > {"backbone", "attention", "classifier"}
    assert all(tensor.ndim <= 1 for name, tensor in held.items() if name.startswith("backbone.net."))
    for change in ({"model": dataclasses.replace(model, tune="head")}, {"epochs": 2, "save": "whole"}):
        other = dataclasses.replace(experiment, name="other", **change)
        shutil.copytree(folder, tmp_path / "other" / "fold0")
        if other.save == "whole":  # and back: what would then be tuned alone stands on a base that was trained
            train_fold_zero(pipeline, tmp_path, other, allow_changes=True)
            other = dataclasses.replace(experiment, name="other", epochs=3)
        with pytest.raises(ValueError, match=r"cannot go on with .*(model\.tune|save): "):
            train_fold_zero(pipeline, tmp_path, other, allow_changes=True)
        shutil.rmtree(tmp_path / "other")
    (trained,) = find_models(folder)
    assert np.abs(load_run(folder).predict(crops_of(pipeline, folder)) - oof_of(folder)).max() < 1e-5
    stored = tmp_path / "stored" / "fold0"
    stored.mkdir(parents=True)
    (stored / "experiment.json").write_bytes((folder / "experiment.json").read_bytes())
    crops = crops_to_compare(trained, [pipeline.faces], 4)
    for precision in ("float32", "float16"):
        store_weights(trained, stored, crops, precision=precision, largest_change=0.1, device=torch.device("cpu"))
        assert tuning.BASE_DIGEST not in read_metadata(stored / "best.safetensors")
    base.unlink()
    copy = dataclasses.replace(trained, path=stored)
    assert copy.load(torch.device("cpu")) is not None
    with pytest.raises(ValueError, match="holds what was tuned alone"):
        trained.load(torch.device("cpu"))


@pytest.mark.parametrize("name", ["adamw", "lookahead_adam"])
@pytest.mark.parametrize(
    ("tune", "kind", "recompute"), [("norms", "vit", False), ("all", "cnn", False), ("all", "cnn", True)]
)
def test_the_memory_of_a_step_is_that_of_a_real_one(tune, kind, recompute, name):
    """The same count over real tensors, which live and die as autograd lets them."""
    phase = dataclasses.replace(PHASE, optim=dataclasses.replace(PHASE.optim, name=name))
    experiment = vit_experiment(tune) if kind == "vit" else dataclasses.replace(CNN, data=vit_experiment("all").data)
    model = dataclasses.replace(experiment.model, checkpoint_activations=recompute)
    experiment, step = dataclasses.replace(experiment, model=model), make_step(tune, kind)
    if recompute:
        checkpoint_blocks(step.network.backbone.net, model.backbone)
    optimizer, alive = make_optimizer(step, phase.optim), Alive()
    with alive:
        backward_passes(step, step, *batch(), scaler=UNSCALED)
    optimizer.step()
    state = optimizer.state_dict()["state"].values()
    real = sum(tensor.nbytes for entry in state for tensor in entry.values() if isinstance(tensor, torch.Tensor))
    with torch.device("meta"):
        planned = TrainingStep(experiment, network=SmallVit(experiment.model) if kind == "vit" else None)
    found = step_memory(planned, dataclasses.replace(experiment, phases=(phase,)))
    assert found.passes == pytest.approx(alive.most, rel=0.02)
    assert found.optimizer == pytest.approx(real, rel=0.01)
    assert found.weights == sum(tensor.nbytes for tensor in (*step.parameters(), *step.buffers()))
    assert found.total == found.passes + found.optimizer + found.weights


def test_memory_is_counted_while_tensors_live():
    with Alive() as alive:
        first = torch.ones(1000)  # 4,000 bytes
        view = first.view(10, 100)  # none of its own
        second = first + 1
        del second
        third = view * 2
        assert alive.now == 8_000
        del first, view, third
    assert (alive.now, alive.most) == (0, 8_000)


def test_the_loss_without_its_auxiliary_weight_is_cross_entropy_alone():
    experiment = vit_experiment("head", loss=LossConfig(auxiliary="align-uniform", auxiliary_weight=0.0))
    step = TrainingStep(experiment, network=SmallVit(experiment.model))
    assert step.auxiliary is None
    assert set(step(*batch()).terms) == {"loss", "cross_entropy"}
    assert set(make_step("head")(*batch()).terms) == {"loss", "cross_entropy", "auxiliary"}


@pytest.mark.slow
@pytest.mark.shared
def test_norm_tuning_of_a_vit_s_lowers_the_loss_on_real_crops_in_six_tenths_of_the_memory(shared):
    """On random weights, which know nothing of faces: it comes down from where a new head stands, no further."""
    memory = {}
    for tune in ("norms", "all"):
        experiment = vit_experiment(tune, data=DataConfig(image_size=224, batch_size=16), phases=(PHASE,))
        with torch.device("meta"):
            planned = TrainingStep(experiment, network=SmallVit(experiment.model, name=VIT_S, size=224))
        memory[tune] = step_memory(planned, experiment).total
    assert memory["norms"] <= 0.6 * memory["all"]
    crops, labels = real_crops(shared / "dfdc_crops", count=100, size=SIZE)
    torch.manual_seed(0)
    experiment = vit_experiment("norms", loss=LossConfig(auxiliary="none"))
    step = TrainingStep(experiment, network=SmallVit(experiment.model, name=VIT_S))
    for layer in step.network.backbone.net.modules():
        if isinstance(layer, nn.Linear):  # timm draws weights by which a block changes next to nothing
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    set_trainable(step, PHASE)
    set_train_mode(step, step, PHASE)
    before = mean_loss(step, crops, labels)
    optimizer = make_optimizer(step, OptimConfig(name="adamw", lr=2e-3, weight_decay=0.0))
    for part in [*torch.randperm(len(crops)).split(40), *torch.randperm(len(crops)).split(40)]:
        optimizer.zero_grad()
        backward_passes(step, step, crops[part], labels[part], scaler=UNSCALED)
        optimizer.step()
    assert mean_loss(step, crops, labels) < 0.95 * before


VIT_S = "vit_small_patch16_224"


@torch.no_grad()
def mean_loss(step: TrainingStep, crops: torch.Tensor, labels: torch.Tensor) -> float:
    parts = zip(crops.split(40), labels.split(40), strict=True)
    return float(np.mean([step(*part).terms["loss"].item() for part in parts]))


def real_crops(folder: Path, *, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (2 count, size, size, 3) uint8 of so many real and fake videos, and their labels."""
    table = pd.read_csv(folder / "crops.csv").query("split == 'train'").groupby("label").head(count)
    with tarfile.open(folder / "train.tar") as archive:
        contents = [archive.extractfile(path).read() for path in table["path"]]
    images = [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) for content in contents]
    resized = [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]
    return torch.from_numpy(np.stack(resized)), torch.tensor(table["label"].to_numpy(copy=True))
