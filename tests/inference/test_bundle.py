"""The offline kit: half-size weights, the wheels, and a folder that is whole or not there at all."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from multiattn.inference import runtimes
from multiattn.inference.kit import bundle as bundle_module
from multiattn.inference.kit import half_weights
from multiattn.inference.kit.bundle import (
    KAGGLE_HAS,
    BundleOptions,
    build_bundle,
    collect_wheels,
    dataset_metadata,
    default_packages,
    download_wheels,
    is_bundle,
    package_name,
    read_requirements,
    with_bounds,
)
from multiattn.inference.kit.half_weights import (
    SMALL,
    crops_to_compare,
    drawn_crops,
    half_state,
    largest_difference,
    store_weights,
)
from multiattn.inference.predictor import score_out_of_fold
from multiattn.inference.runs import find_models, trained_on
from multiattn.inference.runtimes import load_network, with_runtime
from multiattn.inference.scoring_file import ScoringFile, choose_scoring, require_rule_fits
from multiattn.inference.submit import inputs as submit_inputs
from multiattn.inference.submit.inputs import find_inputs
from multiattn.model.checkpoints import load_weights, save_weights
from multiattn.model.predict import normalize_crops
from multiattn.runtime.files import read_json, write_json
from multiattn.runtime.layout import BEST_WEIGHTS
from multiattn.runtime.tensor_files import read_metadata, read_state
from multiattn.scoring.ensembling import Ensemble
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FOLDS
from multiattn.video.crops.images import read_crop
from multiattn.video.extraction.faces_folder import read_faces_folder

CPU = torch.device("cpu")


def bundle(pipeline, out: Path, *, rule: ScoringRule | None = None, **options) -> bundle_module.Bundle:
    options = {"runs": (pipeline.experiment,), "out": out, "check_crops": 4, "precision": "float32", **options}
    return build_bundle(BundleOptions(**options), ScoringFile(rule=rule or ScoringRule()))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def network_with(weights: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weights.shape[1], weights.shape[0])
    layer.weight.data.copy_(weights)
    return layer


def test_only_large_floating_matrices_become_float16():
    side = int(SMALL**0.5)
    state = {
        "large": torch.ones(side + 1, side),
        "at the limit": torch.ones(side, side),
        "long bias": torch.ones(SMALL + 1),
        "counters": torch.ones(side + 1, side, dtype=torch.int64),
        "scalar": torch.tensor(1.0),
    }
    halved = half_state(state)
    assert {name: halved[name].dtype for name in state} == {
        **{name: tensor.dtype for name, tensor in state.items()},
        "large": torch.float16,
    }
    assert half_state({}) == {}


def test_float16_files_load_into_a_float32_module_rounded_to_eleven_bits(tmp_path):
    weights = torch.randn(130, 130, generator=torch.Generator().manual_seed(0))
    save_weights(half_state(network_with(weights).state_dict()), tmp_path / "half.safetensors", {})
    loaded = network_with(torch.zeros_like(weights))
    load_weights(loaded, tmp_path / "half.safetensors")
    assert loaded.weight.dtype == torch.float32
    assert not torch.equal(loaded.weight.data, weights)
    torch.testing.assert_close(loaded.weight.data, weights, rtol=2.0**-11, atol=2.0**-25)


def test_weights_within_the_limit_are_stored_in_float16_and_smaller(pipeline, tmp_path):
    model = find_models(pipeline.experiment)[0]
    shutil.copy(model.path / "experiment.json", tmp_path)
    crops = crops_to_compare(model, [pipeline.faces], 6)
    stored = store_weights(model, tmp_path, crops, precision="auto", largest_change=1e-3, device=CPU)
    assert stored.stored == "float16" and 0 < stored.difference <= 1e-3 and stored.crops == len(crops) == 6
    assert (tmp_path / BEST_WEIGHTS).stat().st_size < 0.75 * (model.path / BEST_WEIGHTS).stat().st_size
    metadata = read_metadata(tmp_path / BEST_WEIGHTS)
    assert metadata.pop("stored_as") == "float16"
    assert metadata == read_metadata(model.path / BEST_WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "limit"),
    [pytest.param(None, 1e-12, id="more than the limit"), pytest.param(1e5, 1e-3, id="beyond the range of float16")],
)
def test_weights_that_float16_changes_too_much_are_copied_as_they_are(pipeline, tmp_path, damage, limit):
    original, folder = tmp_path / "demo_tiny" / "fold0", tmp_path / "stored" / "fold0"
    shutil.copytree(pipeline.experiment / "fold0", original)
    folder.mkdir(parents=True)
    shutil.copy(original / "experiment.json", folder)
    if damage:
        state = read_state(original / BEST_WEIGHTS)
        state[max(state, key=lambda name: state[name].numel())].view(-1)[0] = damage
        save_weights(state, original / BEST_WEIGHTS, {})
    model = find_models(original)[0]
    options = {"crops": drawn_crops(3, model.experiment.data.image_size), "largest_change": limit, "device": CPU}
    stored = store_weights(model, folder, precision="auto", **options)
    assert stored.stored == "float32" and stored.difference > limit
    assert (folder / BEST_WEIGHTS).read_bytes() == (original / BEST_WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match=r"float16 changes P\(fake\) by up to .* --precision auto"):
        store_weights(model, folder, precision="float16", **options)
    untried = store_weights(model, folder, precision="float32", **options)
    assert (untried.stored, untried.difference, untried.crops) == ("float32", None, 0)


def test_a_model_differs_from_itself_by_nothing_and_from_another_fold_by_something(pipeline):
    one, other = find_models(pipeline.experiment)
    crops = crops_to_compare(one, [pipeline.faces], 5)
    assert largest_difference(one, one, crops, device=CPU) == 0
    assert largest_difference(one, other, crops, device=CPU) > 0


def test_runs_of_two_recipes_go_into_one_bundle_and_are_compared_on_crops_of_their_own(pipeline, box_run, tmp_path):
    folders = (pipeline.faces, box_run.parent / "faces")
    made = bundle(
        pipeline, tmp_path / "kit", runs=(pipeline.experiment, box_run), check_faces=folders, precision="auto"
    )
    assert [one.crops for one in made.weights] == [4] * 4
    packed = find_models(*sorted((tmp_path / "kit" / "runs").iterdir()), any_recipes=True)
    assert [(model.name, model.recipe.size) for model in packed] == [
        ("demo_box/fold0", 96), ("demo_box/fold1", 96), ("demo_tiny/fold0", 64), ("demo_tiny/fold1", 64),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"demo_box/fold0 was trained on: .*size: expected 96, found 64"):
        crops_to_compare(find_models(box_run)[0], folders[:1], 4)


def test_crops_are_taken_from_held_out_videos_and_spread_over_them(pipeline, monkeypatch):
    seen = []
    monkeypatch.setattr(half_weights, "read_crop", lambda path, size: seen.append(path) or read_crop(path, size))
    model = find_models(pipeline.experiment)[0]
    crops = crops_to_compare(model, [pipeline.faces], 10_000)
    size = model.experiment.data.image_size
    assert crops.shape[1:] == (size, size, 3) and crops.dtype == np.uint8
    assert len(crops) == len(set(seen)), "fewer crops than asked for: each once"
    folds = FOLDS.read(model.path / "folds.csv")
    held_out = set(folds.loc[folds["fold"] == model.fold, "video_id"])
    faces, _, _ = read_faces_folder(pipeline.faces)
    expected = faces.loc[faces["video_id"].isin(held_out), "crop"]
    assert {str(path.relative_to(pipeline.faces)) for path in seen} == set(expected)


def test_drawn_pictures_are_the_same_every_time_and_all_different():
    pictures = drawn_crops(6, 48)
    assert pictures.shape == (6, 48, 48, 3) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, drawn_crops(6, 48))
    assert len({picture.tobytes() for picture in pictures}) == 6
    assert all(picture.std() > 10 for picture in pictures)
    assert drawn_crops(0, 48).shape == (0, 48, 48, 3) and drawn_crops(1, 48).shape == (1, 48, 48, 3)


@pytest.fixture(scope="module")
def made(pipeline, tmp_path_factory) -> bundle_module.Bundle:
    """A bundle of the miniature's runs, in a folder of its own; to be read only."""
    return bundle(pipeline, tmp_path_factory.mktemp("bundle") / "kit", check_faces=(pipeline.faces,), precision="auto")


