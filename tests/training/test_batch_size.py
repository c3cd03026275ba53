"""The largest batch that fits: sizes that keep an update as it is, trials that run out of memory, what a run keeps."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from multiattn.__main__ import main
from multiattn.config import OptimConfig, Phase
from multiattn.experiments import get_experiment
from multiattn.training.engine import batch_size
from multiattn.training.engine.batch_size import fits_by_trial, possible_batches, with_batch
from multiattn.training.engine.ranks import Ranks
from pipeline import Pipeline

TINY = get_experiment("demo", tiny=True)
CPU = torch.device("cpu")


def experiment_of(size: int, *accumulate: int, sampling: str = "balanced"):
    """The tiny experiment in batches of `size`; several `accumulate` make phases."""
    data = dataclasses.replace(TINY.data, batch_size=size, sampling=sampling)
    optims = [OptimConfig(accumulate=number) for number in accumulate]
    phases = [Phase(name=str(number), epochs=1, optim=optim) for number, optim in enumerate(optims)]
    phases = tuple(phases) if len(phases) > 1 else ()
    return dataclasses.replace(TINY, data=data, optim=optims[0], phases=phases)


@pytest.mark.parametrize(
    ("experiment", "sizes"),
    [
        pytest.param(experiment_of(12, 1), [12, 6, 4, 3, 2], id="the paper's on one of four GPUs"),
        pytest.param(experiment_of(12, 1, sampling="paired"), [12, 6, 4, 2], id="pairs"),
        pytest.param(experiment_of(4, 3), [12, 6, 4, 3, 2], id="accumulated already"),
        pytest.param(experiment_of(4, 3, 2), [4, 2], id="phases of different updates"),
        pytest.param(experiment_of(2, 1), [2], id="the smallest"),
        pytest.param(experiment_of(9, 1, sampling="paired"), [], id="an odd one of pairs"),
    ],
)
def test_batches_make_the_updates_that_the_experiment_has(experiment, sizes):
    assert possible_batches(experiment) == sizes
    updates = [phase.optim.accumulate * experiment.data.batch_size for phase in experiment.schedule]
    for size in sizes:
        found = with_batch(experiment, size)
        assert found.data.batch_size == size
        assert [phase.optim.accumulate * size for phase in found.schedule] == updates


class Memory:
    """Stands for a GPU's memory: trial steps of more than `most` crops run out of it; `tried` are the others."""

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.tried = most, []
        real = batch_size.backward_passes

        def passes(module, step, crops, labels, **how):
            if not self.tried or self.tried[-1] != len(crops):
                self.tried.append(len(crops))
            if len(crops) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return real(module, step, crops, labels, **how)

        monkeypatch.setattr(batch_size, "backward_passes", passes)
        monkeypatch.setattr(batch_size, "_fits", fits_by_trial)


def settings_of(runs: Path, fold: str = "fold0") -> tuple[int, int]:
    kept = json.loads((runs / "demo_tiny" / fold / "experiment.json").read_text())
    return kept["data"]["batch_size"], kept["optim"]["accumulate"]


def test_what_fits_is_tried_once_written_into_the_run_and_kept(pipeline: Pipeline, tmp_path, monkeypatch, capsys):
    memory, words = Memory(3, monkeypatch), pipeline.training(tmp_path, "--data.batch-size", "auto")
    assert main(words) == 0
    assert memory.tried == [4, 2] and settings_of(tmp_path) == (2, 2)
    assert "batches of 2 crops, 2 an update" in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "batch_sizes.json").read_text()).values()
    assert entry == {"fits": 2, "fails": 4}

    cache = tmp_path / "batch_sizes.json"
    assert [fits_by_trial(with_batch(TINY, size), CPU, cache) for size in (2, 4)] == [True, False]
    assert memory.tried == [4, 2], "the cache knows"
    memory.most = 99
    cache.unlink()
    assert main([*words, "--fold", "1"]) == 0
    assert settings_of(tmp_path, "fold1") == (2, 2), "folds keep the batch of the first where larger ones fit"


