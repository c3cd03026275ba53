"""A clip through the encoder: its frames, times and sizes afterwards."""

import numpy as np
import pytest
from PIL import Image

from drawn_faces import write_clip
from multiattn.video.decoding.frames import FrameReader, UnreadableVideoError, probe_video
from multiattn.video.decoding.reencode import ClipEncoding, UnencodableVideoError, reencode_clip


def ramps(count: int, height: int, width: int) -> list[np.ndarray]:
    """Smooth frames, each a little brighter."""
    down, across = np.mgrid[:height, :width]
    ramp = np.stack([down + across, down, across], axis=-1) % 200
    return [(ramp + 3 * number).clip(0, 255).astype(np.uint8) for number in range(count)]


def test_frames_and_times_stay_and_a_higher_crf_costs_pixels_and_saves_bytes(tmp_path):
    source = write_clip(tmp_path / "clip.mp4", ramps(20, 96, 128))
    frames, away, sizes = list(FrameReader(source, 20)), [], []
    for crf in (12, 45):
        reencode_clip(source, tmp_path / "again.mp4", ClipEncoding(crf=crf))
        again = list(FrameReader(tmp_path / "again.mp4", 20))
        assert [frame.index for frame in again] == list(range(20))
        np.testing.assert_allclose([one.seconds for one in again], [one.seconds for one in frames], atol=1e-4)
        pairs = zip(frames, again, strict=True)
        away.append(np.mean([np.abs(one.image.astype(float) - other.image).mean() for one, other in pairs]))
        sizes.append((tmp_path / "again.mp4").stat().st_size)
    assert away[0] < 3 < away[1] and sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("size_wh", "longest", "after_wh"),
    [((128, 96), None, (128, 96)), ((128, 96), 64, (64, 48)), ((96, 128), 64, (48, 64)), ((64, 48), 640, (64, 48)),
     ((75, 51), None, (76, 52)), ((128, 32), 32, (32, 16))],
)  # fmt: skip
def test_sides_are_even_no_larger_than_asked_and_never_enlarged(size_wh, longest, after_wh, tmp_path):
    (tmp_path / "clip").mkdir()
    for number, image in enumerate(ramps(3, *size_wh[::-1])):
        Image.fromarray(image).save(tmp_path / f"clip/{number}.png")
    reencode_clip(tmp_path / "clip", tmp_path / "again.mp4", ClipEncoding(longest=longest))
    shape = probe_video(tmp_path / "again.mp4")
    assert (shape.width, shape.height, shape.total_frames) == (*after_wh, 3)
    seconds = [frame.seconds for frame in FrameReader(tmp_path / "again.mp4", 3)]
    np.testing.assert_allclose(seconds, [0, 1 / 30, 2 / 30], atol=1e-4)


def test_a_side_that_the_encoder_does_not_take_is_refused(tmp_path):
    Image.new("RGB", (17_000, 16)).save(tmp_path / "wide.png")
    with pytest.raises(UnencodableVideoError, match="17000x16 pixels: x264 takes sides of at most 16384"):
        reencode_clip(tmp_path / "wide.png", tmp_path / "again.mp4", ClipEncoding())
    reencode_clip(tmp_path / "wide.png", tmp_path / "again.mp4", ClipEncoding(longest=640))


def test_a_file_without_frames_is_unreadable(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    with pytest.raises(UnreadableVideoError):
        reencode_clip(tmp_path / "clip.mp4", tmp_path / "again.mp4", ClipEncoding())