def test_a_bundle_holds_what_a_submission_needs_and_nothing_of_the_training(made):
    content = tree(made.folder)
    files = set(content)
    others = {name for name in files if not name.startswith("src/multiattn/")}
    of_folds = itertools.product(("fold0", "fold1"), ("best.safetensors", "experiment.json", "faces.json"))
    assert others == {
        *("bundle.json", "README.txt", "dataset-metadata.json", "inference.ipynb", "pyproject.toml", "LICENSE"),
        *("runs/demo_tiny/folds.csv", "runs/demo_tiny/scoring.json"),
        *(f"runs/demo_tiny/{fold}/{name}" for fold, name in of_folds),
    }
    assert {Path(name).suffix for name in files - others} == {".py", ".json"}
    assert {"src/multiattn/__main__.py", "src/multiattn/evaluation/published.json"} <= files
    every_byte = sum(map(len, content.values()))
    assert sum(made.sizes.values()) == every_byte - len(content["bundle.json"]), "all but the manifest with the sizes"
    assert list(made.folder.parent.iterdir()) == [made.folder], "nothing is left beside it"


def test_the_runs_of_a_bundle_are_the_runs_they_were_made_of(pipeline, made):
    run = made.folder / "runs" / "demo_tiny"
    assert [model.name for model in find_models(run)] == [model.name for model in find_models(pipeline.experiment)]
    assert trained_on(run) == trained_on(pipeline.experiment) != set()
    inputs = find_inputs_of(made.folder, pipeline)
    assert inputs.runs == (run,)
    overall = vars(score_out_of_fold(pipeline.experiment).overall)
    measured = {name: overall[name] for name in ("log_loss", "balanced_log_loss", "auc")}
    assert measured.items() <= inputs.rule.out_of_fold.items()
    assert dataclasses.replace(inputs.rule, out_of_fold=None, experiments=()) == ScoringRule()
    assert choose_scoring([run], None).experiments == ("demo_tiny",)