def test_a_run_whose_batch_does_not_fit_another_device_says_so(pipeline: Pipeline, tmp_path, monkeypatch, capsys):
    memory, words = Memory(4, monkeypatch), pipeline.training(tmp_path, "--data.batch-size", "auto")
    assert main(words) == 0 and settings_of(tmp_path) == (4, 1)
    monkeypatch.setattr(batch_size, "device_name", lambda device: "a smaller one")
    assert main(words) == 0, "as it was begun, where that fits"
    monkeypatch.setattr(batch_size, "device_name", lambda device: "the smallest")
    memory.most = 2
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "was begun in batches of 4 crops, which do not fit 90% of the memory of the smallest" in error
    assert settings_of(tmp_path) == (4, 1)


def test_where_no_batch_fits_the_message_says_what_to_change(pipeline: Pipeline, tmp_path, monkeypatch, capsys):
    Memory(1, monkeypatch)
    assert main(pipeline.training(tmp_path, "--data.batch-size", "auto")) == 2
    assert (
        "makes updates of 4 crops and fits 90%" in (error := capsys.readouterr().err) and "--data.image-size" in error
    )
    assert not (tmp_path / "demo_tiny/fold0/experiment.json").exists()


def test_ranks_take_the_batch_that_fits_each_of_them(tmp_path, monkeypatch):
    other = iter([True, True, False, True])  # of another rank, for 12, 6, 4 and 3 crops
    monkeypatch.setattr(batch_size, "_fits", lambda experiment, *_: experiment.data.batch_size <= 4)
    monkeypatch.setattr(batch_size, "gather_objects", lambda mine, ranks: [mine, next(other)])
    found = batch_size.settle_batch(experiment_of(12, 1), tmp_path, device=CPU, ranks=Ranks(0, 2))
    assert (found.data.batch_size, found.optim.accumulate) == (3, 4)


@pytest.mark.parametrize("auxiliary", ["ril", "align-uniform"])
def test_a_trial_waits_for_no_other_rank(auxiliary, tmp_path, monkeypatch):
    """Whose memory may have run out, or who may know the batch and try nothing."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    experiment = dataclasses.replace(TINY, loss=dataclasses.replace(TINY.loss, auxiliary=auxiliary))
    collectives = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *given, **how: collectives.append(given))
    assert fits_by_trial(experiment, CPU, tmp_path / "cache.json")
    assert collectives == []


def test_another_error_of_a_trial_is_no_lack_of_memory(tmp_path, monkeypatch):
    def passes(*given, **how):
        raise RuntimeError("a bug")

    monkeypatch.setattr(batch_size, "backward_passes", passes)
    with pytest.raises(RuntimeError, match="a bug"):
        fits_by_trial(TINY, CPU, tmp_path / "cache.json")
    assert not (tmp_path / "cache.json").exists()


def test_on_a_cpu_a_step_is_counted_beside_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "fits_by_trial", None)
    memory = batch_size.step_memory(batch_size.TrainingStep(TINY, load_weights=False).to("meta"), TINY)
    counted = memory.total
    assert 1e6 < counted < 1e9
    monkeypatch.setattr(batch_size, "step_memory", lambda *_: memory)  # once will do
    for factor, fits in ((1.01, True), (0.99, False)):
        monkeypatch.setattr(batch_size, "free_memory", lambda factor=factor: factor * counted * 1.6 / 0.9)
        assert batch_size._fits(TINY, CPU, tmp_path / "cache.json") == fits
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(batch_size, "free_memory", lambda: 1.5 * counted * 1.6 / 0.9)
    assert not batch_size._fits(TINY, CPU, tmp_path / "cache.json"), "two processes share it"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["describe", "demo"], ["bench", "train", "demo"]], ids=["describe", "bench"])
def test_other_commands_want_a_number(words, capsys):
    assert main([*words, "--data.batch-size", "auto"]) == 2
    assert "expected a number, found auto" in capsys.readouterr().err
