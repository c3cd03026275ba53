"""From a clip to an answer: the numbers of `score` and `submit`, each kind of input, runs by name, what is written."""

import doctest
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from multiattn import DeepfakeDetector
from multiattn.__main__ import main
from multiattn.inference import detector as module
from multiattn.inference.detector import Answer, Coverage, FaceAnswer, FrameAnswer, answers_table
from multiattn.inference.distances import keep_distances
from multiattn.inference.kit.options import BundleOptions
from multiattn.inference.runs import find_models
from multiattn.inference.score_files import ScoredFiles, describe_spans, unbroken, usual_step
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.runtime import layout
from multiattn.runtime.files import write_digests
from multiattn.scoring.answers import MANIPULATED, answer_in_words, held_out_answers
from multiattn.video.decoding.frames import FrameReader
from pipeline import Pipeline

ALL = 10**6
"""More frames than a clip has."""


@pytest.fixture(scope="module")
def detector(pipeline: Pipeline) -> DeepfakeDetector:
    return DeepfakeDetector.load(pipeline.experiment, device="cpu")


def clips(pipeline: Pipeline) -> list[Path]:
    return sorted((pipeline.dataset / "test_videos").glob("*.mp4"))


@pytest.mark.slow
def test_the_numbers_are_those_of_score_and_of_a_submission(
    detector, pipeline: Pipeline, submission: Path, tmp_path, capsys
):
    """Of `score` to the last bit; of `submit`, whose batches are others, to rounding."""
    answers = detector.predict([str(path) for path in clips(pipeline)])
    words = ["--json", tmp_path / "answers.json", "--csv", tmp_path / "answers.csv", "--device", "cpu", "--jobs", 1]
    assert main(["score", *map(str, words), "--runs", str(pipeline.experiment), *map(str, clips(pipeline))]) == 0
    assert f"written: {tmp_path / 'answers.json'}, {tmp_path / 'answers.csv'}" in capsys.readouterr().out
    written = json.loads((tmp_path / "answers.json").read_text())
    assert written["runs"] == ["demo_tiny/fold0", "demo_tiny/fold1"] and written["notes"] == detector.notes
    for answer, of_file in zip(answers, written["files"], strict=True):
        assert of_file.keys() == vars(answer).keys()
        assert (of_file["file"], of_file["probability"]) == (answer.file, answer.probability)
        assert [face["probability"] for face in of_file["faces"]] == [face.probability for face in answer.faces]
        frames = [frame["probability"] for face in of_file["faces"] for frame in face["frames"]]
        assert frames == [frame.probability for face in answer.faces for frame in face.frames]
    table, expected = pd.read_csv(tmp_path / "answers.csv", float_precision="round_trip"), answers_table(answers)
    for column in ("level", "file", "track", "probability", "x1"):
        assert table[column].fillna(-1).tolist() == expected[column].fillna(-1).tolist()

    submitted = pd.read_csv(submission / "video_predictions.csv").set_index("video_id")
    for answer in answers:
        row = submitted.loc[f"folder/{Path(answer.file).stem}"]
        assert (row["status"], row["num_crops"]) == (answer.status, answer.coverage.crops)
        assert answer.status != "ok" or row["probability"] == pytest.approx(answer.probability, abs=1e-6)


def test_frames_in_memory_a_picture_and_a_folder_give_the_numbers_of_their_files(
    detector, pipeline: Pipeline, tmp_path
):
    path = next(path for path in clips(pipeline) if detector.predict(path).status == "ok")
    frames = list(FrameReader(path, ALL))
    rate = 1 / (frames[1].seconds - frames[0].seconds)
    picture = tmp_path / "folder" / "face.png"
    picture.parent.mkdir()
    cv2.imwrite(str(picture), cv2.cvtColor(frames[0].image, cv2.COLOR_RGB2BGR))
    images = np.stack([frame.image for frame in frames])  # (N, H, W, 3)
    clip, in_memory, one = detector.predict([path, images, picture], fps=rate)
    assert in_memory.file == f"{len(frames)} frames of {images.shape[2]}x{images.shape[1]}"
    assert (in_memory.probability, in_memory.coverage) == (clip.probability, clip.coverage)
    for there, here in zip(clip.faces, in_memory.faces, strict=True):
        assert [frame.probability for frame in here.frames] == [frame.probability for frame in there.frames]
        assert [frame.box_xyxy for frame in here.frames] == [frame.box_xyxy for frame in there.frames]
        assert [frame.seconds for frame in here.frames] == pytest.approx([frame.seconds for frame in there.frames])
    assert one.probability != clip.probability
    alone, by_itself = detector.predict(frames[0].image), detector.predict(picture)
    assert detector.predict(picture.parent) == [by_itself] and by_itself.probability == alone.probability
    assert by_itself.probability == pytest.approx(one.probability, abs=1e-6), "in a batch of another size"
    assert alone.faces[0].spans == ((0.0, 0.0),) and alone.coverage == Coverage(1, 1, 1)
    assert detector.predict([]) == []


