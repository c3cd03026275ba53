"""A run that comes with the package: packed small and without a path, refused when a byte changes, and in a wheel."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference.submit.submit_case import BLOCK_NETWORK
from multiattn import DeepfakeDetector
from multiattn.__main__ import main
from multiattn.config import from_json, to_json
from multiattn.experiments import get_experiment
from multiattn.inference.kit import package as package_module
from multiattn.inference.kit.options import BundleOptions
from multiattn.inference.kit.package import build_package, licence
from multiattn.inference.runs import TrainedModel, find_models
from multiattn.inference.scoring_file import ScoringFile, read_scoring_file
from multiattn.model.network import make_network
from multiattn.runtime import layout
from multiattn.runtime.files import changed_files, write_digests
from multiattn.runtime.tensor_files import read_metadata
from multiattn.scoring.answers import HeldOutAnswers
from multiattn.scoring.rule import ScoringRule
from multiattn.training.engine.run_folder import start_from
from multiattn.video.crops.recipe import CropRecipe

REPOSITORY = Path(__file__).parents[2]
CARD = f"# Model card: dfdc_lite\n\n{layout.DATA_TERMS}\n\n- dfdc: the competition's rules\n"
RULE = ScoringRule(
    experiments=("dfdc_lite",),
    out_of_fold={"log_loss": 0.5, "auc": 0.75},
    held_out=HeldOutAnswers(datasets=("dfdc",), num_reals=3, num_fakes=4, num_groups=3, crops=4),
)


@pytest.fixture(scope="module")
def trained(pipeline, tmp_path_factory) -> Path:
    """The miniature's run as `dfdc_lite`, with a card, and paths of this machine in its settings."""
    run = shutil.copytree(pipeline.experiment, tmp_path_factory.mktemp("trained") / "dfdc_lite")
    for fold in run.glob("fold*"):
        settings = json.loads((fold / "experiment.json").read_text())
        settings["start_from"], settings["model"]["weights"] = str(run.parent / "first"), "/home/me/lite0.pth"
        (fold / "experiment.json").write_text(json.dumps(settings))
        (fold / "distance.safetensors").write_bytes(b"as it is")
    (run / "card.md").write_text(CARD)
    return run


def pack(pipeline, runs: Path, out: Path, *, rule: ScoringRule = RULE, **options):
    options = {"package": True, "check_faces": (pipeline.faces,), "check_crops": 3, "device": "cpu", **options}
    return build_package(BundleOptions(runs=(runs,), out=out, **options), ScoringFile(rule=rule))


@pytest.fixture(scope="module")
def packed(pipeline, trained, tmp_path_factory) -> Path:
    """A packaged run in a folder of its own; to be read only."""
    return pack(pipeline, trained, tmp_path_factory.mktemp("pretrained") / "dfdc_lite").folder


@pytest.fixture
def packaged(packed: Path, tmp_path, monkeypatch) -> Path:
    """The packaged run where the package has its runs, but for the file of its distances, which holds none."""
    folder = shutil.copytree(packed, tmp_path / "pretrained" / "dfdc_lite")
    lines = (folder / "files.sha256").read_text().splitlines(keepends=True)
    (folder / "files.sha256").write_text("".join(line for line in lines if "distance" not in line))
    for path in folder.glob("*/distance.safetensors"):
        path.unlink()
    monkeypatch.setattr(layout, "PRETRAINED", folder.parent)
    monkeypatch.chdir(tmp_path)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_packed_run_is_a_run_folder_in_float16_with_rule_card_licence_and_digests(pipeline, packed, trained):
    of_folds = ("best.safetensors", "distance.safetensors", "experiment.json", "faces.json")
    expected = {f"fold{fold}/{name}" for fold in (0, 1) for name in of_folds}
    assert files(packed).keys() == expected | {*("folds.csv", "scoring.json", "card.md", "LICENSE.md", "files.sha256")}
    assert list(packed.parent.iterdir()) == [packed], "nothing is left beside it"
    assert read_scoring_file(packed / "scoring.json").rule == RULE
    for model in find_models(packed):
        assert read_metadata(model.path / "best.safetensors")["stored_as"] == "float16"
        assert (model.experiment.start_from, model.experiment.model.weights) == ("first", "lite0.pth")
    assert [model.name for model in find_models(packed)] == ["dfdc_lite/fold0", "dfdc_lite/fold1"]
    for name, content in files(packed).items():
        assert b"/home" not in content and str(trained.parent).encode() not in content, name
    text = (packed / "LICENSE.md").read_text()
    assert "# Licence of the weights of dfdc_lite" in text and "- dfdc: the competition's rules" in text
    result = subprocess.run(["sha256sum", "--check", "--strict", "files.sha256"], cwd=packed, capture_output=True)
    assert result.returncode == 0 and result.stdout.count(b": OK\n") == len(files(packed)) - 1
    pack(pipeline, trained, packed)
    assert changed_files(packed / "files.sha256") == [], "the same again, in the place of the older one"


