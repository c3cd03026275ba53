"""A released checkpoint becomes a run: the same logits, every tensor accounted for, and the stages work with it."""

import dataclasses
import json
import pickle
import shutil
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from torch import Tensor

from model.reference_networks import official_forward, official_state
from multiattn.__main__ import main
from multiattn.config import ModelConfig
from multiattn.evaluation.leaderboard import score_submissions
from multiattn.inference.import_checkpoint import import_checkpoint
from multiattn.inference.runs import find_models, load_run
from multiattn.inference.submit.inputs import SubmitInputs, find_inputs
from multiattn.inference.submit.run import run_submit
from multiattn.model.network import MultiAttentionNet
from multiattn.model.official import EFFICIENTNETS, IMAGE_SIZES, convert_state, read_layout, without_wrapper
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION
from multiattn.video.crops.recipe import read_recipe, write_recipe
from pipeline import Pipeline, run


def save(state: object, folder: Path, name: str = "ckpt.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def b0() -> dict[str, Tensor]:
    return official_state("b0")


@pytest.fixture(scope="module")
def imported(b0, tmp_path_factory) -> Path:
    """runs/official of a B0 checkpoint at 64 px."""
    folder = tmp_path_factory.mktemp("imported")
    run("import-checkpoint", save({"state_dict": b0}, folder), "--out", folder / "runs/official", "--image-size", 64)
    return folder / "runs" / "official"


def two_images(size: int) -> Tensor:
    """Noise and a ramp, in [-1, 1]: even random weights tell them apart."""
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1
    ramp = torch.linspace(-1, 1, size).expand(3, size, size) * torch.tensor([1.0, 0.5, -1.0])[:, None, None]
    return torch.stack([noise, ramp])


@pytest.mark.parametrize(
    ("kind", "padding", "half", "wrap"),
    [
        pytest.param("b0", "static", False, "training", id="B0, static padding, training checkpoint"),
        pytest.param("b0", "dynamic", False, "module", id="B0, dynamic padding, module. before every name"),
        pytest.param("b4", "static", False, "bare", id="B4"),
        pytest.param("xception", "dynamic", True, "training", id="Xception, half precision"),
    ],
)
def test_the_imported_run_has_the_logits_and_maps_of_the_original_network(tmp_path, kind, padding, half, wrap):
    state = official_state(kind)
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    stored = {
        "training": {"logs": {"epoch": 3}, "state_dict": state, "optimizer_state": {}, "scheduler_state": {}},
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
        "bare": state,
    }[wrap]
    asked = "dynamic" if (kind, padding) == ("b0", "dynamic") else "auto"
    done = import_checkpoint(save(stored, tmp_path), tmp_path / "official", image_size=76, attention_grid=asked)
    network = load_run(tmp_path / "official").network
    with torch.no_grad():
        logits, maps = official_forward(
            {name: tensor.float() for name, tensor in state.items()}, two_images(76), kind, static=padding == "static"
        )
        found = network(two_images(76))
    assert (logits[0] - logits[1]).abs().max() > 0.05, "the images cannot be told apart: nothing would be proven"
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.attention, maps, rtol=0, atol=1e-4)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())

    report = json.loads((done.path / "import.json").read_text())
    height, width = maps.shape[-2:]
    assert report["attention_grid"] == {"padding": padding, "image_size": 76, "height": height, "width": width}
    assert f"attention grid {height}x{width} ({padding} padding)" in done.describe()
    assert any("took the default L5" in note for note in report["notes"]) == (kind == "xception")
    assert set(report["used"]) | set(report["unused"]) == set(state)
    assert len(report["used"]) + len(report["unused"]) == len(state)
    training_only = ("auxiliary_loss.", "net._fc.", "net.last_linear.")
    assert set(report["unused"]) == {name for name in state if name.startswith(training_only)}
    assert sorted(report["used"].values()) == sorted(network.state_dict()), "one of theirs for each of ours"


def test_the_two_paddings_are_told_apart_by_the_logits(b0):
    with torch.no_grad():
        static, dynamic = (official_forward(b0, two_images(76), "b0", static=choice)[0] for choice in (True, False))
    assert (static - dynamic).abs().max() > 1e-2


def test_the_table_of_efficientnets_is_timms():
    for widths, name in EFFICIENTNETS.items():
        with torch.device("meta"):
            net = timm.create_model(name)
        assert widths == (net.conv_stem.out_channels, net.num_features, sum(len(group) for group in net.blocks)), name


