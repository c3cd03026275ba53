"""Which packets are left out, and that the frames are those of decoding everything."""

from pathlib import Path

import av
import numpy as np
import pytest

from drawn_faces import write_clip
from multiattn.video.decoding.frames import FrameReader, evenly_spaced_indices
from multiattn.video.decoding.packets import DecodingPlan, PacketFacts, UnitParser, plan_decoding

FPS = 25


def write_motion(
    path: Path,
    num_frames: int = 40,
    *,
    codec: str = "libx264",
    size_wh: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    pts: list[int] | None = None,
    **encoder: str,
) -> Path:
    """A clip in which everything moves, so that a wrong reference frame shows; `pts` in milliseconds."""
    rng = np.random.default_rng(3)
    width, height = size_wh
    scene = rng.integers(0, 256, (height // 4 + 12, width // 4 + 60, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    images = [
        np.ascontiguousarray(scene[index % 40 : index % 40 + height, 3 * index : 3 * index + width])
        for index in range(num_frames)
    ]
    encoder = {"g": "250", **{name.replace("_", "-"): value for name, value in encoder.items()}}
    return write_clip(path, images, codec=codec, pixels=pixels, encoder=encoder, pts=pts)


def decode_everything(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def plan_of(path: Path, num_frames: int, *, fast_frames: bool = False) -> DecodingPlan | None:
    """The packets that FrameReader would send to the decoder."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        parser = UnitParser(stream.codec_context.name, stream.codec_context.extradata)
        packets = [parser.read(packet) for packet in container.demux(stream) if packet.size]
        reorders = stream.codec_context.has_b_frames
    wanted = evenly_spaced_indices(len(packets), num_frames)
    return plan_decoding(packets, wanted, reorders=reorders, fast_frames=fast_frames) if parser.understood else None


STREAMS = [
    pytest.param("a.mp4", {}, 30, id="h264, 3 B-frames and a pyramid, as x264 makes it"),
    pytest.param("a.mp4", {"bf": "2", "x264_params": "b-pyramid=none"}, 25, id="h264, no B-frame is referenced"),
    pytest.param("a.mp4", {"bf": "0"}, 40, id="h264, nothing to leave out"),
    pytest.param("a.mp4", {"g": "8", "sc_threshold": "0"}, 34, id="h264, short groups"),
    pytest.param("a.mp4", {"g": "8", "x264_params": "open-gop=1"}, 34, id="h264, open groups"),
    pytest.param("a.mp4", {"x264_params": "slices=3"}, 30, id="h264, three slices a frame"),
    pytest.param("a.mp4", {"x264_params": "interlaced=1"}, 30, id="h264, interlaced"),
    pytest.param("a.mp4", {"x264_params": "intra-refresh=1:keyint=10"}, 30, id="h264, no IDR but the first"),
    pytest.param("a.mkv", {}, 30, id="h264 in mkv"),
    pytest.param("a.avi", {}, None, id="h264 in avi, no times of presentation"),
    pytest.param("a.ts", {"g": "10"}, 34, id="h264 in a transport stream: start codes, headers with the frames"),
    pytest.param("a.mp4", {"pixels": "yuv420p10le"}, 30, id="h264, 10 bits"),
    pytest.param("a.mp4", {"pixels": "yuv444p", "size_wh": (67, 45)}, 33, id="h264, odd size"),
    pytest.param("a.mp4", {"codec": "libx265"}, 30, id="hevc"),
    pytest.param("a.mp4", {"codec": "libx265", "x265_params": "temporal-layers=2"}, None, id="hevc in two layers"),
    pytest.param("a.mp4", {"codec": "mpeg4"}, None, id="mpeg4"),
    pytest.param("a.webm", {"codec": "libvpx-vp9"}, None, id="vp9"),
]


@pytest.mark.parametrize("num_frames", [1, 4, 40])
@pytest.mark.parametrize(("name", "options", "most"), STREAMS)
def test_frames_left_out_change_no_pixel_of_the_others(name, options, most, num_frames, tmp_path):
    path = write_motion(tmp_path / name, **options)
    whole = decode_everything(path)
    assert len(whole) == 40
    frames = list(FrameReader(path, num_frames))
    assert [frame.index for frame in frames] == evenly_spaced_indices(40, num_frames)
    for frame in frames:
        np.testing.assert_array_equal(frame.image, whole[frame.index])
    plan = plan_of(path, num_frames)
    if most is None:
        assert plan is None
    elif num_frames == 4:
        assert sum(plan.send) <= most


def test_fast_frames_are_the_nearest_reference_frames(tmp_path):
    path = write_motion(tmp_path / "a.mp4", bf="2", x264_params="b-pyramid=none:b-adapt=0:scenecut=0")
    whole = decode_everything(path)
    exact, fast = (list(FrameReader(path, 5, fast_frames=fast)) for fast in (False, True))
    assert [frame.index for frame in exact] == [4, 12, 20, 28, 36]
    assert [frame.index for frame in fast] == [3, 12, 21, 27, 36], "with two B-frames each third one is a reference"
    for frame in fast:
        np.testing.assert_array_equal(frame.image, whole[frame.index])
        assert frame.seconds == pytest.approx(frame.index / FPS, abs=0.5 / FPS)


def test_fast_frames_come_once_each(tmp_path):
    path = write_motion(tmp_path / "a.mp4", 12, bf="2", x264_params="b-pyramid=none:b-adapt=0:scenecut=0")
    reader = FrameReader(path, 12, fast_frames=True)
    indices = [frame.index for frame in reader]
    assert indices == [0, 3, 6, 9, 11]
    assert (reader.num_frames, reader.message) == (5, "")


def test_a_stream_without_facts_gives_the_wanted_frames_though_fast_ones_are_allowed(tmp_path):
    path = write_motion(tmp_path / "a.mp4", codec="mpeg4")
    assert [frame.index for frame in FrameReader(path, 4, fast_frames=True)] == [5, 15, 25, 35]


def test_a_variable_frame_rate_keeps_indices_and_times(tmp_path):
    pts = [40 * index + (300 if index > 20 else 0) + (7 if index % 3 == 0 else 0) for index in range(40)]
    path = write_motion(tmp_path / "a.mp4", pts=pts)
    whole = decode_everything(path)
    frames = list(FrameReader(path, 8))
    assert [frame.index for frame in frames] == evenly_spaced_indices(40, 8)
    for frame in frames:
        np.testing.assert_array_equal(frame.image, whole[frame.index])
        assert frame.seconds == pytest.approx(pts[frame.index] / 1000, abs=1e-3)


NEEDED, DROP, IDR = {}, {"droppable": True}, {"starts_anew": True}


def packets(*facts: tuple[int | None, dict]) -> list[PacketFacts]:
    return [PacketFacts(pts=pts, **values) for pts, values in facts]


@pytest.mark.parametrize(
    ("facts", "wanted", "send"),
    [
        pytest.param([(0, IDR)], [0], "1", id="one frame"),
        pytest.param([(0, IDR), (2, NEEDED), (1, DROP)], [2], "11", id="nothing after the last wanted one"),
        pytest.param([(0, IDR), (2, NEEDED), (1, DROP), (3, NEEDED)], [3], "1101", id="a B-frame nobody wants"),
        pytest.param([(0, IDR), (2, NEEDED), (1, DROP), (3, NEEDED)], [1], "111", id="a wanted B-frame"),
        pytest.param(
            [(0, IDR), (1, NEEDED), (2, IDR), (3, NEEDED)], [2], "1010", id="a group nobody wants but for its head"
        ),
        pytest.param([(0, IDR), (1, NEEDED), (2, IDR), (3, NEEDED)], [0, 3], "1011", id="the end of a group"),
        pytest.param(
            [(0, IDR), (1, NEEDED), (2, IDR), (3, {"carries_settings": True})], [2], "111", id="settings on the way"
        ),
        pytest.param([(0, IDR), (1, NEEDED)], [0, 7], "1", id="wanted beyond the end"),
        pytest.param([(0, IDR)], [], "", id="nothing wanted"),
    ],
)
def test_what_is_sent_to_the_decoder(facts, wanted, send):
    plan = plan_decoding(packets(*facts), wanted, reorders=False, fast_frames=False)
    assert "".join("01"[one] for one in plan.send).rstrip("0") == send.rstrip("0")


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param([], id="no packets"),
        pytest.param([(0, NEEDED), (1, NEEDED)], id="a start in the middle"),
        pytest.param([(0, IDR), (None, NEEDED)], id="no time stamp"),
        pytest.param([(0, IDR), (1, NEEDED), (1, NEEDED)], id="two of one time"),
        pytest.param([(0, IDR), (9, NEEDED), (3, IDR), (10, NEEDED)], id="groups that overlap"),
        pytest.param([(0, IDR), (1, {"sound": False})], id="a damaged packet"),
        pytest.param([(0, IDR), (1, NEEDED), (2, DROP)], id="times of decoding, not of presentation"),
    ],
)
def test_where_a_stream_says_too_little_everything_is_decoded(facts):
    assert plan_decoding(packets(*facts), [0], reorders=True, fast_frames=False) is None


@pytest.mark.shared
@pytest.mark.parametrize(
    ("clip", "num_frames", "share"),
    [
        pytest.param("dfdc/dfdc_train_part_10/yhffcuhhjy.mp4", 8, 0.6, id="4:2:0"),
        # 4:4:4 of an old x264, which FFmpeg decodes rightly only after it has seen the first packet.
        pytest.param("ffpp/original_sequences/youtube/c23/videos/519.mp4", 1, 0.2, id="4:4:4, nothing wanted at first"),
    ],
)
def test_a_real_clip_loses_no_pixel_and_much_of_its_packets(shared, clip, num_frames, share):
    path = shared / "videos" / clip
    plan = plan_of(path, num_frames)
    assert sum(plan.send) < share * len(plan.send)
    expected = evenly_spaced_indices(len(plan.send), num_frames)
    with av.open(str(path)) as container:
        whole = dict(item for item in enumerate(container.decode(video=0)) if item[0] in expected)
    frames = list(FrameReader(path, num_frames))
    assert [frame.index for frame in frames] == expected
    for frame in frames:
        np.testing.assert_array_equal(frame.image, whole[frame.index].to_ndarray(format="rgb24"))
