"""Curves for Weights & Biases, by a stand-in for its module: the real one was tried by hand."""

import json
import sys
from types import SimpleNamespace

import pytest
from made_runs import make_fold

from multiattn.__main__ import main
from multiattn.training.engine.run_folder import RunFolder
from multiattn.training.engine.tracking import Tracker


class WandbError(Exception):
    """`wandb.errors.Error`."""


class Wandb:
    """The part of wandb that is used: what it was given, and a service that may be out of reach."""

    __spec__ = "installed"

    def __init__(self, *, is_reached: bool = True) -> None:
        self.is_reached, self.given, self.points, self.ends = is_reached, [], [], []
        self.errors, self.Settings = SimpleNamespace(Error=WandbError), SimpleNamespace

    def init(self, mode: str = "online", **given: object) -> "Wandb":
        self.given.append({"mode": mode, **given})
        if mode == "online" and not self.is_reached:
            raise WandbError("no route\nto the service")
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "update")

    def log(self, figures: dict[str, float]) -> None:
        self.points.append(figures)

    def finish(self) -> None:
        self.ends.append("finish")

    def teardown(self) -> None:
        self.ends.append("teardown")


@pytest.mark.parametrize("is_reached", [True, False])
def test_a_continued_fold_goes_on_with_its_run_offline_where_the_service_is_not_reached(
    is_reached, tmp_path, monkeypatch, caplog
):
    wandb, folder = Wandb(is_reached=is_reached), make_fold(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for update in (5, 3):  # the second goes on from a state saved before the first ended
        tracker = Tracker(RunFolder(folder, 1))
        tracker.log({"train/loss": 0.5}, update)
        tracker.close()
    assert len({one["id"] for one in wandb.given}) == 1 and {one["resume"] for one in wandb.given} == {"allow"}
    assert wandb.given[0]["id"] == json.loads((folder / "tracker.json").read_text())["wandb"]
    assert [one["mode"] for one in wandb.given] == (["online"] * 2 if is_reached else ["online", "offline"] * 2)
    assert wandb.ends == (["finish"] * 2 if is_reached else ["teardown", "finish"] * 2)
    assert wandb.points == [{"train/loss": 0.5, "update": update} for update in (5, 3)]
    assert {(one["group"], one["name"]) for one in wandb.given} == {("dfdc_b4", "dfdc_b4/fold1")}
    assert ("recorded offline, for wandb says: no route. `wandb sync` sends it" in caplog.text) is not is_reached


@pytest.mark.parametrize("broken", ["init", "define_metric", "log", "finish"])
def test_an_error_of_its_service_ends_the_curves_and_not_the_training(broken, tmp_path, monkeypatch, caplog):
    wandb, asked = Wandb(), []

    def fail(*_: object, **__: object) -> None:
        asked.append(broken)
        raise BrokenPipeError("the service is gone\nstack")

    monkeypatch.setattr(wandb, broken, fail)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = Tracker(RunFolder(make_fold(tmp_path, 1), 1))
    for update in (1, 2):
        tracker.log({"train/loss": 0.5}, update)
    tracker.close()
    assert asked == [broken] and len(wandb.points) == (2 if broken == "finish" else 0)
    assert caplog.text.count("dfdc_b4/fold1: its curves end here for Weights & Biases: the service is gone\n") == 1


def test_without_wandb_the_extra_is_named_at_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as ended:
        main(["train", "demo", "--faces", "none", "--folds", "none", "--track", "wandb"])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "--track wandb: expected the package wandb, found no wandb. Run: pip" in said


def test_a_training_records_the_curves_of_tensorboard(pipeline, tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert main([*pipeline.training(tmp_path), "--fold", "0", "--track", "wandb"]) == 0
    names = {name for point in wandb.points for name in point}
    assert {"train/loss", "train/learning_rate", "validation/validation_log_loss", "update"} <= names
    assert wandb.ends == ["finish"] and wandb.points[-1]["update"] >= wandb.points[0]["update"] > 0
