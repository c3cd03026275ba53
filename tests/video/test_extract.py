"""One video to crops: what the detector looks at, what is interpolated, what every kind of video ends as."""

import dataclasses
import json
import weakref

import cv2
import numpy as np
import pandas as pd
import pytest

from drawn_faces import SquareDetector, draw, frames_of, landmarks_of, write_clip
from multiattn.tables import FACES
from multiattn.video.crops.recipe import CropRecipe, align_crop
from multiattn.video.decoding.frames import Frame
from multiattn.video.detectors.registry import Faces, weights_digest
from multiattn.video.extraction import extract
from multiattn.video.extraction.extract import ExtractionSettings, VideoFaces, VideoTask, extract_video
from multiattn.video.extraction.scan import BATCH_FRAMES, scan_faces

RECIPE = CropRecipe(num_frames=12, size=32)


def recipe(**changes) -> CropRecipe:
    return dataclasses.replace(RECIPE, **changes)


def scan(frames, every: int = 1, detector=None):
    return scan_faces(frames, detector or SquareDetector(), recipe(detect_every=every))


def places(found) -> list[tuple[int, int, list[float]]]:
    return [(crop.frame_index, crop.track, crop.box_xyxy.tolist()) for crop in found.crops]


# --- the pass over sampled frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "every", "looked_at"),
    [
        pytest.param(0, 1, [], id="no frames"),
        pytest.param(0, 4, [], id="no frames, every fourth"),
        pytest.param(1, 1, [0], id="one frame"),
        pytest.param(1, 4, [0], id="one frame, every fourth"),
        pytest.param(2, 4, [0, 1], id="first and last only"),
        pytest.param(5, 4, [0, 4], id="the last is a fourth"),
        pytest.param(6, 4, [0, 4, 5], id="the last is none"),
        pytest.param(20, 1, list(range(20)), id="all"),
        pytest.param(20, 2, [*range(0, 20, 2), 19], id="over several batches"),
        pytest.param(20, 16, [0, 16, 19], id="farther apart than a batch"),
    ],
)
def test_the_detector_looks_at_every_kth_frame_and_at_the_last(count, every, looked_at):
    detector = SquareDetector()
    found = scan(frames_of(lambda n: [(20, 20, 40, 1.0)], count), every, detector)
    assert detector.looked_at == {False: looked_at, True: []}
    assert found.detected_frames == len(looked_at)
    assert [crop.frame_index for crop in found.crops] == [10 * n for n in range(count)]
    assert list(found.frame_sizes_wh) == [10 * n for n in range(count)]


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_face_that_moves_evenly_is_where_the_detector_would_have_found_it(every):
    frames = frames_of(lambda n: [(2 * n, 3 + n, 40, 1.0)], 18)
    for crop, expected in zip(scan(frames, every).crops, scan(frames).crops, strict=True):
        assert (crop.frame_index, crop.track, crop.seconds) == (expected.frame_index, 0, expected.seconds)
        np.testing.assert_allclose(crop.box_xyxy, expected.box_xyxy, atol=1e-9)
        np.testing.assert_allclose(crop.landmarks, expected.landmarks, atol=1e-9)


@pytest.mark.parametrize(
    ("seconds", "lefts"),
    [
        pytest.param([0, 1, 2, 6, 8], [0, 5, 10, 30, 40], id="by the frames' times, not by their numbers"),
        pytest.param([0, 0, 0, 0, 0], [0, 10, 20, 30, 40], id="by number in a stream without times"),
        pytest.param([3, 1, 0, 2, 4], [0, 10, 20, 30, 40], id="by number where times run backwards"),
    ],
)
def test_places_between_are_linear_in_time(seconds, lefts):
    frames = frames_of(lambda n: [(10 * n, 0, 80, 1.0)], 5, seconds=lambda n: float(seconds[n]))
    assert [crop.box_xyxy[0] for crop in scan(frames, 4).crops] == pytest.approx(lefts)


