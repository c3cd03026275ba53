"""One video to crops: how every kind of video ends, the settings, and crops in memory."""

import dataclasses
import json

import av
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from drawn_faces import draw, write_clip
from multiattn.tables import FACES
from multiattn.video.crops.images import decode_crop, read_crop
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.decoding.frames import FrameReader, probe_video
from multiattn.video.decoding.reencode import ClipEncoding
from multiattn.video.detectors.registry import weights_digest
from multiattn.video.extraction import extract
from multiattn.video.extraction.extract import (
    ExtractionSettings,
    VideoFaces,
    VideoTask,
    encode_crops,
    extract_video,
    remove_crops,
)

RECIPE = CropRecipe(num_frames=12, size=32)


def recipe(**changes) -> CropRecipe:
    return dataclasses.replace(RECIPE, **changes)


def run(path, folder, *, task: dict | None = None, rows=None, **changes) -> VideoFaces:
    settings = ExtractionSettings(recipe=recipe(**changes))
    task = {"video_id": "set/clip", **(task or {})}
    return extract_video(VideoTask(path=path, **task), folder, settings, rows)


@pytest.mark.parametrize("every", [1, 4])
def test_a_video_gives_a_row_and_a_crop_for_every_sampled_frame(detector, every, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [draw([(20 + n, 20, 40, 1.0)]) for n in range(24)])
    result = run(path, tmp_path / "faces", detect_every=every)
    assert (result.status, result.num_frames, result.message, result.reused) == ("ok", 12, "", False)
    assert result.detected_frames == len(detector.searched[False]) == {1: 12, 4: 4}[every]
    assert detector.searched[True] == []
    table = FACES.validate(pd.DataFrame(result.rows, columns=list(FACES.columns)), "test")
    assert table["frame_index"].tolist() == [2 * n + 1 for n in range(12)]
    np.testing.assert_allclose(table["x1"], [20 + 2 * n + 1 for n in range(12)], atol=1e-9)
    np.testing.assert_allclose(table["seconds"], table["frame_index"] / 25)
    assert table["crop"][0] == "crops/set/clip/000001_0.jpg"
    assert all(cv2.imread(str(tmp_path / "faces" / crop)).shape == (32, 32, 3) for crop in table["crop"])
    files = sorted(file.relative_to(tmp_path / "faces").as_posix() for file in (tmp_path / "faces").rglob("*.*"))
    assert files == table["crop"].tolist(), "and nothing else"


@pytest.mark.parametrize(
    ("taken", "video_id"),
    [
        pytest.param("set/clip/000001_0.jpg/000001_0.jpg", "set/clip", id="a folder in place of a crop"),
        pytest.param("set/clip/000001_0.jpg", "set/clip/000001_0.jpg", id="a crop in place of a folder"),
    ],
)
@pytest.mark.parametrize("encoding", [None, ClipEncoding()])
def test_a_video_whose_crops_have_no_place_costs_itself_alone(detector, encoding, taken, video_id, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [draw([(20, 20, 40, 1.0)])] * 24)
    neighbour = tmp_path / "faces" / "crops" / taken
    neighbour.parent.mkdir(parents=True)
    neighbour.write_bytes(b"of another video")
    result = run(path, tmp_path / "faces", task={"video_id": video_id, "encoding": encoding})
    assert (result.status, result.rows) == ("unreadable", [])
    assert result.message.startswith("no place for its crops, ")
    assert neighbour.read_bytes() == b"of another video"
    assert [one for one in (tmp_path / "faces").rglob("*.*") if one != neighbour and one.is_file()] == []


def test_what_a_video_gave_survives_a_line_of_json(detector, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [draw([(20, 20, 40, 0.93)])] * 3)
    result = run(path, tmp_path / "faces")
    assert VideoFaces(**json.loads(json.dumps(dataclasses.asdict(result)))) == result
    added = ("detected_frames", "reused", "fingerprint", "seen")
    old = {key: value for key, value in dataclasses.asdict(result).items() if key not in added}
    assert VideoFaces(**old).rows == result.rows, "a line of an earlier journal"


def test_a_video_without_a_face_is_searched_thoroughly_once(detector, tmp_path):
    dim = write_clip(tmp_path / "dim.mp4", [draw([(20, 20, 40, 0.6)])] * 6)
    result = run(dim, tmp_path / "faces")
    assert (result.status, len(result.rows), result.detected_frames) == ("ok", 6, 12)
    assert result.message == "faces found by the thorough pass only"
    assert {row[9] for row in result.rows} == {0.6}
    assert [len(marks) for marks in detector.searched.values()] == [6, 6]


