"""A faces folder: order, reuse, clusters, restarts, options. Real videos and processes."""

import dataclasses
import importlib.util
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_detector import SleepyDetector

from drawn_faces import write_clip
from multiattn.datasets.manifest import video_row
from multiattn.runtime.crop_files import loose_names, read_stored
from multiattn.runtime.layout import FINGERPRINTS_FILE
from multiattn.tables import FACES, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.detectors import registry
from multiattn.video.extraction import engine
from multiattn.video.extraction.extract import ExtractionSettings, VideoFaces, VideoTask
from multiattn.video.extraction.faces_folder import extract_faces, faces_journal, read_faces_folder
from multiattn.video.extraction.isolation import end_processes
from multiattn.video.extraction.packing import pack_crops
from pipeline import FACES_OPTIONS, Pipeline, end, finish, run, start_stage, wait_until

RECIPE = CropRecipe(num_frames=2, size=64)
TABLES = ("faces.parquet", "video_status.csv", "videos.csv", "faces.json")


@pytest.fixture(scope="module")
def clips(small_dataset: Path) -> dict[str, Path]:
    """name -> clip: two originals and a fake of each."""
    folder = small_dataset / "dfdc_train_part_0"
    rows = json.loads((folder / "metadata.json").read_text())
    fakes = {row["original"]: name for name, row in sorted(rows.items()) if row["label"] == "FAKE"}
    assert len(fakes) == 2
    names = [name for pair in sorted(fakes.items()) for name in pair]
    return dict(zip(("real0", "fake0", "real1", "fake1"), (folder / name for name in names), strict=True))


def table_of(files: dict[str, Path]) -> tuple[pd.DataFrame, list[VideoTask]]:
    rows = [video_row("clips", f"{name}.mp4", label=int("fake" in name)) for name in files]
    tasks = [VideoTask(video_id=f"clips/{name}", path=path) for name, path in files.items()]
    return VIDEOS.validate(pd.DataFrame(rows), "clips"), tasks


def with_originals(tasks: list[VideoTask]) -> list[VideoTask]:
    paths = {task.video_id: task.path for task in tasks}
    return [
        dataclasses.replace(task, original=original, original_path=paths[original])
        if (original := task.video_id.replace("fake", "real")) != task.video_id and original in paths
        else task
        for task in tasks
    ]


def extract(files: dict[str, Path], folder: Path, *, recipe: CropRecipe = RECIPE, **options) -> dict[str, tuple]:
    """Extract and give name -> (status, crops, message)."""
    videos, tasks = table_of(files)
    tasks = with_originals(tasks) if recipe.reuse_original else tasks
    statuses = extract_faces(videos, tasks, folder, ExtractionSettings(recipe=recipe), **{"jobs": 1, **options})
    return {row.video_id[6:]: (row.status, row.num_crops, row.message) for row in statuses.itertuples()}


