"""Folds from several places in one folder of runs: whole, the same bytes, of one experiment; whatever ends the work."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import files, make_fold, write_anew

from multiattn.__main__ import main
from multiattn.experiments import get_experiment
from multiattn.runtime import layout
from multiattn.training import merging
from multiattn.training.merging import merge_folds
from multiattn.video.crops.recipe import CropRecipe, write_recipe
from pipeline import Killed


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """Folders of runs of two accounts, with folds 0 and 2, and 1."""
    make_fold(tmp_path / "mine", 0), make_fold(tmp_path / "mine", 2)
    make_fold(tmp_path / "yours", 1, data=dataclasses.replace(get_experiment("dfdc_b4").data, num_workers=1))
    return tmp_path / "mine", tmp_path / "yours"


def test_the_command_puts_folds_of_two_places_together_and_the_same_again_copies_nothing(places, tmp_path, capsys):
    (places[0] / "dfdc_b4" / "scoring.json").write_text("{}")
    words = ["merge", *map(str, places), "--out", str(tmp_path / "runs")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert [f"dfdc_b4/fold{fold}: copied" in out for fold in range(3)] == [True] * 3
    assert "dfdc_b4 has 3 folds" in out and f"multiattn tune --runs {tmp_path / 'runs' / 'dfdc_b4'}" in out
    expected = {name: content for place in places for name, content in files(place).items() if "scoring" not in name}
    assert files(tmp_path / "runs") == expected, "a rule for fewer folds stays behind"
    assert main(["merge", str(places[1] / "dfdc_b4"), str(places[0]), "--out", str(tmp_path / "runs")]) == 0
    assert "copied" not in capsys.readouterr().out


def test_the_answers_to_held_out_videos_are_then_those_of_all_folds(pipeline, tmp_path):
    for place in range(2):
        name = f"demo_tiny/fold{place}"
        shutil.copytree(pipeline.runs / name, tmp_path / str(place) / name)
    assert main(["merge", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path / "runs")]) == 0
    assert files(tmp_path / "runs")["demo_tiny/oof.csv"] == (pipeline.experiment / "oof.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda fold: write_anew(fold / "experiment.json", '"seed": 7', '"seed": 8'), "seed 8 instead of 7",
                     id="seed"),
        pytest.param(lambda fold: write_anew(fold / "folds.csv", "d/b", "d/c"), "another folds table", id="folds"),
        pytest.param(lambda fold: write_recipe(CropRecipe(size=224), fold), "crops: size", id="crops"),
        pytest.param(lambda fold: (fold / "experiment.json").unlink(), "expected runs", id="no settings"),
        pytest.param(lambda fold: (fold / "folds.csv").unlink(), "folds.csv", id="no folds table"),
        pytest.param(lambda fold: (fold.parents[1].rename(fold.parents[2] / "gone")), "expected runs", id="no runs"),
        pytest.param(lambda fold: make_fold(fold.parents[1], 2, weights=b"other"), "conflicts with", id="a fold twice"),
    ],
)  # fmt: skip
def test_only_folds_that_were_made_alike_are_put_together(change, message, places, tmp_path, capsys):
    change(places[1] / "dfdc_b4" / "fold1")
    assert main(["merge", *map(str, places), "--out", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_is_named_by_its_number_alone_becomes_that_fold(places, tmp_path):
    (places[1] / "dfdc_b4" / "fold1").rename(tmp_path / "1")
    assert merge_folds([tmp_path / "1"], tmp_path / "runs") == [tmp_path / "runs" / tmp_path.name / "fold1"]


def left_by(folder: Path, *names: str, epochs: int = 0) -> None:
    """Make a fold's folder one whose training left these results alone, after so many epochs of validations."""
    (folder / "best.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"result")
    if epochs:
        rows = [f"{epoch},main,last,9.5,0.5,0.6" for epoch in range(epochs)]
        columns = "epoch,phase,candidate,seconds,validation_log_loss,validation_auc"
        (folder / "epochs.csv").write_text("\n".join([columns, *rows]))


ALL_EPOCHS = get_experiment("dfdc_b4").num_epochs
BEST, STATE, PREVIOUS = "best.safetensors", "resume.pt", "resume.previous.pt"


@pytest.mark.parametrize(
    ("names", "epochs", "is_trained", "is_unfinished"),
    [
        pytest.param((), 0, False, False, id="settings alone"),
        pytest.param(("train.log",), 0, False, False, id="a log"),
        pytest.param((".resume.pt.multiattn-tmp", ".last.safetensors"), 1, False, False, id="writes that were killed"),
        pytest.param((STATE,), 0, True, True, id="a state before the first validation"),
        pytest.param((PREVIOUS,), 0, True, True, id="the state before that alone"),
        pytest.param((STATE, PREVIOUS, BEST), 1, True, True, id="stopped after an epoch"),
        pytest.param((STATE, PREVIOUS, BEST), ALL_EPOCHS, True, False, id="finished"),
        pytest.param((BEST,), 1, True, False, id="weights that nothing goes on from"),
    ],
)
def test_folds_that_are_not_trained_stay_behind_and_unfinished_ones_come_along(
    names, epochs, is_trained, is_unfinished, places, tmp_path, capsys
):
    fold, runs = places[1] / "dfdc_b4" / "fold1", tmp_path / "runs"
    left_by(fold, *names, epochs=epochs)
    assert main(["merge", *map(str, places), "--out", str(runs)]) == 0
    out = capsys.readouterr().out
    assert (runs / "dfdc_b4" / "fold1").is_dir() == is_trained == (f"not trained, left out: {fold}\n" not in out)
    going_on = ", unfinished: fold1 (the same `multiattn train` goes on there)" if is_unfinished else ""
    assert f"dfdc_b4 has {3 if is_trained else 2} folds{going_on}; " in out
    kept = {name: content for name, content in files(fold).items() if is_trained and not name.startswith(".")}
    assert kept == (files(runs / "dfdc_b4" / "fold1") if is_trained else {})


def test_a_fold_that_is_not_trained_counts_neither_where_it_is_nor_where_it_goes(places, tmp_path, capsys):
    left_by(make_fold(tmp_path / "runs", 3), "train.log")
    assert main(["merge", *map(str, places), "--out", str(tmp_path / "runs")]) == 0
    assert "dfdc_b4 has 3 folds; " in capsys.readouterr().out


def test_where_no_fold_is_trained_nothing_is_copied(places, tmp_path, capsys):
    left_by(places[1] / "dfdc_b4" / "fold1", "train.log")
    assert main(["merge", str(places[1]), "--out", str(tmp_path / "runs")]) == 2
    assert "fold1: expected trained folds, found none with best.safetensors or resume.pt" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("has_settings", [True, False])
def test_a_fold_that_failed_in_one_place_is_taken_from_another(has_settings, places, tmp_path):
    failed = Path(shutil.copytree(places[1] / "dfdc_b4" / "fold1", places[0] / "dfdc_b4" / "fold1"))
    left_by(failed, "train.log")
    if not has_settings:
        (failed / "experiment.json").unlink()
    folders = [fold for place in places for fold in layout.folds_of_runs(place / "dfdc_b4")]
    assert [path.name for path in merge_folds(folders, tmp_path / "runs")] == ["fold0", "fold2", "fold1"]
    assert files(tmp_path / "runs" / "dfdc_b4" / "fold1") == files(places[1] / "dfdc_b4" / "fold1")


@pytest.mark.parametrize("names", [("train.log",), ("train.log", "experiment.json")])
def test_a_folder_that_holds_no_run_is_not_replaced(names, places, tmp_path):
    fold = tmp_path / "runs" / "dfdc_b4" / "fold2"
    fold.mkdir(parents=True)
    for name in names:
        (fold / name).write_text("out of memory")
    with pytest.raises(ValueError, match=r"fold2: expected a trained fold, .*Move it away"):
        merge_folds(layout.folds_of_runs(places[0]), tmp_path / "runs")
    assert list(files(tmp_path / "runs")) == [f"dfdc_b4/fold2/{name}" for name in names]


def test_the_same_fold_in_two_places_is_taken_once_and_one_that_went_on_is_refused(places, tmp_path):
    shutil.copytree(places[1] / "dfdc_b4" / "fold1", places[0] / "dfdc_b4" / "fold1")
    folders = [fold for place in places for fold in layout.folds_of_runs(place)]
    assert [path.name for path in merge_folds(folders, tmp_path / "runs")] == ["fold0", "fold1", "fold2"]
    (places[1] / "dfdc_b4" / "fold1" / "epochs.csv").write_text("epoch\n1\n")
    before = files(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"yours.*fold1: conflicts with .*runs.*the same fold with other epochs\.csv"):
        merge_folds(folders[3:], tmp_path / "runs")
    assert files(tmp_path / "runs") == before
    assert merge_folds([], tmp_path / "runs") == []


def test_absolute_paths_of_the_same_file_are_no_difference_and_another_batch_is_told(tmp_path, caplog):
    model = get_experiment("dfdc_b4").model
    for place, number in (("mine", 0), ("yours", 1)):
        make_fold(tmp_path / place, number, model=dataclasses.replace(model, weights=f"/home/{place}/b4.pth"))
    write_anew(tmp_path / "yours" / "dfdc_b4" / "fold1" / "inputs.json", "12", "24")
    folders = [fold for place in ("mine", "yours") for fold in layout.folds_of_runs(tmp_path / place)]
    with caplog.at_level(logging.WARNING, logger="multiattn"):
        assert len(merge_folds(folders, tmp_path / "runs")) == 2
    assert "fold1: trained with a global batch of 24, " in caplog.text


@pytest.fixture
def after_files(monkeypatch) -> Callable[[int, Callable], None]:
    """Has something done after so many files were copied."""
    copy, count = shutil.copyfileobj, [0]

    def begin(number: int, action: Callable[[Path], None]) -> None:
        def copy_then(file, target, length):
            copy(file, target, length)
            count[0] += 1
            if count[0] == number:
                action(Path(file.name))

        monkeypatch.setattr(merging.shutil, "copyfileobj", copy_then)

    return begin


def kill(_: Path) -> None:
    raise Killed


def test_a_killed_merge_leaves_whole_folds_alone_and_the_same_call_goes_on(places, tmp_path, after_files):
    folders = [fold for place in places for fold in layout.folds_of_runs(place)]
    after_files(len(files(folders[0])) + 2, kill)
    with pytest.raises(Killed):
        merge_folds(folders, tmp_path / "runs")
    assert [path.name for path in layout.folds_of_runs(tmp_path / "runs")] == ["fold0"]
    assert files(tmp_path / "runs" / "dfdc_b4" / "fold0") == files(folders[0])
    assert [path.name for path in merge_folds(folders, tmp_path / "runs")] == ["fold2", "fold1"]
    assert files(tmp_path / "runs") == {name: content for place in places for name, content in files(place).items()}


def test_a_source_that_changes_meanwhile_is_refused_and_leaves_nothing(places, tmp_path, after_files):
    after_files(1, lambda path: path.with_name("inputs.json").write_bytes(b"trained on"))
    with pytest.raises(ValueError, match=r"fold0: expected copies with the same SHA-256, .*inputs\.json"):
        merge_folds(layout.folds_of_runs(places[0]), tmp_path / "runs")
    assert files(tmp_path / "runs") == {}