@pytest.mark.parametrize(
    ("model", "start_from", "says", "apache"),
    [
        pytest.param({"backbone": "tf_efficientnet_lite0"}, None, "those of tf_efficientnet_lite0", True, id="lite"),
        pytest.param({"backbone": "tf_efficientnet_b4_ns"}, None, "timm's of tf_efficientnet_b4_ns", False, id="b4"),
        pytest.param({"pretrained": False}, None, "drawn at random", False, id="untrained"),
        pytest.param(
            {"backbone": "tf_efficientnet_lite0", "pretrained": False}, "runs/first", "from the run first", True,
            id="gone on from a run of lite",
        ),
    ],
)  # fmt: skip
def test_a_licence_tells_where_the_weights_began(model, start_from, says, apache, tmp_path):
    experiment = get_experiment("dfdc_b4")
    changed = dataclasses.replace(experiment.model, **model)
    experiment = dataclasses.replace(experiment, model=changed, start_from=start_from)
    (tmp_path / "mine" / "fold0").mkdir(parents=True)
    (tmp_path / "mine" / "fold0" / "experiment.json").touch()
    run = TrainedModel(tmp_path / "mine" / "fold0", 0, from_json(type(experiment), to_json(experiment)), CropRecipe())
    text = licence([run], f"{layout.DATA_TERMS}\n\nterms\n\n## More\n\nother")
    assert says in text and "\n## Data\n\nterms\n\n## Use" in text and "# Licence of the weights of mine" in text
    assert ("TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text) == apache
    assert ("Copyright (c) 2020, ML Illustrated" in text) == apache


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"check_faces": ()}, "--check-faces FACES", id="no crops to compare on"),
        pytest.param({"packages": ("av",), "download_wheels": True}, "--download-wheels, --packages", id="wheels"),
        pytest.param({"rule": ScoringRule()}, "multiattn tune", id="a rule that was not tuned"),
        pytest.param({"name": "other"}, "expected the name of the one run", id="another name"),
        pytest.param({"largest_change": 1e-12}, r"float16 changes P\(fake\)", id="float16 changes too much"),
        pytest.param({"limit": 10_000}, "at most 0 MB, found weights ", id="too large"),
        pytest.param({"card": "by hand"}, "multiattn card --runs", id="a card without the terms of the data"),
        pytest.param({"there": "notes.txt"}, "found something else", id="another folder"),
    ],
)
def test_what_is_not_fit_to_be_packed_is_refused_and_nothing_is_written(
    pipeline, trained, tmp_path, monkeypatch, options, message
):
    options = dict(options)
    monkeypatch.setattr(package_module, "LARGEST_BYTES", options.pop("limit", 10**7))
    runs, out = trained, tmp_path / "pretrained" / options.pop("name", "dfdc_lite")
    if "card" in options:
        runs = shutil.copytree(trained, tmp_path / "copy" / "dfdc_lite")
        (runs / "card.md").write_text(options.pop("card"))
    if "there" in options:
        out.mkdir(parents=True)
        (out / options.pop("there")).write_text("mine")
    before = files(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pack(pipeline, runs, out, **options)
    assert files(tmp_path) == before


def test_a_packaged_run_stays_as_it_was_packed(packaged, pipeline, capsys):
    assert main(["card", "--runs", "dfdc_lite"]) == 0
    assert "which has its own; name a file with --out" in capsys.readouterr().out
    assert main(["predict", "--runs", str(packaged), "--faces", str(pipeline.faces), "--fit-distance"]) == 2
    assert "belongs to a packaged run, which stays as it is" in capsys.readouterr().err
    assert changed_files(packaged / "files.sha256") == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(lambda run: flip(run / "fold1" / "best.safetensors"), r"fold1/best.safetensors: [0-9a-f]{64}\.",
                     id="a bit of the weights"),
        pytest.param(lambda run: (run / "scoring.json").unlink(), "scoring.json: no file", id="a file is gone"),
        pytest.param(lambda run: (run / "files.sha256").unlink(), "expected the digests", id="no digests"),
        pytest.param(lambda run: (run / "files.sha256").write_bytes(b"\xff"), "expected the digests", id="no text"),
        pytest.param(lambda run: (run / "files.sha256").write_text(""), "card.md: not in the list", id="an empty list"),
        pytest.param(lambda run: (run / "fold2").symlink_to(run / "fold1"), "fold2: not in the list", id="a fold more"),
    ],
)  # fmt: skip
def test_a_packaged_run_of_other_bytes_is_refused_by_name_before_torch_is_imported(packaged, change, found):
    assert changed_files(packaged / "files.sha256") == [] and layout.named_run("dfdc_lite") == packaged
    change(packaged)
    with pytest.raises(ValueError, match=found):
        layout.packaged_run()
    if (packaged / "files.sha256").exists():
        with pytest.raises(ValueError, match=found):
            find_models(packaged / "fold0")
    code = (
        "import sys; from pathlib import Path; from multiattn.runtime import layout\n"
        f"layout.PRETRAINED = Path({str(packaged.parent)!r})\n"
        "from multiattn.__main__ import main\n"
        "print(main(['score', 'clip.mp4']), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "2 False\n" and re.search(found, result.stderr)


def test_a_packaged_run_is_loaded_without_a_hub(packaged, pipeline, monkeypatch):
    """Its settings say that its backbone began with a hub's weights; only its own are read."""
    for fold in packaged.glob("fold?"):
        settings = json.loads((fold / "experiment.json").read_text())
        settings["model"] |= {"pretrained": True, "weights": None}
        (fold / "experiment.json").write_text(json.dumps(settings))
    write_digests(packaged / "files.sha256")

    def refuse(*_, **__):
        raise OSError("networking is blocked")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    clip = next((pipeline.dataset / "test_videos").glob("*.mp4"))
    answer = DeepfakeDetector.load(device="cpu").predict(clip)
    assert answer.status in ("ok", "no_face") or answer.reason


def test_a_training_of_any_fold_starts_from_a_packaged_run_by_its_name(packaged):
    model = find_models(packaged)[0]
    network, expected = make_network(model.experiment.model, load_weights=False), model.load("cpu").state_dict()
    start_from(network, "dfdc_lite", fold=7)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    flip(packaged / "card.md")
    with pytest.raises(ValueError, match=r"card\.md"):
        start_from(network, "dfdc_lite", fold=7)


@pytest.mark.slow
def test_a_wheel_takes_the_packaged_run_along_and_scores_by_it_without_a_network(packaged, pipeline, tmp_path):
    tree, site, elsewhere = tmp_path / "tree", tmp_path / "site", tmp_path / "elsewhere"
    dirt = shutil.ignore_patterns("__pycache__", "*.egg-info", "pretrained")
    shutil.copytree(REPOSITORY / "src", tree / "src", ignore=dirt)
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, tree / name)
    shutil.copytree(packaged, tree / "src" / "multiattn" / "pretrained" / "dfdc_lite")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    offline = {**os.environ, "PIP_NO_INDEX": "1"}
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(wheel, env=offline, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(site), str(built)], env=offline,
                   check=True, capture_output=True)  # fmt: skip
    shutil.rmtree(tree)
    assert files(site / "multiattn" / "pretrained" / "dfdc_lite") == files(packaged)
    (told,) = site.glob("*.dist-info/METADATA")
    assert "License-File: src/multiattn/pretrained/dfdc_lite/LICENSE.md" in told.read_text().splitlines()
    elsewhere.mkdir()
    (site / "sitecustomize.py").write_text(BLOCK_NETWORK)
    clip = next((pipeline.dataset / "test_videos").glob("*.mp4"))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(site), "HOME": str(elsewhere)}
    code = "import multiattn, sys; print(multiattn.__file__); from multiattn.__main__ import main; sys.exit(main())"
    words = ["score", str(clip), "--device", "cpu", "--jobs", "1", "--json", "answers.json"]
    result = subprocess.run([sys.executable, "-c", code, *words], cwd=elsewhere, env=environment, capture_output=True,
                            text=True)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{site / 'multiattn' / '__init__.py'}\nno --runs: by the packaged run dfdc_lite\n")
    written = json.loads((elsewhere / "answers.json").read_text())
    assert written["runs"] == ["dfdc_lite/fold0", "dfdc_lite/fold1"]
    assert written["files"][0]["probability"] is not None
    command = [sys.executable, str(site / "bin" / "multiattn"), "doctor"]
    told = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True).stdout
    assert re.search(r"^versions +ok +\d+ packages in range", told, re.MULTILINE), told


def test_the_runs_that_come_with_the_package_are_whole():
    """There may be none."""
    for folder in layout.PRETRAINED.glob("*/"):
        assert layout.named_run(folder.name) == folder
        found = files(folder)
        assert {"scoring.json", "card.md", "LICENSE.md"} <= found.keys()
        listed = {line.partition("  ")[2] for line in found["files.sha256"].decode().splitlines()}
        assert listed == found.keys() - {"files.sha256"}
        assert sum(map(len, found.values())) <= package_module.LARGEST_BYTES