def content(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves behind."""
    files = [folder / name for name in TABLES] + [path for path in (folder / "crops").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files that an extraction of the clips by one process leaves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert extract(clips, folder, jobs=1) == dict.fromkeys(sorted(clips), ("ok", 2, ""))
    return content(folder)


def test_the_order_of_finishing_leaves_no_trace(clips, undisturbed, tmp_path):
    extract(dict(reversed(clips.items())), tmp_path, jobs=2)
    assert content(tmp_path) == undisturbed


def test_one_by_one_gives_the_same_tables(clips, undisturbed, tmp_path):
    for count in (1, 2, 4):
        extract(dict(list(clips.items())[:count]), tmp_path)
    assert content(tmp_path) == undisturbed


def test_no_videos_give_empty_tables(tmp_path):
    videos = VIDEOS.empty()
    extract_faces(videos, [], tmp_path, ExtractionSettings(recipe=RECIPE), jobs=2)
    assert FACES.read(tmp_path / "faces.parquet", allow_empty=True).empty
    assert VIDEO_STATUS.read(tmp_path / "video_status.csv", allow_empty=True).empty


def workers(process: int | str = "self") -> list[int]:
    """Processes that a process started to extract in."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for pid in children.read_text().split():
            command = Path(f"/proc/{pid}/cmdline")
            if command.is_file() and b"multiattn.video.extraction.isolation" in command.read_bytes():
                found.append(int(pid))
    return found


def test_fakes_are_cropped_where_their_originals_are(clips, tmp_path, caplog):
    recipe = dataclasses.replace(RECIPE, reuse_original=True)
    backwards = dict(reversed(clips.items()))
    with caplog.at_level(logging.INFO, logger="multiattn"):
        extract(backwards, tmp_path / "at once", recipe=recipe)
    assert "2 of 4 videos were cropped where their originals are" in caplog.text
    assert "the detector searched 4 frames instead of 8, 50 % less" in caplog.text
    faces = FACES.read(tmp_path / "at once/faces.parquet").drop(columns=["video_id", "crop"])
    fakes, reals = faces[:4].reset_index(drop=True), faces[4:].reset_index(drop=True)  # sorted by video_id
    pd.testing.assert_frame_equal(fakes, reals)
    # The originals of an earlier run come from its table, and give the same.
    originals = {name: path for name, path in clips.items() if "real" in name}
    extract(originals, tmp_path / "in two", recipe=recipe)
    extract(clips, tmp_path / "in two", recipe=recipe)
    assert content(tmp_path / "in two") == content(tmp_path / "at once")


def test_a_fake_without_its_original_in_the_run_or_of_a_broken_one_is_searched(clips, tmp_path):
    recipe = dataclasses.replace(RECIPE, reuse_original=True)
    shutil.copy(clips["fake1"], tmp_path / "fake1.mp4")
    (tmp_path / "real1.mp4").write_bytes(b"")
    files = {"fake0": clips["fake0"], "fake1": tmp_path / "fake1.mp4", "real1": tmp_path / "real1.mp4"}
    found = extract(files, tmp_path / "faces", recipe=recipe)
    assert found["fake0"] == ("ok", 2, "")
    assert found["fake1"] == ("ok", 2, "not cropped like the original: the original shows no face")
    assert found["real1"][0] == "unreadable"


def test_a_cluster_of_dask_gives_the_same_tables(clips, undisturbed, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    import dask

    quiet = {"distributed.admin.log-length": 0, "distributed.worker.daemon": True}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
    ):
        extract(clips, tmp_path, backend="dask", scheduler=cluster.scheduler_address)
    assert content(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"jobs": 0}, "--jobs: expected at least 1, found 0", id="no jobs"),
        pytest.param({"time_limit": 0.0}, "--time-limit: expected seconds above 0", id="no time"),
        pytest.param({"time_limit": float("nan")}, "--time-limit: expected seconds above 0", id="time is no number"),
        pytest.param({"backend": "slurm"}, "--backend: expected local, dask or ray, found 'slurm'", id="no backend"),
        pytest.param({"scheduler": "tcp://a:1"}, "--backend local has none", id="a scheduler of one machine"),
    ],
)
def test_wrong_options_are_refused_by_name(options, expected, clips, tmp_path):
    with pytest.raises(ValueError, match=expected):
        extract(clips, tmp_path, **options)


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_without_its_package_says_what_to_install(backend, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"--backend {backend}: .* pip install \"\.\[{backend}\]\""):
        extract(clips, tmp_path, backend=backend)


def test_dask_needs_an_address_that_answers(clips, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="needs the extra dask")
    with pytest.raises(ValueError, match="--backend dask: expected --scheduler"):
        extract(clips, tmp_path, backend="dask")
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1)
    with pytest.raises(ValueError, match="no Dask scheduler answers there"):
        extract(clips, tmp_path, backend="dask", scheduler="tcp://127.0.0.1:9")


def test_a_table_without_its_tasks_is_refused(clips, tmp_path):
    videos, tasks = table_of(clips)
    with pytest.raises(ValueError, match="one task for each row"):
        extract_faces(videos, tasks[1:], tmp_path, ExtractionSettings(recipe=RECIPE), jobs=1)


