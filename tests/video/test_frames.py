"""Evenly spaced frames of clips this test encodes itself, whole and damaged, and pictures as videos of one frame."""

import struct
import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from drawn_faces import write_clip
from multiattn.video.decoding import pictures
from multiattn.video.decoding.frames import (
    Frame,
    FrameReader,
    VideoShape,
    evenly_spaced_indices,
    probe_video,
    read_ahead,
)
from multiattn.video.decoding.pictures import UnreadableVideoError, read_image

WIDTH, HEIGHT, FPS = 64, 48, 25


def grey_of(index: int) -> int:
    """The grey level that says which frame it is, in steps of 5 that survive compression."""
    return 20 + 5 * (index % 43)


def grey_clip(path: Path, num_frames: int, *, codec: str = "libx264") -> Path:
    """A clip whose frames are plain grey, `grey_of(index)`."""
    images = [np.full((HEIGHT, WIDTH, 3), grey_of(index), dtype=np.uint8) for index in range(num_frames)]
    encoder = {"crf": "10", "g": "10", "bf": "2"} if codec == "libx264" else {"b": "5000000"}
    return write_clip(path, images, codec=codec, pixels="yuv420p", encoder=encoder)


def noise_clip(path: Path, num_frames: int, **container: str) -> Path:
    """A clip of noise, every frame a key frame, so that every frame weighs some bytes."""
    images = np.random.default_rng(0).integers(0, 256, (num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    encoder = {"g": "1", "crf": "20"}
    return write_clip(path, images, codec="libx264", pixels="yuv420p", encoder=encoder, container=container)


@pytest.mark.parametrize(
    ("total", "wanted", "indices"),
    [
        pytest.param(0, 5, [], id="no frames"),
        pytest.param(0, 0, [], id="nothing of nothing"),
        pytest.param(1, 1, [0], id="one of one"),
        pytest.param(1, 32, [0], id="one frame, many wanted"),
        pytest.param(3, 5, [0, 1, 2], id="shorter than asked"),
        pytest.param(5, 5, [0, 1, 2, 3, 4], id="as long as asked"),
        pytest.param(6, 5, [0, 1, 3, 4, 5], id="one longer than asked"),
        pytest.param(300, 1, [150], id="the middle"),
        pytest.param(2, 1, [1], id="the middle of two"),
        pytest.param(10, 2, [2, 7], id="middles of two halves"),
        pytest.param(300, 4, [37, 112, 187, 262], id="middles of four quarters"),
    ],
)
def test_indices_are_the_middles_of_equal_pieces(total, wanted, indices):
    assert evenly_spaced_indices(total, wanted) == indices


def test_indices_are_always_unique_ascending_and_inside():
    for total in range(60):
        for wanted in range(1, 40):
            indices = evenly_spaced_indices(total, wanted)
            assert indices == sorted(set(indices))
            assert len(indices) == min(total, wanted)
            assert all(0 <= index < total for index in indices)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("clip.mp4", "libx264"), ("clip.mkv", "libx264"), ("clip.avi", "mpeg4"), ("clip.mov", "mpeg4")],
    ids=["h264 in mp4", "h264 in mkv, no frame count in its header", "mpeg4 in avi", "mpeg4 in mov"],
)
def test_the_frames_are_those_of_their_indices(name, codec, tmp_path):
    path = grey_clip(tmp_path / name, 40, codec=codec)
    reader = FrameReader(path, 8)
    frames = list(reader)
    assert [frame.index for frame in frames] == evenly_spaced_indices(40, 8)
    assert (reader.num_frames, reader.message) == (8, "")
    for frame in frames:
        assert (frame.image.shape, frame.image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
        assert abs(float(frame.image.mean()) - grey_of(frame.index)) < 2
        assert frame.seconds == pytest.approx(frame.index / FPS, abs=0.5 / FPS)


def test_colours_are_rgb(tmp_path):
    path = tmp_path / "red.mp4"
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 0] = 200
    write_clip(path, [image])
    red, green, blue = next(iter(FrameReader(path, 1))).image.reshape(-1, 3).mean(axis=0)
    assert red > 180
    assert max(green, blue) < 20


@pytest.mark.parametrize(("length", "wanted"), [(1, 1), (1, 32), (3, 32)], ids=["one of one", "one", "three"])
def test_a_clip_shorter_than_asked_gives_every_frame_once(length, wanted, tmp_path):
    reader = FrameReader(grey_clip(tmp_path / "short.mp4", length), wanted)
    assert [frame.index for frame in reader] == list(range(length))
    assert reader.message == ""


def test_a_consumer_may_stop_early(tmp_path):
    reader = FrameReader(grey_clip(tmp_path / "clip.mp4", 40), 4)
    frames = iter(reader)
    assert next(frames).index == 5
    frames.close()
    assert reader.num_frames == 1


def test_reading_twice_gives_the_same_frames_and_the_same_count(tmp_path):
    reader = FrameReader(grey_clip(tmp_path / "clip.mp4", 10), 3)
    first, second = ([frame.index for frame in reader] for _ in range(2))
    assert first == second == [1, 5, 8]
    assert reader.num_frames == 3


