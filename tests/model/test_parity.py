"""Every part of the official profile gives what the authors' own part gave: inputs, weights and outputs on file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multiattn.config import LossConfig
from multiattn.model.agda import degrade, gate_maps, mix_soft
from multiattn.model.attention import (
    MaskedAttentionModule,
    attention_sums,
    normalized_average_pool,
    unit_rows,
    weighted_mean,
)
from multiattn.model.losses import JointIndependenceLoss
from multiattn.model.official import target_name
from multiattn.model.texture import GroupedTextureEnhancement

TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def parity(shared: Path) -> Path:
    folder = shared.parent / "parity"
    if not folder.is_dir():
        pytest.skip(f"no numbers of the released code at {folder}")
    return folder


def read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def fill(module: nn.Module, values: dict[str, Tensor], part: str, ours: str) -> nn.Module:
    """Load the `state.*` of a file into a module by the names the importer uses; every tensor must find its place."""
    state = {}
    for name, tensor in values.items():
        if name.startswith("state."):
            target = target_name(f"{part}.{name.removeprefix('state.')}")
            assert target is not None and target.startswith(f"{ours}."), name
            state[target.removeprefix(f"{ours}.")] = tensor
    module.load_state_dict(state, strict=True)
    return module.eval()


@pytest.mark.parametrize(
    ("file", "grid"),
    [
        pytest.param("attention_map.npz", 24, id="grid of the mask's own size"),
        pytest.param("attention_map_19.npz", 19, id="smaller grid"),
    ],
)
def test_the_attention_module_equals_the_released_one(parity, file, grid):
    values = read(parity / file)
    module = fill(MaskedAttentionModule(16, 4), values, "attentions", "attention")
    with torch.no_grad():
        found = module(values["in.x"])
    assert found.shape[-1] == grid
    torch.testing.assert_close(found, values["out.y"], **TOLERANCE)


def test_both_poolings_equal_the_released_ones(parity):
    values = read(parity / "attention_pooling.npz")
    inputs = values["in.features"], values["in.attentions"]
    unit = normalized_average_pool(*inputs, align_corners=True)
    mean = weighted_mean(*inputs, align_corners=True)
    torch.testing.assert_close(unit, values["out.norm2"], **TOLERANCE)
    torch.testing.assert_close(mean, values["out.norm1"], **TOLERANCE)
    other_resize = unit_rows(attention_sums(*inputs, align_corners=False))
    assert (other_resize - values["out.norm2"]).abs().max() > 1e-3, "the files cannot tell the two ways to resize apart"


def test_the_texture_block_equals_the_released_one(parity):
    values = read(parity / "texture_enhance.npz")
    module = fill(GroupedTextureEnhancement(8, 4), values, "texture_enhance", "texture")
    with torch.no_grad():
        enhanced, pooled = module(values["in.feature_maps"], values["in.attention_maps"])
    torch.testing.assert_close(enhanced, values["out.enhanced"], **TOLERANCE)
    torch.testing.assert_close(pooled, values["out.pooled"], **TOLERANCE)


def test_the_soft_augmentation_equals_the_released_one(parity):
    values = read(parity / "agda_soft_drop.npz")
    settings = {name.removeprefix("cfg."): value.item() for name, value in values.items() if name.startswith("cfg.")}
    assert settings["noise_rate"] == 0
    gated = gate_maps(values["in.attention"], settings["threshold"], settings["zoom"])
    torch.testing.assert_close(gated, values["out.modulated"], **TOLERANCE)
    degraded = degrade(
        values["in.x"],
        settings["scale_factor"],
        float(settings["sigma"]),
        kernel_size=settings["kernel_size"],
        align_corners=True,
    )
    torch.testing.assert_close(mix_soft(values["in.x"], degraded, gated), values["out.y"], **TOLERANCE)


def test_the_independence_loss_its_centres_and_its_gradients_equal_the_released_ones(parity):
    values = read(parity / "auxiliary_loss.npz")
    real, fake = values["cfg.inner_margin"].tolist()
    loss = JointIndependenceLoss(
        4,
        6,
        LossConfig(
            ril="joint",
            inter_margin=values["cfg.margin"].item(),
            intra_margin_real=real,
            intra_margin_fake=fake,
            center_rate=values["cfg.alpha"].item(),
        ),
    )
    loss.centers.copy_(values["state.feature_centers"])
    pooled, attention = (values[name].requires_grad_() for name in ("in.feature_map_d", "in.attentions"))
    parts = normalized_average_pool(pooled, attention, align_corners=True)
    torch.testing.assert_close(parts, values["out.feature_matrix"], **TOLERANCE)
    found = loss.train()(parts, values["in.y"])
    torch.testing.assert_close(found, values["out.loss"], **TOLERANCE)
    torch.testing.assert_close(loss.centers, values["out.new_centers"], **TOLERANCE)
    gradients = torch.autograd.grad(found, (pooled, attention))
    for gradient, name in zip(gradients, ("out.grad_feature_map_d", "out.grad_attentions"), strict=True):
        assert values[name].abs().max() > 0
        torch.testing.assert_close(gradient, values[name], rtol=0, atol=1e-6)  # their largest entries are near 1e-2
