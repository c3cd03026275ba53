"""A bundle to train from: the crops of the folds' videos, loose or in archives, not copied where a link will do."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from drawn_faces import write_faces_folder
from multiattn.__main__ import main
from multiattn.config import Experiment, from_json
from multiattn.datasets.folds import make_folds, read_folds, write_folds
from multiattn.experiments import get_experiment
from multiattn.inference.kit import training_bundle
from multiattn.inference.kit.bundle import is_bundle
from multiattn.inference.kit.options import BundleOptions
from multiattn.inference.kit.training_bundle import build_training_bundle
from multiattn.runtime.crop_files import crops_root
from multiattn.tables import FACES, VIDEOS
from multiattn.training.data.crops import split_crops
from multiattn.training.folds import read_training_data
from multiattn.video.crops.images import read_crop
from multiattn.video.crops.recipe import CropRecipe
from pipeline import Killed, finish, run, start

SIZE = 112
VIDEOS_OF_FOLDS = [f"d/{label}{number}" for label in "rf" for number in range(4)]


@pytest.fixture
def faces(tmp_path) -> Path:
    """A finished faces folder of five real and five fake videos, two crops each, and folds of four of each."""
    labels = {f"d/{label}{number}": int(label == "f") for label in "rf" for number in range(5)}
    table = pd.DataFrame([(video, frame) for video in labels for frame in (0, 5)], columns=["video_id", "frame_index"])
    table["crop"] = [f"crops/{video}/{frame:06d}_0.jpg" for video, frame in table.itertuples(index=False)]
    table = table.assign(track=0, seconds=0.0, x1=0.0, y1=0.0, x2=9.0, y2=9.0, score=1.0)
    table = table.assign(**dict.fromkeys((column for column in FACES.columns if column.startswith("lm")), 1.0))
    generator = np.random.default_rng(0)
    for name in table["crop"]:
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    write_faces_folder(tmp_path / "faces", table, labels, CropRecipe(num_frames=2, size=SIZE))
    videos = VIDEOS.read(tmp_path / "faces" / "videos.csv")
    videos = videos[videos["video_id"].isin(VIDEOS_OF_FOLDS)].reset_index(drop=True)
    folds = make_folds(videos, num_folds=2, seed=0, grouping="original")
    write_folds(folds, tmp_path / "folds" / "mine.csv", {"group": "original"})
    return tmp_path / "faces"


def options(faces: Path, **more) -> BundleOptions:
    given = {"training": "demo", "faces": faces, "folds": faces.parent / "folds" / "mine.csv"}
    return BundleOptions(**{**given, "out": faces.parent / "kit", **more})


def build(faces: Path, **more) -> Path:
    return build_training_bundle(options(faces, **more), get_experiment("demo")).folder


def files(folder: Path) -> set[str]:
    # Python keeps what it compiled of an experiment's file beside it.
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def require_same_training(faces: Path, kit: Path) -> None:
    """Both train on the same crops, which have the same pixels; only videos of the folds are in the kit."""
    mine = read_training_data(faces, faces.parent / "folds" / "mine.csv")
    packed = read_training_data(kit / "faces", kit / "folds.csv")
    assert set(packed.faces["video_id"]) == set(packed.videos["video_id"]) == set(VIDEOS_OF_FOLDS)
    assert packed.recipe == mine.recipe
    pd.testing.assert_frame_equal(read_folds(kit / "folds.csv"), mine.folds)
    mine, packed = (split_crops(data.faces, data.folds, 0, data.folder) for data in (mine, packed))
    assert packed.fingerprint() == mine.fingerprint()
    for name in packed.training["crop"]:
        pixels = [read_crop(crops_root(folder) / name, SIZE) for folder in (packed.folder, mine.folder)]
        np.testing.assert_array_equal(*pixels)


def test_it_holds_code_experiment_folds_and_crops_that_share_the_disk_with_the_faces_folder(faces):
    kit = build(faces)
    require_same_training(faces, kit)
    found = {name for name in files(kit) if not name.startswith(("src/", "faces/crops/"))}
    assert found == {
        *("bundle.json", "README.txt", "dataset-metadata.json", "pyproject.toml", "LICENSE"),
        *("training.ipynb", "inference.ipynb", "experiment.json", "folds.csv", "folds.json"),
        *(f"faces/{name}" for name in ("faces.json", "faces.parquet", "videos.csv", "video_status.csv")),
    }
    crops = [name for name in files(kit / "faces") if name.startswith("crops/")]
    assert len(crops) == 2 * len(VIDEOS_OF_FOLDS)
    assert all((kit / "faces" / name).samefile(faces / name) for name in crops)
    assert is_bundle(kit) and not list(faces.parent.glob(".kit*"))
    manifest = json.loads((kit / "bundle.json").read_text())
    code = {name: hashlib.sha256((kit / name).read_bytes()).hexdigest() for name in files(kit) if name[:4] == "src/"}
    assert manifest["sha256"] == code != {} and manifest["experiment"] == "demo"
    assert from_json(Experiment, json.loads((kit / "experiment.json").read_text())) == get_experiment("demo")
    assert "internet off" in (kit / "README.txt").read_text()


def test_crops_in_archives_come_in_the_archives_they_lie_in(faces):
    """As `index crops` reads them, and a folder whose crops are packed."""
    root, table = faces.parent / "elsewhere", FACES.read(faces / "faces.parquet")
    root.mkdir()
    with tarfile.open(root / "all.tar", "w") as archive:
        for name in table["crop"]:
            archive.add(faces / name, name)
    with tarfile.open(root / "all.tar") as archive:
        place = {member.name: f"all.tar@{member.offset_data}+{member.size}/{member.name}" for member in archive}
    FACES.write(table.assign(crop=table["crop"].map(place)), faces / "faces.parquet")
    recipe = json.loads((faces / "faces.json").read_text())
    (faces / "faces.json").write_text(json.dumps({**recipe, "root": "../elsewhere"}))
    kit = build(faces)
    require_same_training(faces, kit)
    assert {name for name in files(kit / "faces") if name.endswith((".jpg", ".tar"))} == {"crops/all.tar"}
    kit.rename(faces.parent / "moved")
    root.rename(faces.parent / "gone")
    moved = read_training_data(faces.parent / "moved" / "faces", faces.parent / "moved" / "folds.csv")
    assert read_crop(crops_root(moved.folder) / moved.faces["crop"].iloc[-1], SIZE).std() > 9


def no_link(*_: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def build_and_die(faces: Path, after: int) -> None:
    """End this process while the next crop after so many is copied."""
    copies, copy = itertools.count(), shutil.copy2

    def copy_or_die(source: Path, target: Path) -> None:
        if next(copies) == after:
            target.write_bytes(b"half")
            os._exit(9)
        copy(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_bundle.os, "link", no_link)
        patch.setattr(training_bundle.shutil, "copy2", copy_or_die)
        build(faces)


@pytest.mark.slow
def test_on_another_disk_crops_are_copied_and_a_killed_run_goes_on(faces, monkeypatch):
    assert finish(start(build_and_die, faces, 5)) == 9
    assert not (faces.parent / "kit").exists()
    copied, copy = [], shutil.copy2
    monkeypatch.setattr(training_bundle.os, "link", no_link)
    monkeypatch.setattr(training_bundle.shutil, "copy2", lambda *paths: copied.append(paths) or copy(*paths))
    kit = build(faces)
    assert len(copied) == 16 - 5, "five were there"
    require_same_training(faces, kit)
    assert not any((kit / "faces" / name).samefile(faces / name) for name in files(kit / "faces") if name[-3:] == "jpg")


def test_a_bundle_is_replaced_and_one_that_failed_leaves_the_old_one(faces, monkeypatch):
    kit = build(faces)
    (kit / "more.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(training_bundle.os, "link", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            build(faces)
    assert (kit / "more.txt").exists() and (faces / "crops" / "d" / "r0" / "000000_0.jpg").is_file()
    assert not (build(faces) / "more.txt").exists()
    assert [path.name for path in faces.parent.iterdir() if "kit" in path.name] == ["kit"]


def write_experiment(folder: Path, change: str) -> str:
    text = f"import dataclasses\nfrom multiattn.experiments import demo\ndef mine():\n    return {change}\n"
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:mine"


def test_the_stage_packs_weights_that_fit_and_the_experiment_names_them_by_their_place(faces, capsys):
    import timm

    path = faces.parent / "small.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), path)
    words = ("--faces", faces, "--folds", faces.parent / "folds" / "mine.csv", "--out", faces.parent / "kit")
    run("bundle", "--training", "demo", *words, "--weights", path)
    printed, kit = capsys.readouterr().out, faces.parent / "kit"
    assert "\ncrops " in printed and f"MB of 100 GB in {kit}" in printed
    assert json.loads((kit / "experiment.json").read_text())["model"]["weights"] == "weights/small.pth"
    assert (kit / "weights" / "small.pth").read_bytes() == path.read_bytes()
    assert str(faces.parent) not in (kit / "experiment.json").read_text() + (kit / "bundle.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--training", "demos"], "Did you mean 'demo'", id="no such experiment"),
        pytest.param(["--training", "dfdc_b4"], "of 380 pixels or more", id="crops that are too small"),
        pytest.param(["--training", "demo", "--max-gb", "1e-6"], "more than --max-gb 1e-06", id="too large"),
        pytest.param(["--training", "demo", "--weights", "none.pth"], "none.pth", id="no weights"),
        pytest.param(["--training", "demo", "--weights", "folds/mine.csv"], "not a PyTorch file", id="other weights"),
        pytest.param(["--training", "start"], "needs runs/first, which is not packed", id="a start from a run"),
        pytest.param(["--training", "demo", "--out", "faces"], "expected a bundle to replace", id="another folder"),
    ],
)
def test_what_could_not_be_trained_from_is_refused_and_nothing_is_written(words, message, faces, monkeypatch, capsys):
    monkeypatch.chdir(faces.parent)
    if "start" in words:
        words = ["--training", write_experiment(faces.parent, "dataclasses.replace(demo(), start_from='runs/first')")]
    before = files(faces.parent)
    given = ["--faces", "faces", "--folds", "folds/mine.csv", "--out", "kit"]
    assert main(["bundle", *given, *words]) == 2
    assert message in capsys.readouterr().err
    assert files(faces.parent) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({}, "expected --runs, or --training", id="neither"),
        pytest.param({"training": "demo"}, "expected --faces and --folds", id="no crops"),
        pytest.param({"runs": (Path("runs/x"),), "faces": Path("faces")}, "no --faces without --training", id="crops"),
        pytest.param({"training": "demo", "runs": (Path("runs/x"),)}, "no --runs beside --training", id="runs too"),
        pytest.param({"training": "demo", "package": True}, "no --package beside --training", id="a packaged run"),
    ],
)
def test_options_that_do_not_fit_together_are_named(given, message):
    crops = {} if message.startswith("expected") or "faces" in given else {"faces": Path("f"), "folds": Path("f.csv")}
    with pytest.raises(ValueError, match=message):
        BundleOptions(out=Path("kit"), **given, **crops)
    assert BundleOptions(out=Path("kit"), runs=(Path("runs/x"),)).max_gb == 1
