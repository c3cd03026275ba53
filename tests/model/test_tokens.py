"""Vision transformers as backbones: timm's own tensors and outputs, Eq. (1)'s finer stage, sizes, input and weights."""

import time

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn import functional

from multiattn.config import ModelConfig, OptimConfig
from multiattn.config.model import HALF
from multiattn.experiments import EXPERIMENTS, get_experiment
from multiattn.model.backbone import Backbone, read_stages, require_image_size, settle_input
from multiattn.model.network import MultiAttentionNet, make_network
from multiattn.model.predict import normalize_crops
from multiattn.model.rewrites import fold_batch_norms
from multiattn.stages.describe import main as describe
from multiattn.training.engine.optimizer import rate_scales

NAMED = {
    # backbone: (blocks, channels, patch, grid at its nominal size)
    "test_vit": (6, 64, 16, 10),
    "vit_base_patch14_reg4_dinov2.lvd142m": (12, 768, 14, 37),
    "vit_large_patch16_dinov3.lvd1689m": (24, 1024, 16, 16),
    "vit_large_patch14_clip_quickgelu_224.openai": (24, 1024, 14, 16),
    "vit_base_patch16_siglip_224": (12, 768, 16, 14),
    "eva02_base_patch14_224": (12, 768, 14, 16),
    "vit_pe_core_base_patch16_224": (12, 768, 16, 14),
    "beit_base_patch16_224": (12, 768, 16, 14),
}
SMALL = {
    # backbone with random weights: (side of the images, its own pooling)
    "test_vit": (64, "token"),
    "test_vit2": (96, "avg"),  # normalised after pooling
    "test_vit3": (64, "map"),  # attention pooling, as SigLIP
    "vit_small_patch14_reg4_dinov2": (56, "token"),  # registers and layer scale
    "eva02_tiny_patch14_224": (70, "avg"),  # rotated and absolute positions
    "vit_small_patch16_dinov3": (64, "avg"),  # rotated positions alone, registers
    "vit_pe_core_tiny_patch16_384": (64, "map"),
}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith(("test", "vit_base_patch14")) else pytest.mark.slow)
        for name in NAMED
    ],
)
def test_names_and_shapes_of_every_tensor_are_timms(name):
    blocks, channels, patch, grid = NAMED[name]
    with torch.device("meta"):
        backbone = Backbone(name, stages=("L2", f"L{blocks}"), own_pooling=True)
        timms = timm.create_model(name, num_classes=0)
        assert shapes(backbone.net) == shapes(timms)
        assert backbone.names == tuple(f"L{number}" for number in range(1, blocks + 1))
        assert (set(backbone.channels.values()), set(backbone.strides.values())) == ({channels}, {patch})
        maps, last = backbone(torch.zeros(1, 3, *timms.patch_embed.img_size))
    assert list(maps) == ["L2", f"L{blocks}"]
    assert {tuple(found.shape) for found in maps.values()} == {(1, channels, grid, grid)}
    assert last.shape == (1, channels, 1, 1)


def random_backbone(name: str, **options: object) -> Backbone:
    """Every parameter moved away from where timm's initial values hide it (zeros, layer scales of 1e-5)."""
    backbone = Backbone(name, input_mean=HALF, input_std=HALF, **options).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


