"""What the training notebook finds, the command it runs, and what it says that the training will take."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from made_runs import files, make_fold

from multiattn.bench import plan
from multiattn.bench.plan import plan_lines, samples_an_epoch
from multiattn.config import AverageConfig, ValidationConfig, to_json
from multiattn.experiments import get_experiment
from multiattn.runtime import kaggle
from multiattn.training import notebook
from multiattn.training.data.crops import FoldCrops
from multiattn.training.notebook import find_training


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    """The part of a bundle that is read, as a data set on a Kaggle of this test's own."""
    for name in ("OUT", "RUNS", "BUDGET_HOURS"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    for name in ("input", "working"):
        monkeypatch.setattr(notebook, f"KAGGLE_{name.upper()}", tmp_path / name)
    folder = tmp_path / "input" / "datasets" / "me" / "bundle"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(to_json(get_experiment("dfdc_b4"))))
    return folder


def test_on_kaggle_folds_of_attached_versions_are_gone_on_with_in_the_working_folder(bundle, tmp_path):
    places = {"me/first": 0, "you/second": 3}
    for place, number in places.items():
        make_fold(tmp_path / "input" / "notebooks" / place / "runs", number)
    (tmp_path / "input" / "other" / "dfdc_lite" / "fold1").mkdir(parents=True)
    found = find_training(bundle, fold="all", more=["--data.num-workers", "3"])
    assert found.folder == tmp_path / "working" / "runs" / "dfdc_b4"
    assert (found.faces, found.folds) == (bundle / "faces", bundle / "folds.csv")
    assert found.experiment.data.num_workers == 3
    assert {path.name for path in found.folder.glob("fold*")} == {"fold0", "fold3"}
    there = found.folder / "fold0" / "epochs.csv"
    there.write_text("epoch\n0\n")
    before = files(found.runs)
    find_training(bundle)
    assert files(found.runs) == before, "what went on in this session is left alone"


def test_elsewhere_runs_lie_beside_the_bundle_and_variables_override_both_places(bundle, tmp_path, monkeypatch):
    (tmp_path / "input").rename(tmp_path / "drive")
    bundle = tmp_path / "drive" / "datasets" / "me" / "bundle"
    assert find_training(bundle).runs == bundle.parent / "runs"
    make_fold(tmp_path / "earlier", 1)
    monkeypatch.setenv("MULTIATTN_RUNS", str(tmp_path / "earlier"))
    monkeypatch.setenv("MULTIATTN_OUT", str(tmp_path / "out"))
    found = find_training(bundle, more=["--name", "another"])
    assert found.folder == tmp_path / "out" / "another" and not found.folder.exists(), "an experiment of another name"
    assert [path.name for path in find_training(bundle).folder.glob("fold*")] == ["fold1"]
    monkeypatch.setenv("MULTIATTN_RUNS", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none: expected runs"):
        find_training(bundle)


def test_on_colab_runs_lie_in_the_drive_of_whoever_trains_also_where_another_shares_the_bundle(bundle, tmp_path):
    drive = tmp_path / "content" / "drive"
    (drive / "MyDrive").mkdir(parents=True)
    (drive / ".shortcut-targets-by-id").mkdir()
    shared = bundle.rename(drive / ".shortcut-targets-by-id" / "bundle")
    (drive / "MyDrive" / "bundle").symlink_to(shared)
    assert (tmp_path / "input").is_dir(), "kagglehub puts data sets there"
    make_fold(drive / "MyDrive" / "runs", 2)
    found = find_training(drive / "MyDrive" / "bundle")
    assert found.runs == drive / "MyDrive" / "runs" and found.bundle == shared
    assert [path.name for path in found.folder.glob("fold*")] == ["fold2"], "where the session before ended"


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--allow-changes"], id="to go on with other GPUs"),
        pytest.param(["--data.batch-size", "auto"], id="the largest batch"),
        pytest.param(["--tiny", "--epochs", "3"], id="a trial"),
    ],
)
def test_more_may_be_what_the_documents_name(more, bundle):
    assert find_training(bundle, more=more).more == tuple(more)