def test_a_folder_with_a_journal_is_not_finished(tmp_path, clips):
    extract(clips, tmp_path)
    assert len(read_faces_folder(tmp_path)[2]) == len(clips)
    with faces_journal(tmp_path) as journal:
        journal.append(VideoFaces("c", "unreadable", 0, "", []))
    with pytest.raises(ValueError, match="the extraction was interrupted"):
        read_faces_folder(tmp_path)


def unpacked(folder: Path) -> dict[str, bytes]:
    """The crops by the names that they have as files."""
    addresses = FACES.read(folder / "faces.parquet")["crop"]
    return {
        name: read_stored(folder / address) for name, address in zip(loose_names(addresses), addresses, strict=True)
    }


def test_a_packed_folder_takes_more_videos_and_changed_ones_into_new_shards(clips, undisturbed, tmp_path):
    recipe = dataclasses.replace(RECIPE, reuse_original=True)
    files = {name: shutil.copy(path, tmp_path / f"{name}.mp4") for name, path in clips.items()}
    originals = {name: path for name, path in files.items() if "real" in name}
    extract(originals, tmp_path / "faces", recipe=recipe)
    assert pack_crops(tmp_path / "faces") == (4, 1)
    first = (tmp_path / "faces/shards/000000.tar").read_bytes()
    found = extract(files, tmp_path / "faces", recipe=recipe)
    assert found == dict.fromkeys(sorted(files), ("ok", 2, "")), "fakes are cropped like originals that are packed"
    assert pack_crops(tmp_path / "faces") == (4, 2)
    crops = unpacked(tmp_path / "faces")
    assert {name: crop for name, crop in crops.items() if "/real" in name}.items() <= undisturbed.items()
    shutil.copy(clips["real1"], files["real0"])
    extract(originals, tmp_path / "faces", recipe=recipe)
    assert pack_crops(tmp_path / "faces") == (2, 3)
    again = unpacked(tmp_path / "faces")
    assert again == crops | {name.replace("real1", "real0"): crop for name, crop in crops.items() if "/real1/" in name}
    assert (tmp_path / "faces/shards/000000.tar").read_bytes() == first
    assert not list((tmp_path / "faces/crops").iterdir())


def test_a_file_of_other_content_is_extracted_again_and_nothing_to_do_or_a_new_time_stamp_starts_no_process(
    clips, tmp_path, caplog
):
    recipe = dataclasses.replace(RECIPE, reuse_original=True)
    files = {name: shutil.copy(path, tmp_path / f"{name}.mp4") for name, path in clips.items()}
    before = files["real0"].stat()
    extract(files, tmp_path / "faces", recipe=recipe)
    first = content(tmp_path / "faces")
    end_processes()
    for changed in (False, True):
        for path in files.values() if changed else ():
            os.utime(path, (1, 1))
        extract(files, tmp_path / "faces", recipe=recipe)
        assert not workers() and content(tmp_path / "faces") == first
    other = clips["real1"].read_bytes()
    size = max(before.st_size, len(other))
    files["real0"].write_bytes(other + bytes(size - len(other)))  # zeros behind the end change no frame
    os.truncate(files["real0"], size)
    os.utime(files["real0"], ns=(before.st_atime_ns, before.st_mtime_ns))
    with caplog.at_level(logging.INFO, logger="multiattn"):
        extract(files, tmp_path / "faces", recipe=recipe)
    assert "2 videos changed since the extraction" in caplog.text, "the original and its fake"
    again = content(tmp_path / "faces")
    real0, real1 = ({k.rsplit("/")[-1]: v for k, v in again.items() if f"/{name}/" in k} for name in ("real0", "real1"))
    assert real0 == real1 and again != first
    files["real1"].unlink()
    extract(files, tmp_path / "faces", recipe=recipe)
    assert content(tmp_path / "faces") == again, "the crops of a video that is gone stay"