@pytest.mark.parametrize(
    ("name", "kind", "backbone", "count"),
    [
        pytest.param("efficientnet-b4", "b4", "tf_efficientnet_b4", 770, id="B4"),
        pytest.param("xception", "xception", "legacy_xception", 340, id="Xception"),
    ],
)
def test_a_state_with_the_released_names_and_shapes_converts_completely(shared, name, kind, backbone, count):
    path = shared.parent / "parity" / f"official_state_dict_{name}.json"
    if not path.is_file():
        pytest.skip(f"no list of the released tensors at {path}")
    shapes = json.loads(path.read_text())
    assert {key: list(tensor.shape) for key, tensor in official_state(kind).items()} == shapes, "the tests' own states"
    with torch.device("meta"):  # names and shapes without values
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        model, _ = read_layout(state)
        network = MultiAttentionNet(dataclasses.replace(model, attention="masked-elu", texture="grouped"))
        converted = convert_state(state, network)
    assert model == ModelConfig(backbone=backbone, pretrained=False)
    assert list(converted.used) + list(converted.unused) == sorted(shapes, key=lambda key: key in converted.unused)
    assert len(shapes) == count == len(converted.used) + len(converted.unused)
    assert converted.state.keys() == network.state_dict().keys()


def test_the_losss_margins_and_step_are_kept_in_the_experiment(imported):
    experiment = find_models(imported)[0].experiment
    loss = experiment.loss
    assert (loss.center_rate, loss.intra_margin_real, loss.intra_margin_fake) == (0.0125, 0.2, -0.8)
    assert (experiment.name, experiment.data.image_size, experiment.model.pretrained) == ("official", 64, False)
    reasons = json.loads((imported / "fold0" / "import.json").read_text())["unused"]
    assert "centres" in reasons["auxiliary_loss.feature_centers"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net._blocks.3._bn1.running_mean": None}, r"1 missing \("),
        ({"attentions.mask": None}, r"1 missing \("),
        ({"project_final.bias": None}, r"1 missing \("),
        ({"project_final.weight": torch.zeros(256, 1281)}, r"whole.1.weight \(256, 1281\) instead"),
        ({"project_final.bias": torch.zeros(256, dtype=torch.int32)}, r"no floating-point numbers \(class.*int32\)"),
        ({"project_final.bias": torch.full((256,), torch.nan)}, r"1 not finite \(classifier.whole.1.bias\)"),
    ],
    ids=["of the backbone", "a buffer", "a bias", "another shape", "integers", "a NaN"],
)
def test_a_missing_or_misshapen_tensor_is_an_error(b0, tmp_path, change, message):
    state = {name: tensor for name, tensor in {**b0, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        import_checkpoint(save(state, tmp_path), tmp_path / "official", image_size=64)
    assert not (tmp_path / "official").exists(), "half a run was written"


def of_shape(*shape: int) -> Tensor:
    return torch.zeros(1).expand(shape)


OTHER_OPTIONS = {
    "attention at final": (
        "b0",
        {"attentions.conv_extract.weight": of_shape(1280, 1280, 3, 3)},
        "attention at `final`, the backbone's last map",
    ),
    "Xception's final": (
        "xception",
        {"attentions.conv_extract.weight": of_shape(2048, 2048, 3, 3)},
        "attention at `final`",
    ),
    "texture at b0": (
        "b0",
        {"texture_enhance.conv_extract.weight": of_shape(32, 32, 3, 3)},
        "texture at `b0`, the output of its stem",
    ),
    "equal strides": (
        "b0",
        {"texture_enhance.conv_extract.weight": of_shape(80, 80, 3, 3)},
        r"texture at L4 and attention at L5 of equal strides \(16 and 16 px\)",
    ),
    "five classes": ("b0", {"ensemble_classifier_fc.2.weight": of_shape(5, 256)}, "5 classes in place of real and"),
    "nine maps": ("b0", {"attentions.conv2.weight": of_shape(9, 112, 1, 1)}, "M = 9 attention maps, more than 8"),
    "a wide margin": ("b0", {"auxiliary_loss.inner_margin": torch.tensor([0.2, -5.0])}, r"inner margins \[0.2.*-5.0\]"),
    "a margin that is no number": ("b0", {"auxiliary_loss.inner_margin": torch.tensor([0.2, torch.nan])}, "nan"),
    "B8": (
        "b0",
        {
            "net._conv_stem.weight": of_shape(72, 3, 3, 3),
            "net._conv_head.weight": of_shape(2816, 704, 1, 1),
            **{f"net._blocks.{index}._bn1.bias": torch.zeros(1) for index in range(61)},
        },
        "EfficientNet-B8",
    ),
    "two of them": (
        "b0",
        {"attentions.conv2.weight": of_shape(9, 112, 1, 1), "ensemble_classifier_fc.2.weight": of_shape(5, 256)},
        "5 classes.*; M = 9",
    ),
}


@pytest.mark.parametrize(("kind", "change", "message"), OTHER_OPTIONS.values(), ids=OTHER_OPTIONS.keys())
def test_an_option_of_the_release_that_is_lacking_here_is_named(kind, change, message):
    with pytest.raises(ValueError, match=f"options of the release that this program does not have: .*{message}"):
        read_layout({**official_state(kind), **change})


@pytest.mark.parametrize(("kind", "size"), [("b0", 224), ("xception", 299)])
def test_the_crops_are_as_large_as_the_release_had_them_for_the_backbone(tmp_path, kind, size):
    done = import_checkpoint(save(official_state(kind), tmp_path), tmp_path / "official")
    assert done.experiment.data.image_size == size
    assert read_recipe(done.path).size == size
    assert IMAGE_SIZES["tf_efficientnet_b4"] == 380


def test_an_unknown_tensor_is_reported_and_an_absent_counter_or_loss_is_no_loss(b0, tmp_path, caplog):
    state = {k: t for k, t in b0.items() if not k.endswith("num_batches_tracked") and not k.startswith("auxiliary")}
    done = import_checkpoint(
        save({**state, "net._extra.weight": torch.ones(1), "dct.weight": torch.ones(2)}, tmp_path),
        tmp_path / "official",
        image_size=64,
    )
    assert {"net._extra.weight", "dct.weight"} < set(done.unused)
    assert "dct.weight: no part of this network" in caplog.text
    assert done.experiment.loss.intra_margin_fake == -0.8


@pytest.mark.parametrize(
    ("is_kept", "message"),
    [
        (lambda _: False, "found no tensors"),
        (lambda name: name.startswith("net."), "--model.weights FILE"),
        (lambda name: name.startswith(("attentions.", "texture_enhance.")), "expected an EfficientNet"),
        (
            lambda name: not name.startswith("net._blocks.15."),
            "32 channels in its stem, 1280 in its head and 15 blocks is none of B0 to B7",
        ),
    ],
    ids=["empty", "backbone alone", "no backbone", "15 blocks"],
)
def test_what_is_no_released_checkpoint_is_refused(b0, tmp_path, is_kept, message):
    state = {name: tensor for name, tensor in b0.items() if is_kept(name)}
    with pytest.raises(ValueError, match=message):
        import_checkpoint(save(state, tmp_path), tmp_path / "official")


def test_names_lose_as_many_wrappers_as_they_wear():
    tensor = torch.zeros(1)
    assert without_wrapper({"module.module.a": tensor}).keys() == {"a"}
    assert without_wrapper({"module.a": tensor, "b": tensor}).keys() == {"module.a", "b"}
    assert without_wrapper({}) == {}


class Tattletale:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["object", "object in a checkpoint", "bare pickle", "old format"])
def test_a_pickled_object_is_refused_with_an_explanation_and_never_unpickled(tmp_path, kind, capsys):
    path, proof = tmp_path / "config.pth", tmp_path / "executed"
    thing = {"config": Namespace(a=1), "state_dict": Tattletale(proof)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(thing))
    else:
        torch.save(
            Tattletale(proof) if kind == "object" else thing, path, _use_new_zipfile_serialization=kind != "old format"
        )
    assert main(["import-checkpoint", str(path), "--out", str(tmp_path / "official")]) == 2
    message = capsys.readouterr().err
    assert "pickled" in message and "unpickling runs code" in message and "Traceback" not in message
    assert not proof.exists() and not (tmp_path / "official").exists()


@pytest.mark.parametrize("asked", ["L3", "L7", "L11"])
def test_another_attention_stage_of_xception_can_be_asked_for(asked):
    model, notes = read_layout(official_state("xception"), attention_stage=asked)
    assert (model.attention_stage, notes) == (asked, [])


def test_a_stage_that_does_not_fit_the_shapes_is_refused_with_those_that_do(b0):
    with pytest.raises(ValueError, match=r"--attention-stage L12: .* expected one of L3, L4, .*, L10, L11; the stages"):
        read_layout(official_state("xception"), attention_stage="L12")
    with pytest.raises(ValueError, match=r"--texture-stage L3: .* expected one of L2; .*L3 40ch"):
        read_layout(b0, texture_stage="L3")
    with pytest.raises(ValueError, match="takes 99 channels; no stage"):
        read_layout({**b0, "texture_enhance.conv_extract.weight": torch.zeros(99, 99, 3, 3)})


def test_the_same_import_may_be_repeated_and_nothing_else_is_overwritten(b0, imported, pipeline, tmp_path):
    checkpoint = save({"state_dict": b0}, tmp_path)
    shutil.copytree(imported, tmp_path / "official")
    content = (imported / "fold0" / "best.safetensors").read_bytes()
    (tmp_path / "official" / "fold0" / "best.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="multiattn import-checkpoint"):
        find_models(tmp_path / "official")
    import_checkpoint(checkpoint, tmp_path / "official", image_size=64)
    assert (tmp_path / "official" / "fold0" / "best.safetensors").read_bytes() == content
    with pytest.raises(ValueError, match=r"another import .*attention_grid"):
        import_checkpoint(checkpoint, tmp_path / "official", image_size=96)
    shutil.copytree(pipeline.experiment / "fold0", tmp_path / "trained" / "fold0")
    before = {path: path.read_bytes() for path in (tmp_path / "trained").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="not imported"):
        import_checkpoint(checkpoint, tmp_path / "trained", image_size=64)
    (tmp_path / "trained" / "fold0").rename(tmp_path / "trained" / "fold1")
    with pytest.raises(ValueError, match=r"other runs already \(fold1\)"):
        import_checkpoint(checkpoint, tmp_path / "trained", image_size=64)
    assert {path.name: path.read_bytes() for path in (tmp_path / "trained").rglob("*") if path.is_file()} == {
        path.name: content for path, content in before.items()
    }


@pytest.mark.slow
def test_predict_and_submit_work_on_an_imported_run(imported, pipeline: Pipeline, tmp_path):
    runs = shutil.copytree(imported, tmp_path / "official")
    write_recipe(dataclasses.replace(read_recipe(runs / "fold0"), num_frames=3), runs / "fold0")
    words = ["--runs", runs, "--videos-dir", pipeline.dataset / "test_videos"]
    run("predict", *words, "--faces", tmp_path / "faces", "--out", tmp_path / "p.parquet", "--jobs", 1)
    predictions = FRAME_PREDICTIONS.read(tmp_path / "p.parquet")
    assert set(predictions["model"]) == {"official/fold0"} and len(predictions)
    sample = pipeline.dataset / "sample_submission.csv"
    run("submit", *words, "--sample-submission", sample, "--out", tmp_path / "submissions/official", "--jobs", 1)
    folder = tmp_path / "submissions" / "official"
    assert (
        SUBMISSION.read(folder / "submission.csv")["filename"].tolist() == SUBMISSION.read(sample)["filename"].tolist()
    )
    card = json.loads((folder / "card.json").read_text())
    assert card["out_of_fold"] is None and card["out_of_fold_reason"] == "imported"
    assert card["seen_in_training"] is None
    assert card["coverage"]["ok"] == 2
    again = FRAME_PREDICTIONS.read(folder / "frame_predictions.parquet")
    pd.testing.assert_frame_equal(again, predictions)


def test_the_notebook_finds_an_imported_run(imported, pipeline: Pipeline, tmp_path, monkeypatch):
    for name in ("RUNS", "VIDEOS_DIR", "SAMPLE_SUBMISSION", "OUT", "FACES"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set").symlink_to(pipeline.dataset)
    (tmp_path / "runs").symlink_to(imported.parent)
    assert find_inputs(tmp_path).runs == (tmp_path / "runs" / "official",)


def test_a_trained_run_without_its_out_of_fold_predictions_stays_an_error(imported, pipeline: Pipeline, tmp_path):
    shutil.copytree(pipeline.experiment, tmp_path / "runs")
    inputs = SubmitInputs(
        runs=(tmp_path / "runs",),
        videos_dir=pipeline.dataset / "test_videos",
        sample_submission=pipeline.dataset / "sample_submission.csv",
        out=tmp_path / "out",
    )
    (tmp_path / "runs" / "fold1" / "oof.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"oof\.parquet"):
        run_submit(inputs)
    shutil.copytree(imported / "fold0", tmp_path / "runs" / "fold2")
    with pytest.raises(ValueError, match="runs/fold2 imported, the other runs trained here"):
        run_submit(inputs)


def test_the_leaderboard_lists_a_submission_of_an_imported_run(tmp_path):
    folder = tmp_path / "official"
    SUBMISSION.write(pd.DataFrame({"filename": ["a.mp4"], "label": [0.5]}), folder / "submission.csv")
    card = {"runs": ["official/fold0"], "seen_in_training": None, "out_of_fold": None, "out_of_fold_reason": "imported"}
    (folder / "card.json").write_text(json.dumps(card))
    page = score_submissions(tmp_path, None).markdown()
    assert "| official |" in page and "Warning" not in page