def test_one_face_in_the_first_pass_is_enough_to_spare_the_second(detector, tmp_path):
    clip = write_clip(tmp_path / "c.mp4", [draw([(20, 20, 40, 1.0 if n == 4 else 0.6)]) for n in range(6)])
    result = run(clip, tmp_path / "faces")
    assert ([row[1] for row in result.rows], result.message) == ([4], "")
    assert detector.searched[True] == []


@pytest.mark.parametrize(
    ("images", "status", "crops"),
    [
        pytest.param([draw([])] * 5, "no_face", 0, id="no face"),
        pytest.param([draw([(20, 20, 40, 0.9)])], "ok", 1, id="a single frame, a low score"),
        pytest.param([draw([(20, 20, 40, 1.0)]), draw([])], "ok", 1, id="one of two frames"),
        pytest.param([draw([(4, 4, 30, 0.91), (90, 9, 60, 0.92)])] * 2, "ok", 4, id="two faces, both doubtful"),
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_short_videos_give_their_faces(detector, images, status, crops, every, tmp_path):
    result = run(write_clip(tmp_path / "clip.mp4", images), tmp_path / "faces", detect_every=every)
    assert (result.status, len(result.rows), result.num_frames) == (status, crops, len(images))


def test_a_folder_of_its_frames_gives_what_the_video_gives(detector, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", [draw([(20 + 2 * step, 20, 40, 1.0)]) for step in range(6)])
    (tmp_path / "frames").mkdir()
    for frame in FrameReader(clip, 6):
        Image.fromarray(frame.image).save(tmp_path / f"frames/{frame.index}.png")
    video = run(clip, tmp_path / "faces", num_frames=4)
    folder = run(tmp_path / "frames", tmp_path / "faces", task={"fps": 25}, num_frames=4)
    assert (folder.status, folder.num_frames, folder.rows) == (video.status, 4, video.rows)
    assert folder.fingerprint.startswith("6 frames-")


@pytest.mark.parametrize("longest", [None, 80])
def test_a_clip_is_encoded_again_before_its_faces_are_found(detector, longest, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [draw([(20 + n, 20, 40, 1.0)]) for n in range(24)])
    shape = probe_video(path)
    scale = min(1, (longest or 10_000) / max(shape.width, shape.height))
    plain, faces = run(path, tmp_path / "plain"), tmp_path / "faces"
    encoding = ClipEncoding(crf=12, longest=longest)
    again = run(path, faces, task={"encoding": encoding})
    assert (again.status, again.num_frames, again.fingerprint) == ("ok", 12, f"{plain.fingerprint}; {encoding}")
    before, after = (pd.DataFrame(one.rows, columns=list(FACES.columns)) for one in (plain, again))
    assert after["frame_index"].equals(before["frame_index"])
    np.testing.assert_allclose(after["seconds"], before["seconds"], atol=1e-4)
    np.testing.assert_allclose(after[["x1", "y1", "x2", "y2"]], before[["x1", "y1", "x2", "y2"]] * scale, atol=2)
    assert sorted(one.relative_to(faces).as_posix() for one in faces.rglob("*.*")) == after["crop"].tolist()


@pytest.mark.parametrize("encoding", [None, ClipEncoding()])
def test_a_file_that_is_no_video_ends_as_unreadable(detector, encoding, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"not a video at all\n" * 50)
    result = run(tmp_path / "clip.mp4", tmp_path / "faces", task={"encoding": encoding})
    assert (result.status, result.num_frames, result.rows, result.detected_frames) == ("unreadable", 0, [], 0)
    assert result.message and str(tmp_path) not in result.message


@pytest.mark.parametrize(
    ("policy", "tracks"), [("all-tracks", {0, 1}), ("largest", {1}), ("forged-mask", {0, 1})], ids=str
)
def test_the_policy_decides_which_faces_are_written(detector, policy, tracks, tmp_path):
    """The larger face is seen in four of six frames; nothing says that the video is a fake."""
    both = [(4, 4, 30, 1.0), (90, 9, 60, 1.0)]
    path = write_clip(tmp_path / "clip.mp4", [draw(both[: 1 + (n < 4)]) for n in range(6)])
    result = run(path, tmp_path / "faces", policy=policy)
    assert {row[3] for row in result.rows} == tracks
    assert len(list((tmp_path / "faces").rglob("*.jpg"))) == len(result.rows)


def test_a_fake_left_out_by_its_policy_says_so(detector, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [draw([(20, 20, 40, 1.0)])] * 3)
    result = run(path, tmp_path / "faces", policy="forged-mask", task={"label": 1})
    assert (result.status, result.rows, result.num_frames) == ("no_face", [], 3)
    assert result.message == "left out: a fake without a mask, so --policy forged-mask does not know its forged face"


@pytest.mark.parametrize(
    "video_id", ["/elsewhere", "../../elsewhere", "linked", "linked/deeper", "", "."], ids=lambda text: text or "empty"
)
def test_an_id_or_a_link_that_leads_out_of_the_crops_touches_nothing(video_id, tmp_path):
    faces, elsewhere = tmp_path / "faces", tmp_path / "elsewhere"
    for folder in (faces / "crops", elsewhere / "deeper"):
        folder.mkdir(parents=True)
    (faces / "crops/linked").symlink_to(elsewhere)
    kept = [elsewhere / ".bashrc", elsewhere / "000001_0.jpg", elsewhere / "deeper/000001_0.jpg"]
    for path in kept:
        path.write_text("mine")
    video_id = str(elsewhere) if video_id == "/elsewhere" else video_id
    task = VideoTask(video_id=video_id, path=write_clip(tmp_path / "clip.mp4", [draw([(20, 20, 40, 1.0)])]))
    with pytest.raises(ValueError, match=r"expected its crops below .*/faces/crops"):
        extract_video(task, faces, ExtractionSettings(recipe=RECIPE))
    with pytest.raises(ValueError, match=r"expected its crops below .*/faces/crops"):
        remove_crops(faces, video_id)
    assert all(path.read_text() == "mine" for path in kept)


def test_the_crops_of_an_earlier_attempt_go_and_nothing_else(detector, tmp_path):
    crops = tmp_path / "faces/crops/set/clip"
    (crops / "000002_0.jpg").mkdir(parents=True)
    stale = [crops / "000009_3.jpg", crops / ".000001_0.jpg.x7.jpg"]
    others = [crops / "000002_0.jpg/000001_0.jpg", crops / "cover.jpg", crops / ".hidden"]
    for path in stale + others:
        path.write_text("an earlier one")
    assert run(write_clip(tmp_path / "clip.mp4", [draw([(20, 20, 40, 1.0)])]), tmp_path / "faces").status == "ok"
    assert not any(path.exists() for path in stale) and all(path.exists() for path in others)
    remove_crops(tmp_path / "faces", "set/clip")
    assert sorted(path.name for path in crops.iterdir()) == [".hidden", "000002_0.jpg", "cover.jpg"]


def test_settings_take_the_weights_their_recipe_names(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"some weights")
    retinaface = recipe(detector="retinaface", weights=weights_digest(weights))
    assert ExtractionSettings(recipe=retinaface, weights=weights).weights == weights
    with pytest.raises(ValueError, match=r"retinaface needs its weights file, .* Pass --weights FILE"):
        ExtractionSettings(recipe=retinaface)
    weights.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=rf"begins with {retinaface.weights}, found {weights_digest(weights)}"):
        ExtractionSettings(recipe=retinaface, weights=weights)
    with pytest.raises(ValueError, match="the detector mtcnn needs no weights file"):
        ExtractionSettings(recipe=RECIPE, weights=weights)
    foreign = recipe(detector="dlib", template="deepfakebench, dlib 81 points, margin 1.3")
    with pytest.raises(ValueError, match=r"cut by another program .*found 'dlib'.*found 'deepfakebench"):
        ExtractionSettings(recipe=foreign)


SETTINGS = ExtractionSettings(recipe=CropRecipe(num_frames=4, size=64))


def test_they_are_the_crops_that_extraction_writes(small_dataset, tmp_path):
    statuses = set()
    for path in sorted((small_dataset / "test_videos").iterdir()):
        task = VideoTask(video_id=f"folder/{path.stem}", path=path)
        written, (kept,) = extract_video(task, tmp_path, SETTINGS), encode_crops(task, SETTINGS)
        statuses.add(kept.status)
        assert (kept.status, kept.num_frames, kept.message) == (written.status, written.num_frames, written.message)
        assert [(row[1], row[3]) for row in written.rows] == [(crop.frame_index, crop.track) for crop in kept.crops]
        for row, crop in zip(written.rows, kept.crops, strict=True):
            assert (tmp_path / row[4]).read_bytes() == crop.jpeg
            assert (read_crop(tmp_path / row[4], 32) == decode_crop(crop.jpeg, 32, "here")).all()
        assert kept.search_seconds >= 0 and (kept.decode_seconds > 0 or kept.status == "unreadable")
    assert statuses == {"ok", "no_face", "unreadable"}


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of the files that a reader has decoded since, each time again."""
    read, files = FrameReader._read, []

    def noted(self):
        files.append(self.path.name)
        yield from read(self)

    monkeypatch.setattr(FrameReader, "_read", noted)
    return files


RECIPES = [
    recipe(),
    recipe(size=64, alignment="box", margin=1.5),
    recipe(num_frames=8, jpeg_quality=80),
    recipe(num_frames=5, fast_frames=True),
    recipe(detect_every=3, policy="largest"),
]


@pytest.mark.parametrize(
    ("broken", "squares", "passes"),
    [
        pytest.param(False, [(20, 20, 40, 1.0), (90, 9, 30, 1.0)], 1, id="two faces"),
        pytest.param(False, [(20, 20, 40, 0.7)], 2, id="a face of the thorough pass"),
        pytest.param(False, [], 2, id="no face"),
        pytest.param(True, [(20, 20, 40, 1.0)], 6, id="a damaged file is read for each"),
    ],
)
def test_several_recipes_give_what_each_gives_alone_and_the_video_is_decoded_once(
    detector, counted, broken, squares, passes, tmp_path
):
    images = [draw([(left + n, *rest) for left, *rest in squares], mark=n) for n in range(40)]
    path = write_clip(tmp_path / "clip.mp4", images, container={"movflags": "faststart"})
    if broken:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    task, settings = VideoTask(video_id="set/clip", path=path), [ExtractionSettings(recipe=one) for one in RECIPES]
    together = encode_crops(task, *settings)
    searched = {thorough: len(marks) for thorough, marks in detector.searched.items()}
    if not broken:
        assert searched[False] == 12 + 8 + 5 + 5, "once for the recipes that find faces alike"
    assert len(counted) == passes
    alone = [encode_crops(task, one)[0] for one in settings]
    for ours, expected in zip(together, alone, strict=True):
        names = ("status", "message", "num_frames", "detected_frames")
        assert [getattr(ours, name) for name in names] == [getattr(expected, name) for name in names]
        for crop, other in zip(ours.crops, expected.crops, strict=True):
            assert (crop.frame_index, crop.track, crop.jpeg) == (other.frame_index, other.track, other.jpeg)
            np.testing.assert_array_equal(crop.box_xyxy, other.box_xyxy)
        assert bool(ours.crops) == bool(squares)


def test_damage_that_only_one_recipe_meets_leaves_the_video_to_the_others(detector, tmp_path):
    """Of 40 frames the tenth and the thirtieth are wanted by one recipe, and of every group of five by the other."""
    path = write_clip(tmp_path / "clip.mp4", [draw([(20 + n, 20, 40, 1.0)], mark=n) for n in range(40)])
    with av.open(str(path)) as container:
        second = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][1]
    content = bytearray(path.read_bytes())
    content[second[0] : second[0] + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    settings = [ExtractionSettings(recipe=recipe(num_frames=number)) for number in (12, 2)]
    lost, found = encode_crops(VideoTask(video_id="set/clip", path=path), *settings)
    assert (lost.status, found.status) == ("unreadable", "ok")
    assert [crop.frame_index for crop in found.crops] == [10, 30]


def test_without_memory_on_the_gpu_faces_are_detected_on_the_cpu(small_dataset, monkeypatch):
    task = VideoTask(video_id="folder/x", path=min((small_dataset / "test_videos").iterdir()))
    find, devices = extract.find_crops, []

    def short_of_memory(task, settings, **options):
        devices.append(settings.device)
        if settings.device == "cuda":
            raise RuntimeError("CUDA error: out of memory")
        return find(task, settings, **options)

    monkeypatch.setattr(extract, "find_crops", short_of_memory)
    (there,), (here,) = (encode_crops(task, dataclasses.replace(SETTINGS, device=device)) for device in ("cuda", "cpu"))
    assert [crop.jpeg for crop in there.crops] == [crop.jpeg for crop in here.crops]
    assert devices == ["cuda", "cpu", "cpu"]


def test_worker_processes_take_turns_at_the_gpus_and_leave_one_that_failed(small_dataset, monkeypatch):
    task = VideoTask(video_id="folder/x", path=min((small_dataset / "test_videos").iterdir()))
    find, devices = extract.find_crops, []

    def failing(task, settings, **options):
        devices.append(settings.device)
        if settings.device != "cpu":
            words = "out of memory" if settings.device == "cuda:0" else "an illegal memory access was encountered"
            raise RuntimeError(f"CUDA error: {words}")
        return find(task, settings, **options)

    monkeypatch.setattr(extract, "find_crops", failing)
    monkeypatch.setattr(extract, "_failed", set())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("MULTIATTN_WORKER", "3")
    settings = dataclasses.replace(SETTINGS, device="cuda:0,cuda:1")
    for expected in (["cuda:1", "cuda:0", "cpu"], ["cuda:0", "cpu"]):
        assert encode_crops(task, settings)[0].status == "ok" and devices == expected
        devices.clear()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert extract.devices_of_worker("cuda:0,cuda:1") == ["cuda:0"], "a cluster's worker with fewer"
    assert extract.devices_of_worker("cuda:1") == ["cuda:1"], "what is not there is said by CUDA"


def test_an_error_of_a_crop_names_where_it_came_from():
    with pytest.raises(ValueError, match="video x, frame 3: not a readable image"):
        decode_crop(b"", 32, "video x, frame 3")