def test_the_score_between_is_linear_too():
    scores = [1.0, 0.98, 0.98, 0.98, 0.92]
    found = scan(frames_of(lambda n: [(20, 20, 40, scores[n])], 5), 4)
    first, last = 255 / 255, round(255 * 0.92) / 255
    assert [crop.score for crop in found.crops] == pytest.approx(np.linspace(first, last, 5))


def test_nothing_is_added_beyond_the_ends_of_a_track():
    """Frames 3 to 9 show the face; the detector looks at 0, 4, 8 and 12."""
    found = scan(frames_of(lambda n: [(20, 20, 40, 1.0)] if 3 <= n <= 9 else [], 13), 4)
    assert [crop.frame_index for crop in found.crops] == [40, 50, 60, 70, 80]


@pytest.mark.parametrize(
    ("hidden", "every", "rows", "tracks"),
    [
        pytest.param({2}, 1, [0, 1, 3, 4, 5, 6, 7, 8], 1, id="a gap of one keeps the track and gets no row"),
        pytest.param({2, 3}, 1, [0, 1, 4, 5, 6, 7, 8], 1, id="a gap of two"),
        pytest.param({2, 3, 4}, 1, [0, 1, 5, 6, 7, 8], 2, id="a gap of three ends the track"),
        pytest.param({4}, 2, [0, 1, 2, 6, 7, 8], 1, id="nothing between a detection and a miss"),
        pytest.param({3}, 2, list(range(9)), 1, id="what the detector does not look at it cannot miss"),
    ],
)
def test_a_gap_is_bridged_by_number_and_not_filled(hidden, every, rows, tracks):
    found = scan(frames_of(lambda n: [] if n in hidden else [(20, 20, 40, 1.0)], 9), every)
    assert [crop.frame_index // 10 for crop in found.crops] == rows
    assert {crop.track for crop in found.crops} == set(range(tracks))


def test_two_people_are_interpolated_each_on_his_own():
    def people(n: int) -> list:
        return [(2 * n, 0, 40, 1.0), (110 - 2 * n, 50, 40, 0.99)]

    frames = frames_of(people, 9)
    for crop, expected in zip(scan(frames, 8).crops, scan(frames).crops, strict=True):
        np.testing.assert_allclose(crop.box_xyxy, expected.box_xyxy, atol=1e-9)
        assert crop.score == pytest.approx(expected.score)
    assert [crop.track for crop in scan(frames, 8).crops] == [0, 1] * 9


def test_nothing_is_interpolated_across_a_change_of_size():
    images = [draw([(20, 20, 40, 1.0)], size_wh=(160, 96) if n < 3 else (200, 96)) for n in range(7)]
    frames = [Frame(index=n, seconds=n / 25, image=image) for n, image in enumerate(images)]
    found = scan(frames, 2)  # looked at: 0, 2, 4, 6
    assert [crop.frame_index for crop in found.crops] == [0, 1, 2, 4, 5, 6]
    assert found.frame_sizes_wh[2] == (160, 96) and found.frame_sizes_wh[3] == (200, 96)


def test_a_crop_is_cut_from_its_own_frame_and_stored_without_chroma_subsampling():
    frames = frames_of(lambda n: [(20 + n, 20, 40, 1.0)], 3)
    for frame, crop in zip(frames, scan(frames, 2).crops, strict=True):
        stored = cv2.imdecode(np.frombuffer(crop.jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        cut = align_crop(frame.image, landmarks_of(20 + frame.index // 10, 20, 40), 32)
        assert np.abs(stored.astype(int) - cut).max() <= 3
        header = crop.jpeg.index(b"\xff\xc0")  # baseline; 3 components, each sampled 1x1
        assert [crop.jpeg[header + 11 + 3 * component] for component in range(3)] == [0x11] * 3


def test_a_spurious_track_is_left_out_and_the_numbers_stay_without_a_gap():
    def people(n: int) -> list:
        ghost = [(110, 50, 30, 0.92)] if n == 0 else []
        return [(20, 20, 40, 1.0), *ghost, *([(110, 10, 30, 1.0)] if n > 5 else [])]

    found = scan(frames_of(people, 12))
    assert [crop.track for crop in found.crops] == [0] * 6 + [0, 1] * 6
    assert (found.crops[0].frame_index, found.crops[1].frame_index) == (0, 10)


@pytest.mark.parametrize(
    "landmarks",
    [
        pytest.param(np.full((5, 2), 20.0), id="in one place"),
        pytest.param(np.full((5, 2), np.nan), id="not numbers"),
        pytest.param(np.where(np.arange(10).reshape(5, 2) == 3, np.inf, landmarks_of(0, 0, 40)), id="infinite"),
    ],
)
def test_a_face_that_cannot_be_aligned_is_left_out(landmarks):
    class Broken(SquareDetector):
        def _find(self, grey, threshold):
            whole = super()._find(grey, threshold)
            return Faces(
                np.concatenate([[[0, 0, 9, 9]], whole.boxes_xyxy]),
                np.concatenate([[1.0], whole.scores]),
                np.concatenate([landmarks[None], whole.landmarks]),
            )

    found = scan(frames_of(lambda n: [(20, 20, 40, 1.0)], 3), detector=Broken())
    assert places(found) == [(10 * n, 0, [20, 20, 60, 60]) for n in range(3)]


@pytest.mark.parametrize("every", [1, 4, 16])
def test_full_frames_are_held_for_one_batch_and_the_wait_for_a_detection_only(every):
    alive, most = set(), 0

    def stream():
        nonlocal most
        for n in range(60):
            image = draw([(20, 20, 40, 1.0)], mark=n % 40)
            alive.add(n)
            weakref.finalize(image, alive.discard, n)
            most = max(most, len(alive))
            yield Frame(index=n, seconds=n / 25, image=image)

    found = scan(stream(), every)
    assert len(found.crops) == 60
    assert most <= BATCH_FRAMES + every + 4, "a batch, who waits, and the few that are being looked at"


# --- a whole video --------------------------------------------------------------------------------------------------


@pytest.fixture
def detector(monkeypatch) -> SquareDetector:
    """In place of the networks."""
    found = SquareDetector()
    monkeypatch.setattr(extract, "load_detector", lambda *_, **__: found)
    return found


def run(path, folder, *, task: dict | None = None, rows=None, **changes) -> VideoFaces:
    settings = ExtractionSettings(recipe=recipe(**changes))
    return extract_video(VideoTask(video_id="set/clip", path=path, **(task or {})), folder, settings, rows)


@pytest.mark.parametrize("every", [1, 4])
def test_a_video_gives_a_row_and_a_crop_for_every_sampled_frame(detector, every, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [draw([(20 + n, 20, 40, 1.0)]) for n in range(24)])
    result = run(path, tmp_path / "faces", detect_every=every)
    assert (result.status, result.num_frames, result.message, result.reused) == ("ok", 12, "", False)
    assert result.detected_frames == len(detector.looked_at[False]) == {1: 12, 4: 4}[every]
    assert detector.looked_at[True] == []
    table = FACES.validate(pd.DataFrame(result.rows, columns=list(FACES.columns)), "test")
    assert table["frame_index"].tolist() == [2 * n + 1 for n in range(12)]
    np.testing.assert_allclose(table["x1"], [20 + 2 * n + 1 for n in range(12)], atol=1e-9)
    np.testing.assert_allclose(table["seconds"], table["frame_index"] / 25)
    assert table["crop"][0] == "crops/set/clip/000001_0.jpg"
    assert all(cv2.imread(str(tmp_path / "faces" / crop)).shape == (32, 32, 3) for crop in table["crop"])
    files = sorted(file.relative_to(tmp_path / "faces").as_posix() for file in (tmp_path / "faces").rglob("*.*"))
    assert files == table["crop"].tolist(), "and nothing else"


def test_what_a_video_gave_survives_a_line_of_json(detector, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [draw([(20, 20, 40, 0.93)])] * 3)
    result = run(path, tmp_path / "faces")
    assert VideoFaces(**json.loads(json.dumps(dataclasses.asdict(result)))) == result
    old = {key: value for key, value in dataclasses.asdict(result).items() if key not in ("detected_frames", "reused")}
    assert VideoFaces(**old).rows == result.rows, "a line of an earlier journal"


def test_a_video_without_a_face_is_searched_thoroughly_once(detector, tmp_path):
    dim = write_clip(tmp_path / "dim.mp4", [draw([(20, 20, 40, 0.6)])] * 6)
    result = run(dim, tmp_path / "faces")
    assert (result.status, len(result.rows), result.detected_frames) == ("ok", 6, 12)
    assert result.message == "faces found by the thorough pass only"
    assert {row[9] for row in result.rows} == {0.6}
    assert [len(looked) for looked in detector.looked_at.values()] == [6, 6]


def test_one_face_in_the_first_pass_is_enough_to_spare_the_second(detector, tmp_path):
    clip = write_clip(tmp_path / "c.mp4", [draw([(20, 20, 40, 1.0 if n == 4 else 0.6)]) for n in range(6)])
    result = run(clip, tmp_path / "faces")
    assert ([row[1] for row in result.rows], result.message) == ([4], "")
    assert detector.looked_at[True] == []


@pytest.mark.parametrize(
    ("images", "status", "crops"),
    [
        pytest.param([draw([])] * 5, "no_face", 0, id="nobody"),
        pytest.param([draw([(20, 20, 40, 1.0)])], "ok", 1, id="a single frame"),
        pytest.param([draw([(20, 20, 40, 0.9)])], "ok", 1, id="a single frame, a low score"),
        pytest.param([draw([(20, 20, 40, 1.0)]), draw([])], "ok", 1, id="one of two frames"),
        pytest.param([draw([(4, 4, 30, 0.91), (90, 9, 60, 0.92)])] * 2, "ok", 4, id="two faces, both doubtful"),
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_short_videos_give_their_faces(detector, images, status, crops, every, tmp_path):
    result = run(write_clip(tmp_path / "clip.mp4", images), tmp_path / "faces", detect_every=every)
    assert (result.status, len(result.rows), result.num_frames) == (status, crops, len(images))


@pytest.mark.parametrize("content", [b"", b"not a video at all\n" * 50], ids=["empty", "text"])
def test_a_file_that_is_no_video_ends_as_unreadable(detector, content, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(content)
    result = run(tmp_path / "clip.mp4", tmp_path / "faces")
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
    assert result.message == "left out: a fake without a mask, so --policy forged-mask cannot tell its forged face"


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_take_the_weights_their_recipe_names(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"some weights")
    retinaface = recipe(detector="retinaface", weights=weights_digest(weights))
    assert ExtractionSettings(recipe=retinaface, weights=weights).weights == weights
    with pytest.raises(ValueError, match=r"retinaface needs its weights file .* Pass --weights FILE"):
        ExtractionSettings(recipe=retinaface)
    weights.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=rf"begins with {retinaface.weights}, found {weights_digest(weights)}"):
        ExtractionSettings(recipe=retinaface, weights=weights)
    with pytest.raises(ValueError, match="--detector mtcnn needs no weights file"):
        ExtractionSettings(recipe=RECIPE, weights=weights)


def test_settings_refuse_a_recipe_of_another_program():
    foreign = recipe(detector="dlib", template="deepfakebench, dlib 81 points, margin 1.3")
    with pytest.raises(ValueError, match=r"cut by another program .*found 'dlib'.*found 'deepfakebench"):
        ExtractionSettings(recipe=foreign)
