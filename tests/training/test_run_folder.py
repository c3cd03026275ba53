"""resume.pt: whatever happens to a write, a state that can be read is there. What is of other weights goes."""

import functools
import math
import operator
import os
import re
import resource
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multiattn.config import Experiment, ModelConfig, from_json, run_experiment, to_json
from multiattn.config.model import HALF
from multiattn.runtime.files import write_json
from multiattn.runtime.layout import BEST_WEIGHTS, EXPERIMENT_FILE, LAST_WEIGHTS, PREVIOUS_STATE_FILE, STATE_FILE
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.training.engine import run_folder
from multiattn.training.engine.run_folder import RunFolder, load_state, read_experiment, save_state


def state(number: int) -> dict:
    return {"number": number, "weights": torch.full((1000,), float(number)), "names": ["a", "b"], "none": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """States 1 and 2, the second one in force."""
    save_state(tmp_path, state(1))
    save_state(tmp_path, state(2))
    return tmp_path


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path) is None


def test_the_latest_state_comes_back_and_the_one_before_it_is_kept(folder):
    found = load_state(folder)
    assert found["number"] == 2 and torch.equal(found["weights"], state(2)["weights"])
    assert sorted(path.name for path in folder.iterdir()) == [PREVIOUS_STATE_FILE, STATE_FILE]


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def in_directory(field: int, value: int) -> Callable[[bytes], bytes]:
    """Replace one byte of the first entry in the archive's directory."""

    def damage(content: bytes) -> bytes:
        place = content.index(b"PK\1\2") + field
        return content[:place] + bytes([value]) + content[place + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(flip, id="a bit flipped"),
        pytest.param(in_directory(8, 9), id="called encrypted"),
        pytest.param(in_directory(10, 8), id="called compressed"),
        pytest.param(in_directory(46, 0xFF), id="a name that is not UTF-8"),
        pytest.param(in_directory(45, 0xFF), id="a place beyond the file"),
        pytest.param(lambda _: b"not a state", id="overwritten"),
    ],
)
def test_a_damaged_state_gives_way_to_the_one_before_it_and_two_are_an_error(folder, damage, caplog):
    current, previous = folder / STATE_FILE, folder / PREVIOUS_STATE_FILE
    current.write_bytes(damage(current.read_bytes()))
    assert load_state(folder)["number"] == 1
    assert "damaged" in caplog.text and "the state before it" in caplog.text
    previous.write_bytes(damage(previous.read_bytes()))
    with pytest.raises(ValueError, match=rf"{STATE_FILE}: damaged .*{PREVIOUS_STATE_FILE}: damaged .*Delete both"):
        load_state(folder)


def no_links(source: Path, link: Path) -> None:
    raise PermissionError(f"no links here: {source} -> {link}")


@pytest.mark.parametrize("links", [True, False], ids=["links", "a disk without links"])
def test_a_reader_finds_a_whole_state_before_and_after_every_rename(folder, monkeypatch, links):
    """A reader between the two renames met a name without a file."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    seen, replace = [], Path.replace

    def observed(path: Path, target: Path) -> Path:
        seen.append((load_state(folder)["number"], (folder / STATE_FILE).is_file()))
        answer = replace(path, target)
        seen.append((load_state(folder)["number"], (folder / STATE_FILE).is_file()))
        return answer

    monkeypatch.setattr(Path, "replace", observed)
    save_state(folder, state(3))
    assert [number for number, _ in seen] == [2, 2, 2, 3]
    assert all(there for _, there in seen) == links
    assert sorted(path.name for path in folder.iterdir()) == [PREVIOUS_STATE_FILE, STATE_FILE]


@pytest.mark.parametrize("links", [True, False], ids=["links", "a disk without links"])
def test_a_kill_between_the_two_renames_leaves_the_state_before(folder, links):
    if links:
        (folder / PREVIOUS_STATE_FILE).unlink()
        os.link(folder / STATE_FILE, folder / PREVIOUS_STATE_FILE)
        (folder / f".{PREVIOUS_STATE_FILE}.link").write_text("of a write killed even earlier")
    else:
        (folder / STATE_FILE).rename(folder / PREVIOUS_STATE_FILE)
    assert load_state(folder)["number"] == 2
    save_state(folder, state(3))
    assert load_state(folder)["number"] == 3
    assert sorted(path.name for path in folder.iterdir()) == [PREVIOUS_STATE_FILE, STATE_FILE]
    (folder / STATE_FILE).write_bytes(flip((folder / STATE_FILE).read_bytes()))
    assert load_state(folder)["number"] == 2


def test_a_state_that_may_not_be_opened_is_not_called_damaged(folder, monkeypatch):
    """Its message would say: delete it."""

    def denied(path: Path, *words: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PermissionError, match=STATE_FILE):
        load_state(folder)


def test_a_write_that_cannot_be_read_back_changes_nothing(folder, monkeypatch):
    monkeypatch.setattr(run_folder, "_fault", lambda file: "a bad sector")
    with pytest.raises(OSError, match="cannot be read back"):
        save_state(folder, state(3))
    monkeypatch.undo()
    assert load_state(folder)["number"] == 2
    assert len(list(folder.iterdir())) == 2, "no temporary file is left"


def test_a_full_disk_changes_nothing(folder):
    """A limit on the size of files refuses what a full disk refuses, in the middle of the write."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            save_state(folder, {"number": 3, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_state(folder)["number"] == 2
    assert len(list(folder.iterdir())) == 2