def test_views_move_probabilities_and_nothing_else(detector, pipeline: Pipeline):
    flipping = DeepfakeDetector.load(pipeline.experiment, tta="flip", scoring="none", device="cpu")
    path = next(path for path in clips(pipeline) if detector.predict(path).status == "ok")
    alone, flipped = ([*one.predict(path).faces[0].frames] for one in (detector, flipping))
    assert [replace(frame, probability=0.5) for frame in alone] == [replace(it, probability=0.5) for it in flipped]
    assert max(abs(one.probability - other.probability) for one, other in zip(alone, flipped, strict=True)) > 1e-5


@pytest.mark.parametrize(
    ("media", "options", "error", "message"),
    [
        pytest.param("gone.mp4", {}, FileNotFoundError, "gone.mp4: no such file or folder", id="no file"),
        pytest.param(np.zeros((2, 8, 8, 3)), {}, ValueError, r"RGB uint8 .* found float64 \(2, 8, 8, 3\)", id="dtype"),
        pytest.param(np.zeros((2, 8, 8), np.uint8), {}, ValueError, r"found uint8 \(2, 8, 8\)", id="no channels"),
        pytest.param(np.zeros((0, 8, 8, 3), np.uint8), {}, ValueError, r"found uint8 \(0, 8, 8, 3\)", id="no frames"),
        pytest.param(np.full((2, 8, 8, 3), None), {}, ValueError, r"found object \(2, 8, 8, 3\)", id="objects"),
        pytest.param(np.array(None), {}, ValueError, r"found object \(\)", id="no dimension"),
        pytest.param(None, {}, ValueError, "a list of them, found NoneType", id="nothing"),
        pytest.param(3, {}, ValueError, "a list of them, found int", id="a number"),
        pytest.param([None], {}, ValueError, "found NoneType in a list", id="nothing in a list"),
        pytest.param([["gone.mp4"]], {}, ValueError, "found list in a list", id="a list in a list"),
        pytest.param(b"gone.mp4", {}, ValueError, "found int in a list", id="bytes"),
        pytest.param("gone.mp4", {"fps": 0}, ValueError, "above 0, found 0", id="no frames a second"),
        pytest.param("gone.mp4", {"fps": np.inf}, ValueError, "above 0, found inf", id="endless frames a second"),
    ],
)
def test_what_is_no_clip_is_refused_before_any_work(detector, media, options, error, message):
    with pytest.raises(error, match=message):
        detector.predict(media, **options)


def test_less_than_one_process_is_refused_and_does_not_leave_the_files_out(pipeline: Pipeline, box_run):
    with pytest.raises(ValueError, match="--jobs: expected at least 1, found 0"):
        DeepfakeDetector.load(pipeline.experiment, box_run, jobs=0)


def test_a_precision_that_there_is_not_is_refused(pipeline: Pipeline):
    with pytest.raises(ValueError, match=r"precision: expected auto, .* found 'half'"):
        DeepfakeDetector.load(pipeline.experiment, precision="half")


def test_a_damaged_distance_is_fitted_again(detector, pipeline: Pipeline, tmp_path, caplog):
    folder = shutil.copytree(pipeline.experiment, tmp_path / pipeline.experiment.name)
    (folder / "fold0" / "distance.safetensors").write_bytes(b"cut off")
    keep_distances(find_models(folder / "fold0"), pipeline.faces, device=detector.device)
    assert "distance.safetensors: not a complete safetensors file" in caplog.text


def test_a_file_that_cannot_be_read_has_an_answer_and_one_of_the_training_a_doubt(detector, pipeline, tmp_path):
    seen = next(iter(sorted(detector.models[0].trained_videos())))
    path = tmp_path / f"{Path(seen).name}.mp4"
    path.write_bytes(b"nothing a decoder knows")
    answer = detector.predict(path)
    assert (answer.probability, answer.status, answer.faces) == (None, "unreadable", ()) and answer.reason
    assert answer.doubts == (f"demo_tiny has seen {seen} in its training, by the name",)
    assert answer.coverage == Coverage(0, 0, 0)


