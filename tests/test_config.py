"""Settings: JSON out and in, what is refused and how the message reads, and the paper's figures."""

import dataclasses
import json

import pytest

from multiattn.config import (
    AgdaConfig,
    AverageConfig,
    DataConfig,
    Experiment,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Phase,
    ValidationConfig,
    from_json,
    to_json,
)
from multiattn.config.settings import choices, registry
from multiattn.experiments import EXPERIMENTS, get_experiment


@pytest.mark.parametrize("tiny", [False, True], ids=["full", "tiny"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_survives_json_says_its_command_and_when_tiny_runs_small_without_downloads(name, tiny):
    experiment = get_experiment(name, tiny=tiny)
    text = json.dumps(to_json(experiment), allow_nan=False)
    assert from_json(Experiment, json.loads(text)) == experiment
    assert experiment.name == (f"{name}_tiny" if tiny else name)
    assert f"multiattn train {name} " in EXPERIMENTS[name].__doc__
    if tiny:
        assert (experiment.epochs, experiment.model.pretrained, experiment.model.weights) == (1, False, None)
        assert experiment.data.image_size <= 64
        assert experiment.data.num_workers == 0


def test_dfdc_b4_has_the_settings_of_the_paper():
    experiment = get_experiment("dfdc_b4")
    model, loss, agda, data, optim = (getattr(experiment, name) for name in ("model", "loss", "agda", "data", "optim"))
    assert (model.backbone.split(".")[0], model.num_maps) == ("tf_efficientnet_b4", 4)
    assert (model.texture_stage, model.attention_stage, model.pretrained) == ("L2", "L5", True)
    assert (loss.inter_margin, loss.intra_margin_real, loss.intra_margin_fake) == (0.2, 0.05, 0.1)
    assert (loss.center_rate, loss.center_decay) == (0.05, 0.9)
    assert (loss.cross_entropy_weight, loss.auxiliary_weight) == (1.0, 1.0)
    assert (agda.mode, agda.resize_factor, agda.sigma) == ("soft", 0.3, 7.0)
    assert (data.image_size, data.batch_size * 4) == (380, 48)
    assert (optim.name, optim.lr, optim.weight_decay) == ("adam", 1e-3, 1e-6)


@pytest.mark.parametrize(
    ("config_class", "values", "expected"),
    [
        pytest.param(Experiment, {"nme": "x"}, ["nme", "Did you mean 'name'"], id="near the right name"),
        pytest.param(
            OptimConfig, {"lrr": 1.0}, ["OptimConfig", "'lrr'", "Did you mean 'lr'"], id="one letter too many"
        ),
        pytest.param(OptimConfig, {"qqqqq": 1}, ["'qqqqq'", "weight_decay"], id="near nothing lists all, no guess"),
        pytest.param(
            Experiment,
            {"name": "x", "data": {"batchsize": 4}},
            ["DataConfig", "Did you mean 'batch_size'"],
            id="inside a nested config",
        ),
    ],
)
def test_an_unknown_setting_names_its_nearest_neighbour(config_class, values, expected):
    with pytest.raises(ValueError) as caught:
        from_json(config_class, values, source="runs/a/experiment.json")
    for words in ("runs/a/experiment.json", *expected):
        assert words in str(caught.value)
    assert ("Did you mean" in str(caught.value)) == any("Did you mean" in words for words in expected)


REFUSED = {
    ModelConfig: {
        "num_maps": [0, 9], "hidden_size": [0, 10**9], "drop_path_rate": [1.0, -0.1],
        "texture_stage": ["b2", "", "L6", "L0"],
        "attention_stage": ["l5", "L1"], "network": ["plain"], "attention": ["elu"], "texture": ["sparse"],
        "padding": ["same"], "part_dropout": [1.0], "global_dropout": [1.0], "norm_momentum": [0.0, 1.1],
        "tune": ["bias"], "lora_rank": [0, 10**9],
    },
    LossConfig: {
        "alignment_weight": [-0.1], "uniformity_weight": [-0.1],
        "cross_entropy_weight": [-1.0], "auxiliary_weight": [-1e-9], "inter_margin": [-0.2],
        "intra_margin_real": [-4.5], "intra_margin_fake": [4.01], "auxiliary": ["center"], "ril": ["squared"],
        "ams_scale": [0.0], "match_weight": [-0.1], "center_rate": [0.0, 1.01], "center_decay": [0.0, float("nan")],
        "reduction": ["median"], "label_smoothing": [1.0],
    },
    AgdaConfig: {
        "map_choice": ["largest"], "kernel_size": [10, 10**9 + 1], "noise": [-0.1], "gate_threshold": [(0.6, 0.4)],
        "gate_slope": [(0.0, 1.0), (1.0, float("inf"))], "resize_factor": [0.0, 1.5], "sigma": [0.0, 1e9],
        "threshold": [-0.1, 1.1], "mode": ["softly"],
    },
    OptimConfig: {
        "step_epochs": [0], "step_factor": [0.0], "lr": [0.0, float("nan"), float("inf")], "weight_decay": [-1e-6],
        "warmup_epochs": [-1.0], "clip_grad_norm": [0.0], "accumulate": [0], "layer_decay": [1.5], "lr_min": [1.0],
        "schedule": ["linear"],
    },
    DataConfig: {
        "image_size": [31, 10**6], "frames_per_video": [0, 10**9], "videos_per_class": [0], "batch_size": [1, 10**9],
        "augmentation": ["stronger"], "sbi": [1.0], "sampling": ["random"], "cache_gb": [0.0],
        "num_workers": [-1, 10**6], "strength": [-0.1, 1.1, 0.5], "strength_epochs": [-1.0, float("inf"), 2.0],
    },
    Experiment: {
        "name": ["", "a/b", "..", "a\0", "n" * 201], "epochs": [0, 10**9], "seed": [-1, 2**32],
        "save_minutes": [0.0], "precision": ["fp8"], "save": ["all"],
    },
    ValidationConfig: {
        "metric": ["loss"], "patience": [0],
    },
    AverageConfig: {
        "ema_decay": [1.0], "best": [1],
    },
}  # fmt: skip


def test_strength_is_refused_for_a_preset_that_has_none_and_rises_for_one_that_has():
    with pytest.raises(ValueError, match=r"strength: expected 1 with --data.augmentation box.*wild has\), found 0.5"):
        DataConfig(augmentation="box", strength=0.5)
    rising = DataConfig(augmentation="wild", strength=0.8, strength_epochs=2.0)
    assert [rising.strength_after(epochs) for epochs in (0, 0.5, 1, 2, 7)] == pytest.approx([0, 0.2, 0.4, 0.8, 0.8])
    assert DataConfig(augmentation="wild", strength=0.3).strength_after(0) == 0.3


@pytest.mark.parametrize(
    ("config_class", "name", "value"),
    [(kind, name, value) for kind, names in REFUSED.items() for name, values in names.items() for value in values],
    ids=lambda value: value.__name__ if isinstance(value, type) else repr(value),
)
def test_a_value_out_of_range_is_refused_with_name_and_value(config_class, name, value):
    values = {"name": "x"} if config_class is Experiment else {}
    with pytest.raises(ValueError, match=r"expected .+ found") as caught:
        config_class(**{**values, name: value})
    assert config_class.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        pytest.param(ModelConfig, {"num_maps": 1, "hidden_size": 1, "drop_path_rate": 0.0}, id="least model"),
        pytest.param(ModelConfig, {"texture_stage": "L7", "attention_stage": "L7"}, id="both at the last stage"),
        pytest.param(ModelConfig, {"texture_stage": "L1", "attention_stage": "L1"}, id="both at the first stage"),
        pytest.param(LossConfig, {"cross_entropy_weight": 0.0, "auxiliary_weight": 0.0}, id="terms off"),
        pytest.param(LossConfig, {"center_rate": 1.0, "center_decay": 1.0}, id="greatest rates"),
        pytest.param(AgdaConfig, {"resize_factor": 1.0, "threshold": 0.0}, id="agda low"),
        pytest.param(AgdaConfig, {"threshold": 1.0}, id="agda high"),
        pytest.param(DataConfig, {"image_size": 32, "batch_size": 2, "num_workers": 0}, id="least data"),
        pytest.param(DataConfig, {"videos_per_class": 1, "frames_per_video": 1}, id="one video, one frame"),
        pytest.param(
            OptimConfig, {"weight_decay": 0.0, "warmup_epochs": 0.0, "clip_grad_norm": None}, id="least optim"
        ),
        pytest.param(Experiment, {"name": "x", "epochs": 1, "seed": 0}, id="least experiment"),
    ],
)
def test_a_value_on_the_boundary_is_accepted(config_class, values):
    config = config_class(**values)
    assert {name: getattr(config, name) for name in values} == values
    assert from_json(config_class, to_json(config)) == config