TURNS = {"upright": (1, 0, 0, 1), "right": (0, 1, -1, 0), "half": (-1, 0, 0, -1), "left": (0, -1, 1, 0)}


@pytest.mark.parametrize(("turn", "clockwise"), [("upright", 0), ("right", 1), ("half", 2), ("left", 3)])
def test_a_portrait_recorded_lying_down_comes_out_upright(turn, clockwise, tmp_path):
    """The matrix of the track header, ISO/IEC 14496-12: x' = a x + c y, y' = b x + d y, in 16.16 fixed point.

    (0, 1, -1, 0) sends the stored top left (0, 0) -> (0, 0), right (1, 0) -> (0, 1) and down (0, 1) -> (-1, 0): a
    quarter turn clockwise on a screen whose y runs down.
    """
    path = tmp_path / "clip.mp4"
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = 220  # the stored top left is bright
    write_clip(path, [image])
    content = bytearray(path.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(identity, content.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in TURNS[turn])
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    found = next(iter(FrameReader(path, 1))).image
    shape = probe_video(path)
    assert (shape.height, shape.width) == found.shape[:2]
    expected = np.rot90(image, -clockwise)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).mean() < 5


def test_a_file_cut_off_before_its_index_is_unreadable(tmp_path):
    path = noise_clip(tmp_path / "clip.mp4", 10)
    content = path.read_bytes()
    assert content.index(b"mdat") < content.index(b"moov"), "the index comes last, as cameras write it"
    path.write_bytes(content[: content.index(b"moov") - 4])
    reader = FrameReader(path, 4)
    with pytest.raises(UnreadableVideoError, match="InvalidDataError"):
        list(reader)
    assert reader.num_frames == 0


def test_a_file_cut_off_behind_its_index_gives_the_frames_before_the_cut(tmp_path):
    path = noise_clip(tmp_path / "clip.mp4", 20, movflags="faststart")
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    whole = [frame.image for frame in FrameReader(path, 10)]
    path.write_bytes(content[: content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2])
    reader = FrameReader(path, 10)
    frames = list(reader)
    assert 3 <= len(frames) <= 5
    assert [frame.index for frame in frames] == evenly_spaced_indices(20, 10)[: len(frames)]
    for frame, image in zip(frames, whole, strict=False):
        np.testing.assert_array_equal(frame.image, image)
    assert reader.num_frames == len(frames)
    assert reader.message


def test_a_file_damaged_in_its_middle_gives_right_frames_only_and_says_so(tmp_path):
    """FFmpeg conceals a damaged frame with the pixels of another one and marks it corrupt: invented data."""
    path = noise_clip(tmp_path / "clip.mp4", 20, movflags="faststart")
    whole = {frame.index: frame.image for frame in FrameReader(path, 20)}
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat")
    low, high = start + (len(content) - start) * 2 // 5, start + (len(content) - start) * 3 // 5
    content[low:high] = bytes(high - low)
    path.write_bytes(content)
    reader = FrameReader(path, 20)
    frames = list(reader)
    assert 4 <= len(frames) < 20
    assert reader.num_frames == len(frames)
    assert reader.message
    before_the_damage = [frame for frame in frames if frame.index < 7]
    assert [frame.index for frame in before_the_damage] == list(range(7))
    for frame in frames:
        np.testing.assert_array_equal(frame.image, whole[frame.index])


def test_a_file_without_a_picture_is_unreadable(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableVideoError, match="no video stream"):
        list(FrameReader(path, 4))


