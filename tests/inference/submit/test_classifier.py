"""The classifier: every crop by every model whatever the batches, and no error that costs another video."""

import dataclasses
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from multiattn.inference.replicas import Replicas
from multiattn.inference.runs import find_models
from multiattn.inference.submit import classifier
from multiattn.inference.submit.classifier import (
    Classified,
    Classifier,
    LoadedModels,
    Replica,
    crops_a_batch,
    load_replicas,
    num_threads,
)
from multiattn.inference.submit.extraction import Extracted, Work
from multiattn.model import precision
from multiattn.model.precision import TRIAL_CROPS, Trial
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.extraction.engine import is_device_failure, is_out_of_memory
from multiattn.video.extraction.extract import EncodedCrops, ExtractionSettings, VideoTask
from multiattn.video.extraction.scan import FaceCrop

CPU = torch.device("cpu")
SETTINGS = ExtractionSettings(recipe=CropRecipe(num_frames=4, size=64))


def grey(level: int, size: int = 64) -> bytes:
    return cv2.imencode(".jpg", np.full((size, size, 3), level, np.uint8))[1].tobytes()


def video(name: str, *levels: int | bytes, models: int = 3) -> Extracted:
    """A video with a crop of each grey level, or of the bytes given."""
    jpegs = [grey(level) if isinstance(level, int) else level for level in levels]
    crops = [FaceCrop(i, 0.0, 0, np.zeros(4), 1.0, np.zeros((5, 2)), jpeg) for i, jpeg in enumerate(jpegs)]
    work = Work(VideoTask(video_id=name, path=Path(name)), SETTINGS, tuple(range(models)))
    return Extracted(work, EncodedCrops(name, "ok" if crops else "no_face", "", 4, crops, 1.0, 1.0))


@dataclass
class Arithmetic:
    """Stands for networks: model k says k + grey / 100 of a crop, so every logit tells where it came from."""

    sizes: tuple[int, ...] = (64, 32, 64)
    precision: str = "fp32"
    most_crops: int = 1000
    """Above this memory runs out."""
    most_on_cpu: int = 1000
    bad_level: int = -1
    """A grey level of which no logit is finite, in half precision at least."""
    bad_exactly: bool = False
    breaks_at: int = -1
    """A grey level that raises."""
    seconds: float = 0.0
    """Time a batch takes a model."""
    together: threading.Barrier | None = None
    """Where devices wait for each other at each batch, so that they are equally fast, whatever the machine's load."""
    failure: Exception | None = None
    """Raised by each call after the first `lives`, but on the CPU."""
    lives: int = 0

    def __post_init__(self) -> None:
        self.device = CPU
        self.distances = [None] * len(self.sizes)
        self.models = [SimpleNamespace(name=f"m/fold{number}") for number in range(len(self.sizes))]
        self.batches: list[int] = []
        self.lock = threading.Lock()

    def logits(
        self, number: int, crops: torch.Tensor, *, on_cpu: bool = False, exact: bool = False, meter: object = None
    ) -> np.ndarray:
        with self.lock:
            self.batches.append(len(crops))
            failed = self.failure is not None and len(self.batches) > self.lives
        time.sleep(self.seconds)
        if self.together is not None:
            self.together.wait(timeout=30)
        if failed and not on_cpu:
            raise self.failure
        assert crops.shape[1:] == (self.sizes[number], self.sizes[number], 3)
        if len(crops) > (self.most_on_cpu if on_cpu else self.most_crops):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        levels = crops.double().mean(dim=(1, 2, 3)).round()
        if (levels == self.breaks_at).any():
            raise RuntimeError("a layer failed")
        values = number + levels / 100
        if self.bad_exactly or not exact:
            values[levels == self.bad_level] = float("nan")
        return values.numpy()


def classify(
    models: Arithmetic | list[Arithmetic], *videos: Extracted, threads: int = 1, batch: int = 4
) -> dict[str, Classified]:
    """Several stand for as many devices."""
    of_devices = models if isinstance(models, list) else [models]
    following = iter(of_devices)
    replicas = Replicas([CPU] * len(of_devices), lambda _: Replica(next(following), batch))
    source, done = queue.Queue(), queue.SimpleQueue()
    for each in (*videos, None):
        source.put(each)
    classifier = Classifier(replicas, source, done.put, done.put, threads=threads * len(of_devices))
    found = [done.get(timeout=20) for _ in videos]
    classifier.stop(10)
    assert classifier.finished and done.empty(), "each video is done once"
    assert not [each for each in found if isinstance(each, BaseException)], found
    return {each.extracted.work.task.video_id: each for each in found}


def expected(*levels: int, models: int = 3) -> np.ndarray:
    return np.arange(models)[:, None] + np.array(levels) / 100


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_every_crop_gets_the_logits_of_every_model_whatever_the_batches(batch, threads):
    levels = {"a": [10, 20, 30], "b": [40], "c": [50, 60, 70, 80, 90], "d": [], "e": [100, 110]}
    videos = [video(name, *values) for name, values in levels.items()]
    found = classify(Arithmetic(), *videos, threads=threads, batch=batch)
    assert {each.error for each in found.values()} == {""} and found["d"].logits.size == 0
    for name in "abce":
        np.testing.assert_allclose(found[name].logits, expected(*levels[name]), atol=1e-12)