@pytest.mark.parametrize(
    ("config_class", "values", "expected"),
    [
        pytest.param(OptimConfig, {"lr": "fast"}, "OptimConfig.lr", id="text for a number"),
        pytest.param(OptimConfig, {"lr": True}, "OptimConfig.lr", id="bool for a number"),
        pytest.param(OptimConfig, {"lr": None}, "OptimConfig.lr", id="null for a number"),
        pytest.param(OptimConfig, {"lr": [1e-3]}, "OptimConfig.lr", id="list for a number"),
        pytest.param(OptimConfig, {"weight_decay": 10**400}, "OptimConfig.weight_decay", id="beyond all floats"),
        pytest.param(DataConfig, {"batch_size": 12.5}, "DataConfig.batch_size", id="fraction for a whole number"),
        pytest.param(DataConfig, {"batch_size": True}, "DataConfig.batch_size", id="bool for a whole number"),
        pytest.param(DataConfig, {"videos_per_class": "all"}, "DataConfig.videos_per_class", id="text for int or null"),
        pytest.param(ModelConfig, {"pretrained": 1}, "ModelConfig.pretrained", id="number for a bool"),
        pytest.param(ModelConfig, {"weights": 5}, "ModelConfig.weights", id="number for a path"),
        pytest.param(AgdaConfig, {"mode": "softly"}, "AgdaConfig.mode", id="unknown choice"),
        pytest.param(AgdaConfig, {"mode": ["soft"]}, "AgdaConfig.mode", id="list for a choice"),
        pytest.param(LossConfig, {"reduction": None}, "LossConfig.reduction", id="null for a choice"),
        pytest.param(Experiment, {"name": "x", "model": "b4"}, "ModelConfig", id="text for a nested config"),
        pytest.param(Experiment, {"name": "x", "model": None}, "ModelConfig", id="null for a nested config"),
        pytest.param(Experiment, [], "Experiment", id="list for the whole"),
        pytest.param(Experiment, {}, "name", id="the name missing"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_file_and_name(config_class, values, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        from_json(config_class, values, source="file.json")
    assert str(caught.value).startswith("file.json: ")


def test_missing_settings_take_their_defaults_and_whole_numbers_serve_as_floats():
    assert from_json(OptimConfig, {}) == OptimConfig()
    assert from_json(OptimConfig, {"lr": 1}).lr == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        pytest.param("dfdc_b5", "Did you mean 'dfdc_b4'", id="near"),
        pytest.param("zzz", "There are: dfdc_b4", id="far"),
        pytest.param("", "There are: dfdc_b4", id="empty"),
    ],
)
def test_an_unknown_experiment_names_the_nearest(name, hint):
    with pytest.raises(ValueError, match=hint):
        get_experiment(name)


def test_configs_cannot_be_changed_after_they_are_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OptimConfig().lr = 0.0


def test_phases_take_the_place_of_optimiser_and_epochs():
    plain = Experiment(name="x", epochs=3, optim=OptimConfig(lr=0.5))
    assert [(phase.epochs, phase.optim.lr, phase.agda) for phase in plain.schedule] == [(3, 0.5, True)]
    staged = dataclasses.replace(
        plain, phases=(Phase(name="a", epochs=2, objective="backbone"), Phase(name="b", epochs=5))
    )
    assert staged.num_epochs == 7
    assert from_json(Experiment, json.loads(json.dumps(to_json(staged)))) == staged


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Phase(name="a", epochs=0), "epochs", id="an empty phase"),
        pytest.param(lambda: Phase(name="a", epochs=1, objective="head"), "objective", id="unknown objective"),
        pytest.param(
            lambda: Phase(name="a", epochs=1, objective="backbone", freeze_backbone=True),
            "freeze",
            id="nothing to train",
        ),
        pytest.param(
            lambda: Experiment(name="x", phases=(Phase(name="a", epochs=1), Phase(name="a", epochs=1))),
            "different names",
            id="two phases of one name",
        ),
        pytest.param(
            lambda: Experiment(name="x", phases=(Phase(name="a", epochs=1, objective="backbone"),)),
            "last phase of the network",
            id="the network never trained",
        ),
        pytest.param(lambda: Experiment(name="x", save="tuned"), "whole backbone is trained", id="nothing is left out"),
        pytest.param(
            lambda: Experiment(name="x", save="tuned", model=ModelConfig(tune="head", pretrained=False)),
            "has what was tuned",
            id="tuned from weights that nobody has",
        ),
        pytest.param(
            lambda: from_json(Experiment, {"name": "x", "phases": [{"name": "a", "epoch": 1}]}), "epochs", id="misspelt"
        ),
        pytest.param(lambda: from_json(AgdaConfig, {"gate_slope": [1.0]}), "gate_slope", id="half an interval"),
    ],
)
def test_phases_and_intervals_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_registry_has_an_entry_for_each_name_of_its_setting():
    assert choices(ModelConfig, "attention") == ("relu", "masked-elu")
    assert registry(ModelConfig, "attention", {"masked-elu": 2, "relu": 1})["relu"] == 1
    for entries in ({"relu": 1}, {"relu": 1, "masked-elu": 2, "gelu": 3}):
        with pytest.raises(TypeError, match=r"ModelConfig\.attention lists relu, masked-elu; its entries are relu"):
            registry(ModelConfig, "attention", entries)