def test_other_settings_are_refused_by_name_once_there_are_crops(clips, tmp_path):
    name, path = next(iter(clips.items()))
    other = dataclasses.replace(RECIPE, jpeg_quality=90)
    with pytest.raises(ValueError, match="--backend dask: expected"):
        extract({name: path}, tmp_path, recipe=other, backend="dask")  # ends before its first video
    extract({name: path}, tmp_path)
    with pytest.raises(ValueError, match=r"jpeg_quality: expected 95, found 90\. Choose another faces folder"):
        extract({name: path}, tmp_path, recipe=other)


@pytest.mark.slow
def test_videos_that_hang_are_given_up_with_their_crops_and_take_nothing_of_others(clips, tmp_path, monkeypatch):
    """Clip 001.mp4 lies beside a folder 001."""
    crop = tmp_path / "faces/crops/clips/hangs/000001_0.jpg"
    crop.parent.mkdir(parents=True)
    crop.write_bytes(b"left by an attempt")
    files = {name: tmp_path / f"{name}.mp4" for name in ("hangs", "001")}
    for path in files.values():
        write_clip(path, [np.zeros((64, 64, 3), np.uint8)] * 2)
    monkeypatch.setattr(registry, "_detectors", {**registry._detectors, "sleepy": SleepyDetector})
    recipe = dataclasses.replace(RECIPE, detector="sleepy")
    files |= {"001/a": clips["real0"], "real1": clips["real1"]}
    found = extract(files, tmp_path / "faces", recipe=recipe, time_limit=5, jobs=2)
    assert found.pop("hangs") == found.pop("001") == ("unreadable", 0, "took longer than the time limit of 5 s")
    assert set(found.values()) == {("ok", 2, "")}
    assert not crop.parent.exists()
    crops = FACES.read(tmp_path / "faces/faces.parquet")["crop"]
    assert len(crops) == 4 and all((tmp_path / "faces" / crop).is_file() for crop in crops)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def fingerprints(folder: Path) -> dict[str, str]:
    """Of the videos' content; with it stand times of files, which differ."""
    rows = map(json.loads, (folder / FINGERPRINTS_FILE).read_text().splitlines())
    return {row["video_id"]: row["fingerprint"] for row in rows}


@pytest.mark.slow
def test_killed_faces_continue_to_the_same_tables(pipeline: Pipeline, tmp_path):
    """First a worker alone is killed and then the parent alone, then what continues it with all its children: at
    moments nobody chose."""
    journal = tmp_path / "journal.jsonl"
    words = ("faces", "--videos", pipeline.videos, "--out", tmp_path, *FACES_OPTIONS, "--jobs", 1)

    def finished_crops() -> dict[Path, int]:
        """When each was written, of the videos that the journal has."""
        done = [json.loads(line)["video_id"] for line in journal.read_bytes().splitlines()[: lines(journal)]]
        return {path: path.stat().st_mtime_ns for name in done for path in (tmp_path / "crops" / name).iterdir()}

    parent = start_stage(*words)
    wait_until(lambda: lines(journal) >= 2, parent)
    for pid in workers(parent.pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lines(journal) >= 4, parent)
    parent.kill()
    finish(parent)
    before = finished_crops()
    with journal.open("a") as file:
        file.write('{"video_id":"dfdc/torn')  # what a kill in the middle of a write leaves
    many, parent = lines(journal), start_stage(*words)
    wait_until(lambda: lines(journal) > many, parent)
    assert end(parent) == -signal.SIGKILL
    crops = finished_crops()
    assert before.items() <= crops.items() and len(before) < len(crops), "finished videos were done again"
    assert not (tmp_path / "video_status.csv").exists()
    run(*words)
    assert not journal.exists()
    assert {path: path.stat().st_mtime_ns for path in crops} == crops, "finished videos were done again"
    assert content(tmp_path) == content(pipeline.faces) and fingerprints(tmp_path) == fingerprints(pipeline.faces)