@pytest.mark.parametrize("name", SMALL)
def test_maps_and_pooled_features_are_timms_own_at_another_size(name):
    size, pooling = SMALL[name]
    backbone, images = random_backbone(name, stages=("L1", "L5"), own_pooling=True), torch.randn(2, 3, size, size)
    own = timm.create_model(name, num_classes=0).eval()
    own.load_state_dict(backbone.net.state_dict())
    assert own.global_pool == pooling
    own.set_input_size((size, size))  # timm's own resizing of the positions, once
    outputs = {}
    for number in (0, 4, len(own.blocks) - 1):
        keep = lambda module, _, output, number=number: outputs.update({number: output})  # noqa: E731
        own.blocks[number].register_forward_hook(keep)
    with torch.no_grad():
        pooled = own(images)
        maps, last = backbone(images)
        backbone.net.reset_classifier(0, "")
        _, patches = backbone(images)
        tokens = own.fc_norm(own.norm(outputs[len(own.blocks) - 1]))
    cells = size // own.patch_embed.patch_size[0]

    def as_map(tokens: torch.Tensor) -> torch.Tensor:  # row by row behind class and register tokens
        return tokens[:, own.num_prefix_tokens :].reshape(2, cells, cells, -1).permute(0, 3, 1, 2)

    torch.testing.assert_close(last[:, :, 0, 0], pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(patches, as_map(tokens), atol=1e-5, rtol=1e-4)
    for stage, number in (("L1", 0), ("L5", 4)):
        torch.testing.assert_close(maps[stage], as_map(outputs[number]), atol=1e-5, rtol=1e-4)
    if pooling == "token":
        torch.testing.assert_close(last[:, :, 0, 0], tokens[:, 0], atol=1e-5, rtol=1e-4)


def small_network(backbone: str = "test_vit", **changes: object) -> torch.nn.Module:
    model = ModelConfig(backbone=backbone, texture_stage="L2", attention_stage="L5", pretrained=False)
    return make_network(ModelConfig(**(vars(model) | {"drop_path_rate": 0.0} | changes)))


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith("vit_small")])
@pytest.mark.parametrize("network", ["multi-attention", "baseline"])
def test_no_parameter_is_without_a_gradient(name, network):
    # DistributedDataParallel stops at a parameter that no loss reaches.
    net = small_network(name, network=network)
    output = net(torch.randn(2, 3, *2 * SMALL[name][:1]))
    loss = output.logits.sum() + (output.parts.sum() if output.parts is not None else 0)
    loss.backward()
    assert [path for path, parameter in net.named_parameters() if parameter.grad is None] == []