@pytest.mark.parametrize(
    ("device", "sizes", "crops"),
    [
        pytest.param("cpu", [64, 380], 4, id="the largest crop decides"),
        pytest.param("cpu", [112], 16, id="small crops"),
        pytest.param("cpu", [1024], 1, id="one is the least"),
        pytest.param("cuda", [380], 64, id="a GPU"),
    ],
)
def test_a_batch_is_as_large_as_its_crops_allow(device, sizes, crops):
    assert crops_a_batch(torch.device(device), sizes) == crops


def test_batches_are_filled_across_videos():
    assert classify(Arithmetic()) == {}, "no videos end at once"
    models = Arithmetic(sizes=(64,))
    classify(models, *(video(str(number), 1, 2, 3, models=1) for number in range(4)), batch=4)
    assert models.batches == [4, 4, 4]


def test_a_video_that_fewer_models_predict_shares_batches_with_others():
    found = classify(Arithmetic(), video("all", 10, 20), video("one", 30, 40, models=1))
    np.testing.assert_allclose(found["all"].logits, expected(10, 20))
    np.testing.assert_allclose(found["one"].logits, expected(30, 40, models=1))


def test_crops_of_two_recipes_share_no_batch_and_meet_only_their_models():
    models = Arithmetic(sizes=(64, 96))
    videos = []
    for name in "abc":
        for recipe, size in enumerate(models.sizes):
            made = video(f"{name}{recipe}", *(grey(level, size) for level in (10, 20, 30)))
            work = dataclasses.replace(made.work, models=(recipe,), recipe=recipe)
            videos.append(dataclasses.replace(made, work=work))
    found = classify(models, *videos)
    for name, each in found.items():
        np.testing.assert_allclose(each.logits, int(name[1]) + np.array([[0.1, 0.2, 0.3]]))
    assert sorted(models.batches) == [1, 1, 4, 4, 4, 4]


def test_when_memory_runs_out_batches_are_halved_until_they_fit(caplog):
    models = Arithmetic(most_crops=2)
    found = classify(models, video("a", *range(10, 26)), batch=16)
    np.testing.assert_allclose(found["a"].logits, expected(*range(10, 26)))
    assert "memory ran out" in caplog.text
    assert models.batches[-1] <= 2, "what did not fit once is not tried each time"


@pytest.mark.gpu
def test_when_a_gpus_memory_runs_out_batches_are_halved_and_answers_stay(pipeline, caplog):
    models = LoadedModels(find_models(pipeline.experiment), torch.device("cuda"), "fp32")
    clip = video("a", *(level % 250 for level in range(1024)), models=len(models.models))
    models.logits(0, torch.zeros(1, 64, 64, 3, dtype=torch.uint8))  # CUDA's libraries have what they need
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / whole)
        found = classify(models, clip, batch=1024)["a"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.error == "" and "memory ran out" in caplog.text
    on_cpu = LoadedModels(models.models, torch.device("cpu"), "fp32")
    np.testing.assert_allclose(found.logits, classify(on_cpu, clip, batch=64)["a"].logits, atol=1e-2)


def test_when_not_even_one_crop_fits_it_goes_through_the_cpu_or_is_given_up_with_the_reason():
    found = classify(Arithmetic(most_crops=0), video("a", 10, 20, 30))
    np.testing.assert_allclose(found["a"].logits, expected(10, 20, 30))
    found = classify(Arithmetic(most_crops=0, most_on_cpu=0), video("a", 10, 20), video("b", 30))
    assert all("on the CPU too: OutOfMemoryError" in each.error for each in found.values())
    assert all(each.logits.size == 0 for each in found.values())


@pytest.mark.parametrize(
    ("models", "bad", "reason"),
    [
        pytest.param(Arithmetic(breaks_at=77), 77, "RuntimeError: a layer failed", id="an error of a network"),
        pytest.param(Arithmetic(bad_level=77), 77, "not finite", id="logits that are not finite"),
        pytest.param(Arithmetic(), b"no jpeg", "not a readable image", id="a crop that is none"),
        pytest.param(Arithmetic(), grey(77, 16), "at least", id="a crop that is too small"),
    ],
)
def test_what_is_wrong_with_one_video_does_not_touch_those_of_its_batch(models, bad, reason):
    found = classify(models, video("a", 10, 20), video("bad", 30, bad, 40), video("c", 50, 60), batch=100)
    assert reason in found["bad"].error and found["bad"].logits.size == 0
    np.testing.assert_allclose(found["a"].logits, expected(10, 20))
    np.testing.assert_allclose(found["c"].logits, expected(50, 60))


LEVELS = [list(range(start, start + 7)) for start in range(0, 224, 7)]  # 56 batches of 4
ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("threads", [1, 2])
def test_two_devices_share_the_crops_evenly_and_answer_as_one(threads):
    videos = [video(str(number), *levels) for number, levels in enumerate(LEVELS)]
    together = threading.Barrier(2 * threads)
    devices = [Arithmetic(together=together), Arithmetic(together=together)]
    both, one = classify(devices, *videos, threads=threads), classify(Arithmetic(), *videos)
    for name, alone in one.items():
        np.testing.assert_array_equal(both[name].logits, alone.logits)
    shares = [sum(each.batches) for each in devices]
    assert sum(shares) == 3 * 224 and min(shares) >= 0.4 * sum(shares), shares


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("failing", "lives"),
    [
        pytest.param([ILLEGAL, None], 0, id="at once"),
        pytest.param([None, ILLEGAL], 9, id="midway"),
        pytest.param([FULL, None], 9, id="no memory for one crop"),
        pytest.param([ILLEGAL, FULL], 9, id="both, so that the CPU is left"),
        pytest.param([ILLEGAL], 9, id="the only one"),
    ],
)
def test_a_device_that_fails_leaves_its_crops_to_the_other(failing, lives, threads, caplog):
    videos = [video(str(number), *levels) for number, levels in enumerate(LEVELS)]
    devices = [Arithmetic(seconds=0.002, failure=failure, lives=lives) for failure in failing]
    found = classify(devices, *videos, threads=threads)
    for number, levels in enumerate(LEVELS):
        assert found[str(number)].error == ""
        np.testing.assert_allclose(found[str(number)].logits, expected(*levels))
    assert ("left out from here on" in caplog.text) == (len(failing) > 1)
    if None in failing:
        broken = devices[1 - failing.index(None)]
        assert len(broken.batches) <= lives + threads * (1 if ILLEGAL in failing else 4), "it is not asked again"