def weighted(**weights: float) -> ScoringRule:
    """As tuned for these experiments."""
    return ScoringRule(
        ensemble=Ensemble(method="weighted", weights=weights),
        experiments=tuple(sorted(weights)),
        out_of_fold={"log_loss": 0.25, "auc": 0.9},
    )


def test_all_experiments_of_a_bundle_are_found_a_linked_one_by_the_name_its_weight_goes_by(pipeline, tmp_path):
    shutil.copytree(pipeline.experiment, tmp_path / "demo2")
    (tmp_path / "linked").symlink_to(pipeline.experiment)
    rule, runs = weighted(linked=0.25, demo2=0.75), (tmp_path / "linked", tmp_path / "demo2")
    bundle(pipeline, tmp_path / "kit", runs=runs, rule=rule)
    inputs = find_inputs_of(tmp_path / "kit", pipeline)
    assert inputs.rule == rule and inputs.weights is None
    assert sorted(path.name for path in inputs.runs) == ["demo2", "linked"]
    models = find_models(*inputs.runs)
    assert len(models) == 4
    require_rule_fits(inputs.rule, models)
    assert json.loads((tmp_path / "kit" / "bundle.json").read_text())["runs"] == ["demo2", "linked"]
    assert not (tmp_path / "kit" / "runs" / "linked").is_symlink()


def test_the_run_one_stands_in_is_bundled_under_its_name(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(pipeline.experiment)
    for runs in ((Path(),), (Path("fold0"), Path("fold1"))):
        bundle(pipeline, tmp_path / "kit", runs=runs, rule=weighted(demo_tiny=1.0))
        models = find_models(tmp_path / "kit" / "runs" / "demo_tiny")
        assert [model.name for model in models] == ["demo_tiny/fold0", "demo_tiny/fold1"]


def test_a_rule_for_other_runs_is_refused_before_anything_is_built(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "_fill", lambda *args: pytest.fail("built in vain"))
    with pytest.raises(ValueError, match="weights are for other; found none for demo_tiny"):
        bundle(pipeline, tmp_path / "kit", rule=weighted(other=1.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda runs: (runs / "demo_tiny").rename(runs / "other"), id="a run under another name"),
        pytest.param(lambda runs: (runs / "demo_tiny" / "scoring.json").unlink(), id="no rule"),
        pytest.param(lambda runs: (runs / "demo_tiny" / "fold1" / BEST_WEIGHTS).unlink(), id="a fold without weights"),
    ],
)
def test_a_kit_that_could_not_run_is_not_put_in_place(pipeline, tmp_path, monkeypatch, spoil):
    bundle(pipeline, tmp_path / "kit")
    before, fill = tree(tmp_path), bundle_module._fill

    def fill_and_spoil(building, *rest):
        stored = fill(building, *rest)
        spoil(building / "runs")
        return stored

    monkeypatch.setattr(bundle_module, "_fill", fill_and_spoil)
    with pytest.raises((ValueError, FileNotFoundError)):
        bundle(pipeline, tmp_path / "kit", rule=weighted(demo_tiny=1.0))
    assert tree(tmp_path) == before