def reached(net: MultiAttentionNet, value: torch.Tensor) -> set[str]:
    """`stem`, and the blocks of the backbone, that the value depends on."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(value.square().sum(), parameters, allow_unused=True, retain_graph=True)
    with_gradient = [name for name, gradient in zip(names, found, strict=True) if gradient is not None]
    return {name.removeprefix("backbone.net.").rsplit(".norm", 1)[0].split(".")[0] for name in with_gradient} | {
        f"block {name.split('.')[3]}" for name in with_gradient if name.startswith("backbone.net.blocks.")
    }


def test_texture_comes_from_stem_and_early_block_and_attention_from_the_late_block():
    net, seen = small_network().train(), {}
    for part in ("stem", "texture", "attention"):
        net.get_submodule(part).register_forward_hook(lambda _, __, output, part=part: seen.update({part: output}))
    output = net(torch.randn(2, 3, 64, 96))
    assert seen["stem"].shape == (2, 64, 16, 24), "stride 4, finer than the patches of 16"
    assert output.attention.shape == (2, 4, 4, 6)
    assert output.parts.shape == (2, 4, net.num_part_features) == (2, 4, 64)
    blocks = [f"block {number}" for number in range(6)]
    of_texture = reached(net, seen["texture"][0])
    assert {"stem", "texture", *blocks[:2]} <= of_texture
    assert not of_texture & {"attention", *blocks[2:]}
    of_attention = reached(net, seen["attention"])
    assert {"attention", *blocks[:5]} <= of_attention
    assert not of_attention & {"stem", "texture", blocks[5]}
    assert set(blocks) <= reached(net, output.logits)


def test_the_stem_lets_pixels_and_block_change_the_texture():
    net = small_network().eval()
    images, block = torch.randn(1, 3, 64, 64), torch.randn(1, 64, 4, 4)

    def texture(images: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        return net.texture(net.stem(images, block), torch.zeros(1, 4, 4, 4))[0]

    before = texture(images, block)
    assert (texture(images + 0.1 * torch.randn_like(images), block) - before).abs().max() > 1e-4
    assert (texture(images, block + torch.randn_like(block)) - before).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet"])
def test_stages_of_different_strides_get_no_stem(name):
    with torch.device("meta"):
        net = MultiAttentionNet(ModelConfig(backbone=name, pretrained=False, attention_stage="L4"))
    assert net.stem is None
    assert not [path for path in net.state_dict() if path.startswith("stem")]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_base_patch14_reg4_dinov2.lvd142m", 380, r"multiples of its patch of 14 px\. .* 378 or 392 "),
        ("vit_large_patch16_dinov3.lvd1689m", 250, r"multiples of its patch of 16 px\. .* 240 or 256 "),
        ("test_vit", 8, r"test_vit takes multiples .* 16 or 32 "),
        ("swin_tiny_patch4_window7_224", 380, r"swin_tiny_patch4_window7_224 takes 224 px alone\."),
        ("beit_base_patch16_224", 256, r"beit_base_patch16_224 takes 224 px alone\. Give --data\.image-size 224 "),
    ],
)
def test_a_size_it_cannot_take_is_refused_by_name_with_the_nearest(name, size, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message):
        require_image_size(name, size)
    assert time.process_time() - began < 2  # 0.4 s of a core


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_base_patch14_reg4_dinov2", 378), ("beit_base_patch16_224", 224), ("resnet18", 97), ("legacy_xception", 380)],
)
def test_a_size_it_takes_is_not_refused(name, size):
    require_image_size(name, size)


def test_describe_refuses_the_size_and_shows_the_stem(capsys):
    with pytest.raises(ValueError, match="378 or 392"):
        describe(["dfdc_dinov2_norms", "--data.image-size", "380"])
    describe(["dfdc_dinov2_norms"])
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "(B, 64, 56, 56)" in lines["f"]
    assert "(B, 768, 16, 16)" in lines["f_9 = SL_a"]
    assert "(B, 768, 16, 16)" in lines["f_last"]
    assert "(B, 4, 16, 16)" in lines["A"]
    assert "[0.485, 0.456, 0.406]" in lines["model.input_mean"]


INPUTS = (
    *("vit_large_patch14_clip_quickgelu_224.openai", "vit_base_patch14_reg4_dinov2.lvd142m", "test_vit"),
    *("vit_large_patch16_dinov3.lvd1689m", "vit_base_patch16_siglip_224", "eva02_base_patch14_224"),
    *("vit_pe_core_base_patch16_224", "tf_efficientnet_lite0", "tf_efficientnet_b4.ap_in1k", "tf_efficientnet_b4"),
    *("legacy_xception.tf_in1k", "convnext_tiny"),
)


@pytest.mark.parametrize("name", INPUTS)
def test_the_network_sees_what_timms_own_transform_gives(name):
    crops = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    settings = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = create_transform(**settings | {"input_size": (3, 32, 32), "crop_pct": 1.0})
    expected = transform(Image.fromarray(crops))[None]
    table, seen = read_stages(name), []
    backbone = Backbone("test_resnet", stages=(), input_mean=table.input_mean, input_std=table.input_std)
    backbone.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone._run = lambda net, images, _: (seen.append(images), images)
    images = normalize_crops(torch.from_numpy(crops)[None])
    backbone(images)
    torch.testing.assert_close(seen[0], expected, atol=2e-6, rtol=0)
    assert (seen[0] is images) == (settings["mean"] == settings["std"] == HALF), "0.5 costs nothing and keeps the bits"


def test_the_papers_experiments_and_the_demo_keep_the_papers_half():
    others = {name for name in EXPERIMENTS if "dinov2" in name or "clip" in name}
    for name in EXPERIMENTS:
        model = settle_input(get_experiment(name).model)
        assert ((model.input_mean, model.input_std) == (HALF, HALF)) == (name not in others), name


@pytest.fixture
def pretrained() -> dict[str, torch.Tensor]:
    """A stand-in for test_vit3's weights: timm's naming, classifier and attention pooling, a grid of 10x10."""
    torch.manual_seed(3)
    net = timm.create_model("test_vit3")
    with torch.no_grad():
        net.pos_embed.normal_()
    return net.state_dict()


def test_weights_of_a_file_fill_it_and_positions_of_another_grid_are_resized_as_timm_does(pretrained, tmp_path, caplog):
    grid = timm.create_model("test_vit3", img_size=64)
    own = timm.create_model("test_vit3", img_size=64).state_dict()
    own["pos_embed"].normal_()
    grid.load_state_dict(own)
    safetensors.torch.save_file(own, tmp_path / "other.safetensors")
    safetensors.torch.save_file(pretrained, tmp_path / "same.safetensors")
    grid.set_input_size((160, 160))
    with caplog.at_level("INFO", logger="multiattn"):
        for file, expected in (("other.safetensors", grid.state_dict()), ("same.safetensors", pretrained)):
            net = Backbone("test_vit3", stages=(), weights=tmp_path / file, own_pooling=True).net
            for name, tensor in net.state_dict().items():
                torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
            assert f"{file}: timm naming, {len(net.state_dict())} tensors matched, left out: head.bias" in caplog.text
    without = Backbone("test_vit3", stages=(), weights=tmp_path / "same.safetensors").net
    assert torch.equal(without.blocks[8].mlp.fc2.weight, pretrained["blocks.8.mlp.fc2.weight"])
    assert without.attn_pool is None, "the map of the patch tokens has no use for it"
    lacking = {name: tensor for name, tensor in pretrained.items() if name != "norm.bias"}
    safetensors.torch.save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(
        ValueError, match=r"lacking\.safetensors: these are not the weights of the backbone: .*norm\.bias"
    ):
        Backbone("test_vit3", stages=(), weights=tmp_path / "lacking.safetensors")


def test_weights_in_the_hub_cache_are_taken_by_the_name_in_timms_registry(pretrained, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--timm--test_vit3.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file(pretrained, folder / "snapshots" / "abc" / "model.safetensors")
    with caplog.at_level("INFO", logger="multiattn"):
        net = Backbone("test_vit3.r160_in1k", stages=(), pretrained=True, own_pooling=True).net
    assert f"{len(pretrained) - 2} tensors matched, 2 left out (classifier)" in caplog.text
    assert net.global_pool == "map"
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", [name for name in NAMED if not name.startswith("beit")])
def test_the_hub_path_knows_the_weights_by_their_names(name):
    config = timm.get_pretrained_cfg(name)
    assert config.has_weights
    assert config.hf_hub_id.startswith("timm/")
    assert config.hf_hub_filename is None, "model.safetensors, which is looked for in the cache"


def test_checkpointing_changes_no_gradient_and_layers_have_rates_of_their_own():
    torch.manual_seed(1)
    images, found = torch.randn(2, 3, 64, 64), []
    plain = small_network("eva02_tiny_patch14_224", attention_stage="L9").train()
    saving = small_network("eva02_tiny_patch14_224", attention_stage="L9", checkpoint_activations=True).train()
    saving.load_state_dict(plain.state_dict())
    images = functional.interpolate(images, size=(70, 70))
    for net in (plain, saving):
        net(images).logits.square().sum().backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())
    step = torch.nn.Module()
    step.network = plain
    rates = rate_scales(step, OptimConfig(layer_decay=0.5))
    names = {name: rates[parameter] for name, parameter in plain.backbone.net.named_parameters()}
    assert names["blocks.11.mlp.fc2.weight"] == 2 * names["blocks.10.mlp.fc2.weight"]
    assert names["cls_token"] == names["patch_embed.proj.weight"] == 0.5 * names["blocks.0.attn.proj.weight"]


def test_stochastic_depth_is_passed_on():
    rates = [getattr(module, "drop_prob", 0.0) for module in small_network(drop_path_rate=0.3).modules()]
    assert max(rates) == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["test_vit", pytest.param("eva02_tiny_patch14_224", marks=pytest.mark.slow)])
def test_the_eval_network_is_exported_compiled_and_folded_at_its_size(name):
    net = small_network(name, input_mean=(0.4, 0.5, 0.6), input_std=(0.2, 0.3, 0.4)).train()
    images = torch.randn(2, 3, 112, 112)
    net(images)  # statistics of the batch norms that are folded
    net.eval()
    with torch.no_grad():
        expected = net(images)
        runs = [torch.export.export(net, (images,)).module(), fold_batch_norms(net)]
        runs.append(torch.compile(net, backend="eager", fullgraph=True))
        for run in runs:
            found = run(images)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padding": "static"}, "test_vit: padding 'static' is for networks with TensorFlow's SAME padding"),
        ({"attention_stage": "L7"}, r"test_vit: no stage 'L7'; expected one of L1 64ch /16, .* L6 64ch /16\."),
        ({"input_mean": (0.5, 0.5, 0.5)}, "ModelConfig.input_std: expected values where input_mean has them"),
        ({"input_mean": HALF, "input_std": (0.5, 0.0, 0.5)}, "ModelConfig.input_std: expected None or positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_network(**changes)
