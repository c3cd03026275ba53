"""`bench data`: what is measured, and how the table reads."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multiattn.bench import data as bench_data
from multiattn.bench.data import (
    DataBench,
    PlainCrops,
    _drawn_faces,
    _packed,
    _plain_loader,
    _read_all,
    _some_faces,
    _Turns,
    measure,
)
from multiattn.config import DataConfig
from multiattn.runtime.crop_files import read_stored
from multiattn.tables import FACES, LANDMARKS, VIDEOS
from multiattn.training.data.augment.degrade import DEGRADATIONS
from multiattn.training.data.crops import training_loader
from multiattn.video.crops import images
from multiattn.video.crops.images import read_crop


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_data, "DRAWN_FRAMES", 6)
        return _drawn_faces(tmp_path_factory.mktemp("drawn"))


@pytest.mark.slow
def test_the_table_names_every_side_and_what_it_must_feed(monkeypatch):
    monkeypatch.setattr(bench_data, "TURNS", 1)
    monkeypatch.setattr(bench_data, "DRAWN_FRAMES", 2)
    bench = DataBench(
        experiment="demo", presets=("none", "strong"), num_workers=0, image_size=95, seconds=0.02, training_rate=1e6
    )
    lines = measure(bench)
    names = ["plain dataset", "none", "strong", "none, --sbi 0.5", "none, cached in memory", "none, cached on disk"]
    rows = [line.rsplit(maxsplit=4) for line in lines if line.startswith(tuple(names))]
    assert [row[0] for row in rows] == names
    for _, rate, each, beside, workers in rows:
        assert 0 < int(rate) == int(each)
        assert float(beside.removesuffix("x")) > 0
        assert int(workers) == pytest.approx(1e6 / int(rate), rel=0.1)
    assert rows[0][-2] == "1.00x"
    assert "16 crops of 380 pixels" in lines[0]
    assert "read at 95 in batches of 16 by 0 workers" in lines[0]
    assert not any("degradations" in line for line in lines), "none of these presets has any"
    assert lines[-1] == "demo takes 1000000.0 crops/s (given)"


def test_each_degradation_of_wild_has_its_cost(drawn, monkeypatch):
    monkeypatch.setattr(bench_data, "DEGRADED_CROPS", 3)
    line, _ = bench_data._degradations(drawn, DataConfig(image_size=64))
    assert line.startswith("degradations of wild, ms for a crop of 380 pixels: ")
    costs = dict(cost.split() for cost in line.split(": ")[1].split(", "))
    assert costs.keys() == DEGRADATIONS.keys()
    milliseconds = [float(cost) for cost in costs.values()]
    assert milliseconds == sorted(milliseconds, reverse=True) and milliseconds[0] > 0


class CountedLoader:
    """Two workers that make three batches of four ahead, in epochs of five; counts what is taken."""

    num_workers, prefetch_factor, taken = 2, 3, 0

    def __init__(self) -> None:
        self.batch_sampler = SimpleNamespace(epoch=None)

    def __iter__(self):
        for _ in range(5):
            self.taken += 1
            yield torch.zeros(4, 2, 2, 3), torch.zeros(4)


def test_batches_that_lay_ready_are_not_counted():
    loader = CountedLoader()
    turns = _Turns(loader)
    assert turns.run(crops=5) > 0
    assert loader.taken == 2 * 3 + 1 + 2, "those that lay ready, one that was begun, two that are timed"
    assert loader.batch_sampler.epoch == 1


def test_drawn_faces_are_like_stored_crops(drawn):
    table = drawn.training
    assert len(table) == 48
    assert table.groupby("video_id")["label"].nunique().max() == 1
    assert table["label"].mean() == 0.5
    kilobytes = [(drawn.folder / name).stat().st_size / 1000 for name in table["crop"]]
    assert 30 < np.mean(kilobytes) < 45
    crop = read_crop(drawn.folder / table["crop"].iloc[0], 380)
    assert crop.shape == (380, 380, 3)
    assert len(FACES.read(drawn.folder / "faces.parquet")) == 48


def test_the_plain_dataset_is_ours_normalised(drawn):
    """Within the rounding of two JPEG decoders."""
    plain, label = PlainCrops(drawn, 380)[9]
    assert (tuple(plain.shape), plain.dtype, label) == ((3, 380, 380), torch.float32, 1)
    mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    crop = torch.from_numpy(read_crop(drawn.folder / drawn.training["crop"].iloc[9], 380)).permute(2, 0, 1)
    assert ((plain * deviation + mean) * 255 - crop).abs().max() < 3
    config = DataConfig(image_size=380, batch_size=6, num_workers=0, augmentation="none")
    loaders = (training_loader(drawn, config, seed=0, rank=0, world_size=1), _plain_loader(drawn, config))
    assert [len(part) for loader in loaders for part in next(iter(loader))] == [6] * 4


def test_crops_of_a_faces_folder_are_copied_so_that_nothing_is_written_there(faces, tmp_path):
    before = sorted(faces.rglob("*"))
    crops = _some_faces(faces, tmp_path, 6)
    assert crops.training["label"].tolist().count(0) == crops.training["label"].tolist().count(1) == 3
    assert crops.training["video_id"].nunique() == 6, "spread over the folder"
    for name in crops.training["crop"]:
        assert (tmp_path / name).read_bytes() == (faces / name).read_bytes()
    config = DataConfig(image_size=64, batch_size=4, num_workers=0, augmentation="none", cache="disk")
    next(iter(training_loader(crops, config, seed=0, rank=0, world_size=1)))
    assert sorted(faces.rglob("*")) == before


def test_self_blending_is_left_out_where_no_real_crop_has_landmarks(faces, monkeypatch):
    monkeypatch.setattr(bench_data, "TURNS", 1)
    monkeypatch.setattr(bench_data, "MAX_CROPS", 4)
    file = faces / "faces.parquet"
    FACES.write(FACES.read(file).assign(**dict.fromkeys(LANDMARKS, 0.0)), file)
    options = {"presets": (), "num_workers": 0, "image_size": 32, "seconds": 0.01, "training_rate": 1.0}
    lines = measure(DataBench(experiment="demo", faces=faces, **options))
    assert [line[:11] for line in lines if line.startswith("none")] == ["none, cache"] * 2


def test_the_plain_dataset_is_refused_where_its_batches_would_not_fit_either(drawn, monkeypatch):
    usage = images.shutil.disk_usage("/")._replace(free=64 * 2**20)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"--num-workers 2: the plain data set's .* take 0\.12 GB .* --shm-size"):
        _plain_loader(drawn, DataConfig(image_size=380, batch_size=12, num_workers=2))


def test_files_and_shards_that_are_measured_hold_the_same_crops_each_read_once_a_turn(faces, tmp_path):
    (tmp_path / "loose").mkdir()
    crops = _some_faces(faces, tmp_path / "loose", 8)
    packed, read = _packed(crops, tmp_path / "packed"), []
    assert not list((tmp_path / "packed").rglob("*.jpg")) and len(packed) == 8
    for paths in ([crops.folder / name for name in crops.training["crop"]], packed):
        for dropped in (False, True):
            rates = _read_all(paths, lambda path: read.append(read_stored(path)), dropped=dropped)
            assert min(rates) > 0
    assert read[:8] == read[8:16] == read[16:24] == read[24:] and len({*read}) == 8 and all(read)


@pytest.mark.parametrize("has_faces", [True, False])
def test_packed_crops_are_measured_beside_loose_ones(has_faces, faces, monkeypatch):
    monkeypatch.setattr(bench_data, "TURNS", 1)
    lines = measure(DataBench(faces=faces if has_faces else None, packed=6))
    assert lines[0].startswith(f"{6 if has_faces else 24} crops of 380 pixels, 3")
    rows = [re.split(r"\s{2,}", line) for line in lines if line.startswith("read")]
    whats, wheres = ("read", "read and decoded"), ("not in", "from")
    assert [row[0] for row in rows] == [f"{what}, {where} the page cache" for what in whats for where in wheres]
    for _, *cells in rows:
        rates = [float(cell.replace(",", "").removesuffix("x")) for cell in cells]
        for files, shards, ratio in (rates[:3], rates[3:]):
            assert ratio == pytest.approx(shards / files, rel=0.05, abs=0.01) and files > 0


def test_each_figure_of_packed_crops_stands_in_its_place(faces, monkeypatch):
    calls = []

    def read_all(paths, read, *, dropped):
        """Crops that tell where they lie, how they are read, and from what."""
        packed, decoded = ".tar@" in str(paths[0]), isinstance(read(paths[0]), np.ndarray)
        calls.append((packed, decoded, dropped, len(paths)))
        return 1000 + 100 * packed + 10 * decoded + dropped, 2000 + 100 * packed + 10 * decoded + dropped

    monkeypatch.setattr(bench_data, "_read_all", read_all)
    lines = measure(DataBench(faces=faces, packed=6))
    rows = [re.split(r"\s{2,}", line) for line in lines if line.startswith("read")]
    assert [(row[0], row[1], row[2], row[4], row[5]) for row in rows] == [
        ("read, not in the page cache", "1,001", "1,101", "2,001", "2,101"),
        ("read, from the page cache", "1,000", "1,100", "2,000", "2,100"),
        ("read and decoded, not in the page cache", "1,011", "1,111", "2,011", "2,111"),
        ("read and decoded, from the page cache", "1,010", "1,110", "2,010", "2,110"),
    ]
    assert len(calls) == 4 * 2 * bench_data.TURNS and {number for *_, number in calls} == {6}


def test_what_is_read_from_the_disk_was_dropped_from_memory_before(faces, monkeypatch):
    dropped, paths = [], [faces / name for name in FACES.read(faces / "faces.parquet")["crop"]]
    monkeypatch.setattr(bench_data.os, "posix_fadvise", lambda *words: dropped.append(words[1:]))
    _read_all(paths, read_stored, dropped=False)
    assert not dropped
    _read_all(paths, read_stored, dropped=True)
    assert dropped == [(0, 0, bench_data.os.POSIX_FADV_DONTNEED)] * len(paths)


def test_crops_smaller_than_asked_for_are_refused_before_any_work():
    with pytest.raises(ValueError, match="--image-size: expected at most 380, the side of the crops in drawn faces"):
        measure(DataBench(experiment="demo", image_size=400))


def test_a_faces_folder_of_one_class_is_refused(faces, tmp_path):
    VIDEOS.write(VIDEOS.read(faces / "videos.csv").assign(label=1), faces / "videos.csv")
    with pytest.raises(ValueError, match="found no crop of label 0 among 24"):
        _some_faces(faces, tmp_path, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "--num-workers: expected at least 0"),
        ({"image_size": 0}, "--image-size: expected at least 1"),
        ({"batch_size": 0}, "--batch-size: expected at least 1"),
        ({"seconds": 0.0}, "--seconds: expected more than 0"),
        ({"training_rate": -1.0}, "--training-rate: expected more than 0"),
        ({"packed": 1}, "--packed: expected at least 2"),
    ],
    ids=["workers", "image size", "batch size", "seconds", "rate", "packed"],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataBench(**options)