def test_the_example_of_the_class_runs(pipeline: Pipeline, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "dfdc_b4").symlink_to(pipeline.experiment)
    (tmp_path / "clip.mp4").symlink_to(clips(pipeline)[0])
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(module.DeepfakeDetector, "DeepfakeDetector"):
        runner.run(example)
    assert runner.summarize().failed == 0 and runner.tries >= 8


def face_rows(video: str, track: int, seconds: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"video_id": video, "track": track, "frame_index": range(len(seconds)), "seconds": seconds})


@pytest.mark.parametrize(
    ("tracks", "spans"),
    [
        pytest.param({0: [2.0]}, ["2.0"], id="one frame"),
        pytest.param({0: [0.5, 1.5, 2.5]}, ["0.5 to 2.5"], id="all the time"),
        pytest.param({0: [0.5, 1.5, 5.5, 6.5]}, ["0.5 to 1.5, 5.5 to 6.5"], id="away in between"),
        pytest.param({0: [1, 2, 3, 4], 1: [1, 4]}, ["1.0 to 4.0", "1.0, 4.0"], id="away while another is there"),
        pytest.param({0: [0.0, 0.0]}, ["0.0"], id="a stream without times"),
    ],
)
def test_a_face_has_the_times_it_was_there(tracks, spans):
    rows = {track: face_rows("file/0", track, seconds) for track, seconds in tracks.items()}
    step = usual_step(pd.concat(rows.values()))
    found = [
        describe_spans([(piece["seconds"].iloc[0], piece["seconds"].iloc[-1]) for piece in unbroken(of_face, step)])
        for of_face in rows.values()
    ]
    assert found == spans


def test_the_table_has_a_line_for_each_person_but_not_for_a_picture_of_one():
    columns = ["file", "video_id", "probability", "faces", "frames", "crops", "status", "reason"]
    rows = [
        ("a.mp4", "file/0", 0.75, 2, 3, 4, "ok", ""),
        ("b.png", "file/1", 0.25, 1, 1, 1, "ok", ""),
        ("c.mp4", "file/2", np.nan, 0, 3, 0, "no_face", ""),
    ]
    faces = [("file/0", 0, 0.8, 3, [(0.0, 2.0)]), ("file/0", 3, 0.3, 1, [(1.0, 1.0)]), ("file/1", 0, 0.25, 1, [(0, 0)])]
    faces = pd.DataFrame(faces, columns=["video_id", "track", "probability", "crops", "spans"])
    shown = ScoredFiles(pd.DataFrame(rows, columns=columns), faces, pd.DataFrame()).describe().splitlines()
    assert [line.split() for line in shown] == [
        ["file", "P(fake)", "faces", "frames", "crops", "seconds", "status", "reason"],
        ["a.mp4", "0.7500", "2", "3", "4", "ok"],
        ["face", "0", "0.8000", "3", "0.0", "to", "2.0"],
        ["face", "3", "0.3000", "1", "1.0"],
        ["b.png", "0.2500", "1", "1", "1", "ok"],
        ["c.mp4", "-", "0", "3", "0", "no_face"],
    ]


def test_the_written_table_has_a_row_a_file_a_face_and_a_frame():
    frames = tuple(FrameAnswer(place, place / 2, 0.5, (1.0, 2.0, 3.0, 4.0), 0.9, 7.5) for place in (0, 4))
    face = FaceAnswer(1, 0.25, ((0.0, 0.0), (2.0, 2.0)), frames)
    made = [
        Answer(
            "a.mp4",
            0.75,
            "ok",
            "late",
            ("late", "seen"),
            Coverage(8, 2, 2),
            (face,),
            answer_in_words(0.75, None, ["late"]),
        ),
        Answer("b.mp4", None, "unreadable", "bad", (), Coverage(0, 0, 0), (), answer_in_words(None, None)),
    ]
    table = answers_table(made)
    assert table["level"].tolist() == ["file", "face", "frame", "frame", "file"]
    assert table["probability"].fillna(-1).tolist() == [0.75, 0.25, 0.5, 0.5, -1]
    assert table["track"].fillna(-1).tolist() == [-1, 1, 1, 1, -1]
    assert table.loc[0, "answer"].startswith("cannot tell: late; ")
    assert table.loc[1, "spans"] == "0.0, 2.0" and table.loc[0, "doubts"] == "late; seen"
    assert table.loc[3, ["frame_index", "seconds", "x1", "y2", "distance"]].tolist() == [4, 2.0, 1.0, 4.0, 7.5]
    assert table.loc[4, ["status", "reason", "frames"]].tolist() == ["unreadable", "bad", 0]
    assert answers_table([]).empty