def test_a_pickled_object_is_not_run(folder):
    torch.save({"number": 4, "object": types.SimpleNamespace()}, folder / STATE_FILE)
    assert load_state(folder)["number"] == 1


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(torch.zeros(3), "expected a saved state, found a Tensor", id="a bare tensor"),
        pytest.param([1, 2], "expected a saved state, found a list", id="a list"),
        pytest.param({"step": {"w": torch.tensor([1.0, math.nan])}}, r"step\.w is not finite", id="weights"),
        pytest.param({"average": {"w": torch.tensor(math.inf)}}, r"average\.w is not finite", id="an average"),
        pytest.param(
            {"optimizer": {"state": {0: {"exp_avg": torch.tensor([math.nan])}}}},
            r"optimizer\.state\.0\.exp_avg is not finite",
            id="an optimiser",
        ),
    ],
)
def test_a_state_that_nothing_can_be_gone_on_from_gives_way_to_the_one_before_it(folder, content, fault, caplog):
    torch.save(content, folder / STATE_FILE)
    assert load_state(folder)["number"] == 1
    assert re.search(fault, caplog.text)


@pytest.mark.parametrize("kind", [torch.int64, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("place", ["weights", "step.w", "step.count", "optimizer.state.0.exp_avg", "random.0.torch"])
def test_numbers_of_another_kind_than_were_saved_are_damage(tmp_path, place, kind, caplog):
    """Restoring converts them in silence, so that weights cut to whole numbers trained on."""

    def nested(number: int) -> dict:
        moments = {"state": {0: {"exp_avg": torch.ones(3)}}}
        generators = [{"torch": torch.zeros(4, dtype=torch.uint8)}]
        return state(number) | {
            "random": generators,
            "step": {"w": torch.ones(3), "count": torch.tensor(5)},
            "optimizer": moments,
        }

    save_state(tmp_path, nested(1))
    save_state(tmp_path, nested(2))
    found = torch.load(tmp_path / STATE_FILE, weights_only=True)
    *above, key = (int(word) if word.isdigit() else word for word in place.split("."))
    holder = functools.reduce(operator.getitem, above, found)
    same = holder[key].dtype == kind
    holder[key] = holder[key].to(kind)
    torch.save(found, tmp_path / STATE_FILE)
    assert load_state(tmp_path)["number"] == (2 if same else 1)
    assert same or f"damaged ({place} holds numbers of another kind than were saved)" in caplog.text


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
PLAIN = ModelConfig(network="baseline", backbone="resnet18")


def write_run(folder: Path, model: dict, weights: str) -> None:
    folder.mkdir(parents=True)
    write_json(folder / EXPERIMENT_FILE, {"name": "x", "model": model})
    (folder / weights).touch()


OLD = {name: value for name, value in to_json(PLAIN).items() if not name.startswith("input_")}
NEW = OLD | {"input_mean": list(OWN[0]), "input_std": list(OWN[1])}


@pytest.mark.parametrize(
    ("begun", "start", "asked", "expected"),
    [
        pytest.param(None, None, None, IMAGENET, id="the backbone's own"),
        pytest.param(None, None, OWN, OWN, id="as asked"),
        pytest.param(OLD, None, None, (HALF, HALF), id="a run of before goes on with 0.5"),
        pytest.param(NEW, None, None, OWN, id="a run goes on with its numbers"),
        pytest.param(NEW, OLD, None, OWN, id="its own before the start's"),
        pytest.param(OLD, None, IMAGENET, IMAGENET, id="what is asked is compared later"),
        pytest.param(None, OLD, None, (HALF, HALF), id="a start of before"),
        pytest.param(None, NEW, None, OWN, id="a start's numbers"),
        pytest.param(None, NEW | {"backbone": "resnet18.a1_in1k"}, None, OWN, id="of other weights of the backbone"),
        pytest.param(None, NEW | {"backbone": "test_vit"}, None, IMAGENET, id="not of another backbone"),
    ],
)
def test_a_run_keeps_the_numbers_its_input_is_normalised_by(begun, start, asked, expected, tmp_path):
    if begun:
        write_run(tmp_path / "runs/x/fold0", begun, LAST_WEIGHTS)
    if start:
        write_run(tmp_path / "start/fold0", start, BEST_WEIGHTS)
    mean, std = asked or (None, None)
    model = ModelConfig(**(vars(PLAIN) | {"input_mean": mean, "input_std": std}))
    experiment = Experiment(name="x", model=model, start_from=str(tmp_path / "start") if start else None)
    settled = RunFolder(tmp_path / "runs/x/fold0", 0).settle(experiment)
    assert (settled.model.input_mean, settled.model.input_std) == expected
    written = from_json(Experiment, to_json(settled), source="experiment.json")
    assert written == settled, "the run keeps them"


def test_weights_without_the_settings_of_their_run_need_the_numbers(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "alone.safetensors")
    experiment = Experiment(name="x", model=PLAIN, start_from=str(tmp_path / "alone.safetensors"))
    run = RunFolder(tmp_path / "runs/x/fold0", 0)
    with pytest.raises(ValueError, match=r"no experiment\.json beside it .* --model\.input-mean"):
        run.settle(experiment)
    told = replace(experiment, model=replace(PLAIN, input_mean=HALF, input_std=HALF))
    assert run.settle(told) == told
    paper = replace(experiment, model=replace(PLAIN, backbone="tf_efficientnet_b4.ap_in1k"))
    assert run.settle(paper).model.input_mean == HALF


def test_a_file_by_hand_has_the_defaults_of_today():
    by_hand = {"name": "x", "model": {"backbone": "resnet18"}}
    assert from_json(Experiment, by_hand).model.input_mean is None
    assert run_experiment(by_hand, source="experiment.json").model.input_std == HALF
    with pytest.raises(ValueError, match="input_std"):
        run_experiment({"name": "x", "model": {"input_std": list(OWN[1])}}, source="experiment.json")


def test_an_experiment_file_of_before_means_half(tmp_path):
    write_run(tmp_path / "fold0", OLD, BEST_WEIGHTS)
    found = read_experiment(tmp_path / "fold0").model
    assert (found.input_mean, found.input_std) == (HALF, HALF)
    assert ModelConfig().input_mean is None, "a new experiment asks timm"


def test_better_weights_take_away_what_was_measured_with_the_former_ones(tmp_path):
    for name in ("oof_flip.parquet", "oof_flip+scales.parquet", "distance.safetensors", "oof_last.parquet"):
        (tmp_path / name).touch()
    write_json(tmp_path / EXPERIMENT_FILE, to_json(Experiment(name="x")))
    record = {
        "epoch": 1,
        "step": 2,
        "candidate": "last",
        "validation_log_loss": 0.5,
        "validation_balanced_log_loss": 0.5,
    }
    RunFolder(tmp_path, 0).save_best(torch.nn.Linear(2, 2), FRAME_PREDICTIONS.empty(), record)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {EXPERIMENT_FILE, BEST_WEIGHTS, "oof.parquet", "oof_last.parquet"}