def test_a_bundle_publishes_names_alone_of_absolute_paths(pipeline, tmp_path):
    shutil.copytree(pipeline.experiment, tmp_path / "demo_tiny")
    for fold in (0, 1):
        path = tmp_path / "demo_tiny" / f"fold{fold}" / "experiment.json"
        settings = json.loads(path.read_text())
        settings["start_from"], settings["model"]["weights"] = str(tmp_path / "first_run"), r"C:\Users\me\b4.pth"
        path.write_text(json.dumps(settings))
    (tmp_path / "demo_tiny/fold0/import.json").write_text(json.dumps({"source": [{"file": f"{tmp_path}/ckpt.pth"}]}))
    rule = weighted(demo_tiny=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "out_of_fold_figures", lambda *_: rule.out_of_fold)
        bundle(pipeline, tmp_path / "kit", runs=(tmp_path / "demo_tiny",), rule=rule)
    of_runs = [path for path in (tmp_path / "kit").rglob("*.json") if "src" not in path.parts]
    assert not [path for path in of_runs if str(tmp_path) in path.read_text() or "Users" in path.read_text()]
    experiment = find_models(tmp_path / "kit" / "runs" / "demo_tiny")[0].experiment
    assert (experiment.start_from, experiment.model.weights) == ("first_run", "b4.pth")
    assert "ckpt.pth" in (tmp_path / "kit/runs/demo_tiny/fold0/import.json").read_text()


def test_the_manifest_digests_code_and_wheels(made):
    manifest = json.loads((made.folder / "bundle.json").read_text())
    digests = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in tree(made.folder).items()
        if name.startswith("src/")
    }
    assert manifest["sha256"] == digests != {}


def test_the_same_bundle_has_the_same_bytes(pipeline, tmp_path):
    bundle(pipeline, tmp_path / "kit", rule=weighted(demo_tiny=1.0))
    first = tree(tmp_path)
    bundle(pipeline, tmp_path / "kit", rule=weighted(demo_tiny=1.0))
    assert tree(tmp_path) == first


def find_inputs_of(root: Path, pipeline):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "SCORING", "OUT", "WEIGHTS"):
            patch.delenv(f"MULTIATTN_{name}", raising=False)
        patch.setenv("MULTIATTN_VIDEOS_DIR", str(pipeline.dataset / "test_videos"))
        patch.setenv("MULTIATTN_SAMPLE_SUBMISSION", str(pipeline.dataset / "sample_submission.csv"))
        return find_inputs(root)


def test_a_single_fold_and_a_tuned_rule_are_bundled_as_they_are(pipeline, tmp_path):
    rule = weighted(demo_tiny=1.0)
    bundle(pipeline, tmp_path / "kit", runs=(pipeline.experiment / "fold1",), rule=rule)
    run = tmp_path / "kit" / "runs" / "demo_tiny"
    assert [model.name for model in find_models(run)] == ["demo_tiny/fold1"]
    assert choose_scoring([run], None) == rule
    original = pipeline.experiment / "fold1" / BEST_WEIGHTS
    assert (run / "fold1" / BEST_WEIGHTS).read_bytes() == original.read_bytes()


def test_folds_tables_that_differ_are_kept_apart(pipeline, tmp_path):
    shutil.copytree(pipeline.experiment, tmp_path / "demo_tiny")
    table = tmp_path / "demo_tiny" / "fold1" / "folds.csv"
    table.write_text(table.read_text().replace("dfdc/", "dfdc/another_"))
    rule = ScoringRule(out_of_fold={"log_loss": 0.25, "auc": 0.9})
    bundle(pipeline, tmp_path / "kit", runs=(tmp_path / "demo_tiny",), rule=rule)
    assert trained_on(tmp_path / "kit" / "runs" / "demo_tiny") == trained_on(tmp_path / "demo_tiny")