@pytest.mark.parametrize(
    ("gpus", "launcher"),
    [
        pytest.param(0, [], id="no GPU"),
        pytest.param(1, [], id="P100"),
        pytest.param(2, ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"], id="T4 x2"),
    ],
)
def test_the_command_trains_in_the_bundle_over_all_gpus(gpus, launcher, bundle, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(notebook.NotebookTraining, "_show", lambda self, command: commands.append(command) or 7)
    monkeypatch.setattr(notebook.torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(notebook, "process_seconds", lambda: 900.0)
    found = find_training(bundle, fold="2", more=["--epochs", "3"])
    assert found.train() == 7
    words = ["multiattn", "train", "--config", "experiment.json", "--faces", "faces", "--folds", "folds.csv"]
    words += ["--runs", str(tmp_path / "working" / "runs"), "--fold", "2"]
    words += ["--budget-hours", "11.25", "--epochs", "3"]
    assert commands == [[sys.executable, "-m", *launcher, *words]]


def test_what_the_command_says_is_shown_with_its_errors_and_the_code_is_its_own(bundle, capfd):
    found = find_training(bundle, more=["--name", "gone"])
    code = "import multiattn, os, sys; print(os.getcwd()); print(multiattn.__file__, file=sys.stderr); sys.exit(3)"
    assert found._show([sys.executable, "-S", "-c", code]) == 3
    assert capfd.readouterr().out.splitlines() == [str(bundle), str(Path(notebook.__file__).parents[1] / "__init__.py")]


def test_hours_left_count_from_the_notebooks_start(bundle, monkeypatch):
    monkeypatch.setattr(notebook, "process_seconds", lambda: 1800.0)
    assert find_training(bundle).hours_left() == 11
    monkeypatch.setenv("MULTIATTN_BUDGET_HOURS", "2")
    assert find_training(bundle).hours_left() == 1.5
    monkeypatch.setenv("MULTIATTN_BUDGET_HOURS", "two")
    with pytest.raises(ValueError, match="BUDGET_HOURS: expected hours, found 'two'"):
        find_training(bundle).hours_left()


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param({}, ["0.00 h", "1 session of 11.5 h, 0% of", "not enough for a whole fold."], id="nothing to do"),
        pytest.param({4: 36_000}, ["1.00 h at 10.0", "1 session", "3% of the 30", "enough for fold 4."], id="one fold"),
        pytest.param(
            {0: 360_000, 1: 36_000, 2: 36_000 * 9.5},
            [
                "20.50 h at 10.0",
                "2 sessions of 11.5 h, 68% of the 30 GPU hours",
                "enough for fold 0, 1; fold 2 goes on",
            ],
            id="more than a session",
        ),
        pytest.param({0: 36e5}, ["100.00 h", "9 sessions", "333%", "not enough for a whole fold; fold 0"], id="weeks"),
    ],
)
def test_the_plan_is_samples_by_rate(samples, expected):
    said = "\n".join(plan_lines(samples, 10.0, 11.2, "2 x Tesla T4"))
    assert all(words in said for words in expected), said
    assert "measured on 2 x Tesla T4" in said and "11.20 h are left" in said
    assert (kaggle.SESSION_HOURS, kaggle.WEEKLY_GPU_HOURS) == (12, 30)


def test_a_step_that_cannot_be_measured_leaves_the_training_its_try(bundle, monkeypatch):
    def out_of_memory(*_, **__) -> float:
        raise ValueError("the side `ours` ended early")

    data = SimpleNamespace(fold_numbers=lambda _: [], require_crops_for=lambda _: None)
    monkeypatch.setattr(plan, "read_training_data", lambda *_: data)
    monkeypatch.setattr(plan, "training_rate", out_of_memory)
    assert plan.describe_plan(find_training(bundle)).endswith("could not be measured. the side `ours` ended early")


@pytest.mark.parametrize(
    ("changes", "validated"),
    [
        pytest.param({}, 1, id="at each epoch's end"),
        pytest.param({"average": AverageConfig(ema_decay=0.9, best=2)}, 3, id="two averages"),
        pytest.param({"validation": ValidationConfig(every_steps=2)}, 2, id="inside too"),
    ],
)
def test_validated_crops_count_as_the_part_of_a_sample_that_their_forward_is(changes, validated):
    """20 training crops of 2 videos a class, 2 of each visit: 8 samples, 4 batches of 2; 9 crops are validated."""
    table = pd.DataFrame({"video_id": [f"v{n // 5}" for n in range(20)], "label": [n // 5 % 2 for n in range(20)]})
    experiment = get_experiment("demo_baseline", tiny=True)
    data = dataclasses.replace(experiment.data, sampling="balanced", frames_per_video=2, batch_size=2)
    experiment = dataclasses.replace(experiment, data=data, **changes)
    crops = FoldCrops(Path(), table, pd.DataFrame({"crop": ["c"] * 9}), pd.DataFrame())
    assert samples_an_epoch(experiment, crops, 1) == pytest.approx(8 + validated * 9 / 3)