@pytest.mark.parametrize("name", ["clip.mp4", "picture.jpg"])
@pytest.mark.parametrize(
    "content",
    [None, b"", b"\0", b"this is a text, not a video\n" * 50, b"\0" * 5000, b"\xff\xd8\xff\xe0 half a picture"],
    ids=["no file", "empty", "one byte", "text", "zeros", "start of a jpeg"],
)
def test_what_is_no_video_or_picture_is_unreadable_and_the_message_names_no_path(content, name, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    reader = FrameReader(tmp_path / name, 4)
    for read in (lambda: list(reader), lambda: probe_video(tmp_path / name)):
        with pytest.raises(UnreadableVideoError, match="FileNotFoundError" if content is None else ".") as caught:
            read()
        assert str(tmp_path) not in str(caught.value), "tables of two machines must be equal"
    assert reader.num_frames == 0


def frames_until(end: int, error: Exception | None = None, made: list[int] | None = None):
    for index in range(end):
        if made is not None:
            made.append(index)
        yield Frame(index=index, seconds=index / 10, image=np.full((2, 2, 3), index, np.uint8))
    if error is not None:
        raise error


@pytest.mark.parametrize("most", [1, 3, 20])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_reading_ahead_gives_the_same_frames_and_never_more_than_asked_for_ahead(length, most):
    made: list[int] = []
    for place, frame in enumerate(read_ahead(frames_until(length, made=made), most)):
        assert (frame.index, frame.image.max()) == (place, place)
        assert len(made) <= place + 1 + most
    assert made == [*range(length)]


def test_reading_ahead_raises_what_the_reader_does_after_the_frames_before_it():
    seen = []
    with pytest.raises(UnreadableVideoError, match="broken"):
        for frame in read_ahead(frames_until(3, UnreadableVideoError("broken")), 8):
            seen.append(frame.index)
    assert seen == [0, 1, 2]


def test_a_consumer_that_stops_ends_the_reading_ahead():
    made: list[int] = []
    frames = read_ahead(frames_until(100, made=made), 2)
    next(frames)
    frames.close()
    assert len(made) <= 4
    assert "ThreadPoolExecutor" not in " ".join(thread.name for thread in threading.enumerate())


def test_an_error_of_the_consumer_is_not_taken_for_damage(tmp_path):
    path = grey_clip(tmp_path / "clip.mp4", 5)
    with pytest.raises(ValueError, match="mine"):
        for _ in FrameReader(path, 5):
            raise ValueError("mine")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"], ids=["a count in the header", "none"])
def test_probing_gives_size_and_length(name, tmp_path):
    path = grey_clip(tmp_path / name, 11)
    assert probe_video(path) == VideoShape(width=WIDTH, height=HEIGHT, total_frames=11)


RAMP = np.stack(np.meshgrid(np.arange(60), np.arange(40)), axis=-1).astype(np.uint8)
PICTURE = np.concatenate([RAMP * 4, np.full((40, 60, 1), 200, np.uint8)], axis=-1)  # (40, 60, 3) RGB


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_a_picture_is_read_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(PICTURE).save(path)
    reader = FrameReader(path, 5)
    (frame,) = list(reader)
    assert (frame.index, frame.seconds, reader.num_frames, reader.message) == (0, 0.0, 1, "")
    np.testing.assert_array_equal(frame.image, PICTURE)
    assert probe_video(path) == VideoShape(width=60, height=40, total_frames=1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_grey_transparent_and_deep_pictures_become_rgb(tmp_path, mode):
    path = tmp_path / "picture.png"
    if mode == "I;16":
        cv2.imwrite(str(path), PICTURE[..., 0].astype(np.uint16) << 8)
    else:
        Image.fromarray(PICTURE).convert(mode).save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    if mode == "RGBA":
        np.testing.assert_array_equal(image, PICTURE)


def test_a_picture_lying_on_its_side_is_turned_upright(tmp_path):
    """EXIF orientation 6: the top row of what is stored is the right side of the picture."""
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(path, exif=exif, quality=100, subsampling=0)
    image = read_image(path)
    assert image.shape == (60, 40, 3)
    assert np.abs(image.astype(int) - np.rot90(PICTURE, -1)).mean() < 3


def test_a_picture_beyond_the_bound_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(UnreadableVideoError, match="60x40"):
        read_image(path)


def frame_folder(folder: Path, *names: str) -> Path:
    """A clip of grey pictures, each as grey as its place among the names."""
    folder.mkdir(parents=True)
    for place, name in enumerate(names):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), grey_of(place), np.uint8)).save(folder / name)
    return folder


def test_a_folder_of_pictures_is_a_clip_in_the_order_of_its_numbers(tmp_path):
    folder = frame_folder(tmp_path / "clip", "f_2.png", "f_10.png", "f_100.png", "f_101.png")
    (folder / "masks").mkdir()
    (folder / "notes.txt").touch()
    reader = FrameReader(folder, 2, fps=10)
    frames = list(reader)
    assert [(frame.index, frame.seconds, int(frame.image[0, 0, 0])) for frame in frames] == [
        (10, 1.0, grey_of(1)),
        (101, 10.1, grey_of(3)),
    ]
    assert (reader.num_frames, reader.message, reader.count()) == (2, "", 4)
    assert {frame.seconds for frame in FrameReader(folder, 4)} == {0.0}
    assert probe_video(folder) == VideoShape(WIDTH, HEIGHT, 4)


def test_frames_that_cannot_be_read_are_left_out_and_a_bomb_is_one_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2 * WIDTH * HEIGHT)
    folder = frame_folder(tmp_path / "clip", "0.png", "1.png", "2.png", "3.png")
    (folder / "0.png").write_bytes(b"")
    Image.fromarray(np.zeros((HEIGHT, 3 * WIDTH, 3), np.uint8)).save(folder / "1.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8)).save(folder / "2.png")
    reader = FrameReader(folder, 32)
    assert [(frame.index, frame.image.shape[1]) for frame in reader] == [(2, WIDTH + 2), (3, WIDTH)]
    assert reader.message == "2 frames of 4 were not decoded; the first: 0.png: not a readable picture"
    assert probe_video(folder) == VideoShape(WIDTH + 2, HEIGHT, 4)


@pytest.mark.parametrize("names", [(), ("0.png",)], ids=["empty", "one broken picture"])
def test_a_folder_without_a_readable_picture_is_unreadable(names, tmp_path):
    folder = frame_folder(tmp_path / "clip", *names)
    for name in names:
        (folder / name).write_bytes(b"no picture")
    for read in (lambda: list(FrameReader(folder, 3)), lambda: probe_video(folder)):
        with pytest.raises(UnreadableVideoError, match="without pictures" if not names else "1 frame of 1 was not"):
            read()