def test_an_empty_folder_is_filled_and_a_bundle_replaced_by_the_next_one(pipeline, tmp_path):
    (tmp_path / "kit").mkdir()
    bundle(pipeline, tmp_path / "kit")
    assert is_bundle(tmp_path / "kit")
    (tmp_path / "kit" / "wheels").mkdir()
    (tmp_path / ".kit.building" / "half").mkdir(parents=True)  # as a killed run leaves
    bundle(pipeline, tmp_path / "kit", runs=(pipeline.experiment / "fold0",))
    assert not (tmp_path / "kit" / "wheels").exists()
    assert not (tmp_path / "kit" / "runs" / "demo_tiny" / "fold1").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "kit"]


@pytest.mark.parametrize("content", ["notes.txt", "bundle.json"], ids=["somebody's folder", "another's bundle.json"])
def test_a_folder_that_is_no_bundle_is_left_alone(pipeline, tmp_path, content):
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / content).write_text('{"kind": "wood"}')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="expected a bundle to replace or a new folder"):
        bundle(pipeline, tmp_path / "kit")
    assert tree(tmp_path) == before and not is_bundle(tmp_path / "kit")


def test_a_bundle_over_the_limit_is_refused_with_its_parts_and_nothing_is_left(pipeline, tmp_path):
    bundle(pipeline, tmp_path / "kit")
    before = tree(tmp_path)
    with pytest.raises(ValueError) as refused:
        bundle(pipeline, tmp_path / "kit", max_gb=0.001)
    message = str(refused.value)
    assert "more than --max-gb 0.001" in message
    assert message.index("weights ") < message.index("tables "), "the largest parts come first"
    assert "--runs runs/a/fold0" in message and "float16" in message
    assert tree(tmp_path) == before, "the bundle that was there is as it was"


def test_an_error_on_the_way_leaves_nothing(pipeline, tmp_path):
    with pytest.raises(FileNotFoundError, match="weights file of a detector"):
        bundle(pipeline, tmp_path / "kit", weights=tmp_path / "none.pth")
    assert list(tmp_path.iterdir()) == []


def test_the_detectors_weights_come_along(pipeline, tmp_path):
    (tmp_path / "retina.pth").write_bytes(b"weights")
    made = bundle(pipeline, tmp_path / "kit", weights=tmp_path / "retina.pth")
    assert (tmp_path / "kit" / "weights" / "retina.pth").read_bytes() == b"weights"
    assert made.sizes["detector"] == 7
    assert find_inputs_of(tmp_path / "kit", pipeline).weights == tmp_path / "kit" / "weights" / "retina.pth"
    assert json.loads((tmp_path / "kit" / "bundle.json").read_text())["detector_weights"] == "retina.pth"


@pytest.mark.parametrize(
    ("experiments", "title", "slug"),
    [
        pytest.param(["dfdc_b4"], "multiattn dfdc_b4", "multiattn-dfdc-b4", id="one"),
        pytest.param(["a", "b"], "multiattn a b", "multiattn-a-b", id="two"),
        pytest.param(["x" * 80], f"multiattn {'x' * 40}", f"multiattn-{'x' * 40}", id="longer than Kaggle takes"),
    ],
)
def test_kaggles_metadata_has_title_id_and_licence(experiments, title, slug):
    values = dataset_metadata(experiments)
    assert values == {"title": title, "id": f"INSERT_USERNAME/{slug}", "licenses": [{"name": "other"}]}
    assert 6 <= len(values["title"]) <= 50


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("av", "av"),
        ("facenet-pytorch==2.5.3", "facenet-pytorch"),
        ("Typing_Inspect >=0.6", "typing-inspect"),
        ("dask[distributed]>=2024.8", "dask"),
        ("torch>=2.6,<2.15", "torch"),
    ],
)
def test_names_of_requirements_are_normalised(requirement, name):
    assert package_name(requirement) == name


def test_by_default_the_packages_are_what_inference_needs_and_kaggle_lacks():
    requirements = read_requirements(bundle_module.REPOSITORY / "requirements.txt")
    assert [package_name(word) for word in default_packages(requirements)] == [
        *("av", "facenet-pytorch", "tyro", "pandera"),
        *("docstring-parser", "typeguard", "typing-inspect", "mypy-extensions"),
    ]
    assert set(requirements) >= KAGGLE_HAS, "a name that requirements.txt does not have hides nothing"
    assert with_bounds(["av", "tyro==1.0", "other"], requirements) == [requirements["av"], "tyro==1.0", "other"]