@pytest.mark.parametrize(
    ("sides", "distances", "words"),
    [
        pytest.param([60, 60, 60], [None] * 3, MANIPULATED, id="large faces, distance not measured"),
        pytest.param([60, 60, 40], [0.5] * 3, "cannot tell: a face of 48 px is seen in 2 of 3 frames", id="small ones"),
        pytest.param([60, 60, 60], [0.5, 1.5, 1.5], "cannot tell: 67% of the faces are unlike", id="unlike ones"),
        pytest.param([], [], "cannot tell: no face was found", id="no face"),
    ],
)
def test_a_file_is_answered_in_words_or_doubted(sides, distances, words, pipeline):
    labels, order = np.arange(400) % 2, np.arange(400)
    held_out = held_out_answers(labels, 0.3 + 0.4 * labels, order % 8, order % 4, datasets=["dfdc"], crops=1)
    detector = DeepfakeDetector.load(pipeline.experiment, device="cpu")
    detector = replace(detector, rule=replace(detector.rule, held_out=held_out))
    frames = tuple(
        FrameAnswer(place, 0.0, 0.9, (0.0, 0.0, 20.0, float(side)), 0.9, distance)
        for place, (side, distance) in enumerate(zip(sides, distances, strict=True))
    )
    row = SimpleNamespace(status="ok", probability=0.9 if sides else float("nan"), frames=3)
    found = detector._in_words(row, [FaceAnswer(0, 0.9, (), frames)] if frames else [])
    assert str(found).startswith(words)
    answer = Answer("a.mp4", 0.9, "ok", "", (), Coverage(3, len(sides), len(sides)), (), found)
    first, thresholds, sound = detector.in_words([answer])
    assert first.startswith(f"a.mp4: {words}") and thresholds.startswith('"looks manipulated" from P(fake) 0.700')
    assert sound == "Sound was not examined."


@pytest.fixture
def packaged(pipeline: Pipeline, tmp_path, monkeypatch) -> Path:
    """A tiny packaged run, and a working directory without runs."""
    folder = tmp_path / "package" / "pretrained" / layout.DEFAULT_RUN
    shutil.copytree(pipeline.experiment / "fold0", folder / "fold0")
    write_digests(folder / layout.DIGESTS_FILE)
    monkeypatch.setattr(layout, "PRETRAINED", folder.parent)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_packaged_run_goes_by_its_name_and_is_taken_where_none_is_named(packaged: Path, pipeline, tmp_path, capsys):
    for found in (DeepfakeDetector.load(device="cpu"), DeepfakeDetector.load("dfdc_lite", device="cpu")):
        assert [model.path for model in found.models] == [packaged / "fold0"]
        assert [model.name for model in found.models] == ["dfdc_lite/fold0"]
    submit = SubmitInputs(runs=(Path("dfdc_lite"),), videos_dir=tmp_path, sample_submission=tmp_path, out=tmp_path)
    assert submit.runs == BundleOptions(runs=(Path("dfdc_lite"),), out=tmp_path).runs == (packaged,)
    clip = str(clips(pipeline)[0])
    assert main(["score", clip, "--device", "cpu"]) == 0
    by_default = capsys.readouterr().out.splitlines()
    assert by_default[0] == "no --runs: by the packaged run dfdc_lite"
    assert main(["score", "--device", "cpu", "--runs", "dfdc_lite", clip]) == 0
    assert capsys.readouterr().out.splitlines() == by_default[1:]
    (tmp_path / "dfdc_lite").mkdir()
    assert layout.named_run("dfdc_lite") == Path("dfdc_lite"), "a folder of that name goes first"
    assert layout.named_run("runs/dfdc_lite") == Path("runs/dfdc_lite")


def test_without_a_packaged_run_its_name_is_an_error_that_says_what_there_is(tmp_path, monkeypatch, capsys):
    (tmp_path / "pretrained" / "other").mkdir(parents=True)
    monkeypatch.setattr(layout, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    for call in (DeepfakeDetector.load, lambda: DeepfakeDetector.load("dfdc_lite")):
        with pytest.raises(FileNotFoundError, match=r"dfdc_lite: expected a run folder, .*: other\)\. Name .*--runs"):
            call()
    assert main(["score", "clip.mp4"]) == 2
    assert "dfdc_lite: expected a run folder" in capsys.readouterr().err
    assert layout.named_run("runs") == Path("runs"), "left to whoever reads it"