def test_a_device_without_room_for_the_networks_is_left_out(caplog):
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]

    def load(device: torch.device) -> torch.device:
        if device in full:
            raise FULL
        return device

    full = devices[:1]
    assert list(Replicas(devices, load)) == devices[1:] and "cuda:0 is left out" in caplog.text
    full = devices
    with pytest.raises(torch.OutOfMemoryError):
        Replicas(devices, load)


def test_threads_follow_the_devices():
    assert num_threads([CPU], 2) == 2 and num_threads([CPU], 64) == 8 and num_threads([CPU, CPU], 1) == 2
    assert num_threads([torch.device("cuda", number) for number in range(2)], 4) == 4


def test_each_device_has_networks_of_its_own_with_equal_answers(pipeline):
    models = find_models(pipeline.experiment)
    first, second = (replica.models for replica in load_replicas(models, [CPU, CPU], "fp32"))
    crops = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    assert first is not second
    np.testing.assert_array_equal(first.logits(0, crops), second.logits(0, crops))


@pytest.mark.parametrize(("change", "name"), [(1e-3, "bf16"), (1e-2, "fp32")])
def test_auto_tries_each_model_on_its_first_crops(pipeline, monkeypatch, change, name):
    tried: list[int] = []

    def measured(_: torch.nn.Module, crops: torch.Tensor) -> Trial:
        tried.append(len(crops))
        return Trial(seconds_fp32=0.2, seconds_bf16=0.1, change=change)

    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(classifier, "try_prediction", measured)
    models = find_models(pipeline.experiment)
    open_choice, fixed = LoadedModels(models, CPU, "auto"), LoadedModels(models, CPU, name)
    crops = torch.randint(0, 256, (TRIAL_CROPS + 1, 64, 64, 3), dtype=torch.uint8)
    for number in (0, 1, 0):
        np.testing.assert_array_equal(open_choice.logits(number, crops), fixed.logits(number, crops))
    exactly = LoadedModels(models, CPU, "fp32").logits(0, crops)
    np.testing.assert_array_equal(open_choice.logits(0, crops, exact=True), exactly)
    assert tried == [TRIAL_CROPS] * len(models)


def test_half_precision_that_overflows_is_repeated_in_float32():
    found = classify(Arithmetic(precision="bf16", bad_level=77), video("a", 10, 77))
    np.testing.assert_allclose(found["a"].logits, expected(10, 77))
    found = classify(Arithmetic(precision="bf16", bad_level=77, bad_exactly=True), video("a", 10, 77))
    assert "not finite" in found["a"].error


def test_a_video_that_failed_on_its_way_is_passed_on():
    work = video("a").work
    found = classify(Arithmetic(), Extracted(work, None, "its worker process died", "unreadable"), video("b", 10))
    assert found["a"].extracted.message == "its worker process died"
    np.testing.assert_allclose(found["b"].logits, expected(10))


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_a_shortage_of_memory_is_told_from_other_errors(error, is_memory):
    assert is_out_of_memory(error) is is_memory and not is_device_failure(error)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value), "torch's own words on a CPU"


@pytest.mark.parametrize(
    ("error", "is_failure"),
    [
        (ILLEGAL, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("Expected all tensors to be on the same device, found cuda:0 and cpu!"), False),
        (NotImplementedError("Could not run 'aten::x' with arguments from the 'CUDA' backend."), False),
        (ValueError("CUDA error: of another kind"), False),
    ],
    ids=str,
)
def test_a_gpu_that_failed_is_told_from_other_errors(error, is_failure):
    assert is_device_failure(error) is is_failure