def test_wheels_are_chosen_by_name_and_missing_ones_are_all_named(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    names = ["av-18.0-cp311-abi3-linux_x86_64.whl", "av-18.0-cp312-cp312-linux_x86_64.whl"]
    names += ["typing_inspect-0.9.0-py3-none-any.whl", "other-1.0-py3-none-any.whl"]
    for name in names:
        (source / name).write_text(name)
    collect_wheels(["av>=14", "typing-inspect"], source, tmp_path / "wheels")
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == names[:3]
    with pytest.raises(FileNotFoundError, match="no wheel of tyro, pandera<1"):
        collect_wheels(["av", "tyro", "pandera<1"], source, tmp_path / "wheels")


def test_a_bundle_lists_what_is_to_be_installed_beside_the_wheels(pipeline, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "av-18.0-cp311-abi3-linux_x86_64.whl").write_bytes(b"wheel")
    options = {"wheels": tmp_path / "source", "packages": ("av",)}
    made = bundle(pipeline, tmp_path / "kit", **options)
    requirement = read_requirements(bundle_module.REPOSITORY / "requirements.txt")["av"]
    assert (tmp_path / "kit" / "wheels" / "requirements.txt").read_text() == f"{requirement}\n"
    assert made.sizes["wheels"] == len(requirement) + 1 + len(b"wheel")


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="the extra onnx")
def test_a_bundle_brings_networks_that_a_notebook_without_a_gpu_predicts_by(pipeline, tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    for name in ("av-18.0-cp311-abi3-linux_x86_64.whl", "onnxruntime-1.32.0-cp311-cp311-linux_x86_64.whl"):
        (tmp_path / "source" / name).write_bytes(b"wheel")
    kit, source = tmp_path / "kit", {"wheels": tmp_path / "source", "packages": ("av",)}
    fold = tmp_path / pipeline.experiment.name / "fold0"
    shutil.copytree(pipeline.experiment / "fold0", fold)
    settings = read_json(fold / "experiment.json")
    settings["model"]["weights"] = str(tmp_path / "backbone.pth")  # only the name comes along
    write_json(fold / "experiment.json", settings)
    made = bundle(pipeline, kit, runs=(fold,), runtime="onnxruntime", **source)
    assert [package_name(line) for line in (kit / "wheels" / "requirements.txt").read_text().split()] == [
        "av",
        "onnxruntime",
    ]
    for name in ("VIDEOS_DIR", "SAMPLE_SUBMISSION"):
        monkeypatch.setenv(f"MULTIATTN_{name}", str(tmp_path))
    monkeypatch.setattr(runtimes.os, "access", lambda *_: False)  # as /kaggle/input
    monkeypatch.setattr(runtimes, "_export", lambda *_: pytest.fail("exported on a machine that may lack the exporter"))
    for device, runtime in {"cpu": "onnxruntime", "cuda": "torch"}.items():
        monkeypatch.setattr(submit_inputs, "pick_devices", lambda _, device=device: (torch.device(device),))
        inputs = find_inputs(kit)
        assert inputs.runtime == runtime
    with monkeypatch.context() as patch:
        patch.setattr(submit_inputs, "pick_devices", lambda _: (CPU,))
        patch.setattr(submit_inputs, "find_spec", lambda name: None)
        assert find_inputs(kit).runtime == "torch", "what the machine lacks is not asked for"
    networks = [
        load_network(with_runtime(find_models(*inputs.runs), runtime, CPU)[0], CPU)
        for runtime in ("onnxruntime", "torch")
    ]
    crops = drawn_crops(3, find_models(*inputs.runs)[0].experiment.data.image_size)
    with torch.inference_mode():
        found, expected = (network(normalize_crops(torch.from_numpy(crops))).logits for network in networks)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    files = [path for path in kit.rglob("*") if path.suffix in (".onnx", ".safetensors")]
    assert made.sizes["weights"] == sum(path.stat().st_size for path in files) and len(files) == 2


def test_a_failed_download_shows_pips_own_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"could not fetch av for Python 3\.11: .*No matching distribution"):
        download_wheels(["av"], tmp_path / "wheels", python="3.11")
