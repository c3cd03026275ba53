"""The packets of an H.264 or HEVC stream that must be decoded for a few wanted frames.

Two kinds of packets can be left out without changing a pixel of any other frame: frames that the stream itself marks as
referenced by no other (H.264: nal_ref_idc = 0, ITU-T H.264 7.4.1; HEVC: the `_N` types of a stream of one temporal
layer, ITU-T H.265 Table 7-1), about half of what x264 writes, and whatever follows the last wanted frame up to the next
IDR frame, behind which nothing refers back. Packets come in decoding order; a frame's index is the rank of its packet's
time stamp.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import av


@dataclass(frozen=True)
class PacketFacts:
    """Properties of a packet, without decoding it."""

    pts: int | None
    sound: bool = True
    """The container does not call it damaged."""
    shown: bool = True
    """False for a frame that an edit list hides."""
    starts_anew: bool = False
    """An IDR frame: nothing after it refers to anything before it."""
    droppable: bool = False
    """No other frame is predicted from it."""
    carries_settings: bool = False
    """Parameter sets that later frames may need."""


@dataclass(frozen=True)
class DecodingPlan:
    """Packets to send to the decoder, by position in the file."""

    send: list[bool]
    restarts: frozenset[int]
    """Packets before which the decoder is emptied, since packets that it may miss were left out."""
    index_of_pts: dict[int, int]
    """Time stamp -> position in presentation order, of every packet."""
    frames: list[int]
    """The frames to keep, ascending: the wanted ones, or with `fast_frames` those that stand for them."""


class UnitParser:
    """Reads the NAL units of a stream's packets.

    Args:
        codec: FFmpeg's name.
        extradata: the stream's configuration record: `avcC` or `hvcC` of ISO/IEC 14496-15 means units with a length
            in front; otherwise they stand between the start codes of Annex B.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        record = extradata if extradata and extradata[0] == 1 else b""
        self.codec = codec
        self.length_size = 0
        self.reads_units = codec in ("h264", "hevc")
        self.understood = codec == "h264"
        if codec == "h264" and len(record) > 4:
            self.length_size = (record[4] & 3) + 1
        elif codec == "hevc" and len(record) > 21:
            self.length_size = (record[21] & 3) + 1
            # A frame that none of its own temporal layer refers to may still serve a higher layer.
            self.understood = (record[21] >> 3) & 7 == 1

    def read(self, packet: av.Packet) -> PacketFacts:
        """The facts of one packet; a damaged one is neither droppable nor a start."""
        if not self.reads_units:
            return PacketFacts(packet.pts, shown=not packet.is_discard)
        kind_of = self._h264 if self.codec == "h264" else self._hevc
        kinds = {"broken" if len(unit) < 2 or unit[0] & 0x80 else kind_of(unit) for unit in self._units(bytes(packet))}
        pictures = kinds & {"idr", "needed", "droppable"}
        return PacketFacts(
            pts=packet.pts,
            sound=not packet.is_corrupt,
            shown=not packet.is_discard,
            starts_anew=pictures == {"idr"} and "broken" not in kinds,
            droppable=kinds <= {"droppable", "remark"} and "droppable" in kinds,
            carries_settings="settings" in kinds or bool(packet.has_sidedata("new_extradata")),
        )

    def _units(self, content: bytes) -> Iterator[bytes]:
        """The first two bytes of each unit; b"" for what is none."""
        if not self.length_size:
            yield from (unit[:2] for unit in content.split(b"\0\0\1")[1:])
            return
        at = 0
        while at < len(content):
            start = at + self.length_size
            length = int.from_bytes(content[at:start], "big")
            at = start + length
            yield content[start : start + 2] if length >= 2 and at <= len(content) else b""

    @staticmethod
    def _h264(unit: bytes) -> str:
        kind, referenced = unit[0] & 31, unit[0] >> 5 & 3
        if kind == 5:
            return "idr"
        if kind == 1:
            return "needed" if referenced else "droppable"
        if kind in (6, 9, 12):  # remarks of the encoder, delimiters, filling
            return "remark"
        return "settings" if kind in (7, 8, 13, 15) else "needed"

    @staticmethod
    def _hevc(unit: bytes) -> str:
        kind, temporal_layer, picture_layer = unit[0] >> 1, (unit[1] & 7) - 1, (unit[0] & 1) << 5 | unit[1] >> 3
        if temporal_layer or picture_layer:
            return "needed"
        if kind in (19, 20):
            return "idr"
        if kind < 10:
            return "needed" if kind % 2 else "droppable"
        if kind in (35, 38, 39, 40):
            return "remark"
        return "settings" if kind in (32, 33, 34) else "needed"


def plan_decoding(
    packets: list[PacketFacts], wanted: Iterable[int], *, reorders: bool, fast_frames: bool
) -> DecodingPlan | None:
    """Plan the decoding of the wanted frames.

    Args:
        packets: of the whole stream, in the file's order.
        wanted: in order of presentation; those beyond the stream's end are left out.
        reorders: the decoder expects B-frames.
        fast_frames: take for each wanted frame the nearest one that is a reference frame (the earlier of two equally
            near), each once, and leave out all others. It is up to half the distance between two reference frames away,
            one or two frames in common videos, and fewer frames result where two wanted ones have the same nearest.

    Returns:
        None where the stream is not marked enough to leave anything out safely: time stamps that are missing, double,
        out of order, or of decoding instead of presentation (AVI has no others); or a start that is no IDR frame.
    """
    if not packets or not packets[0].starts_anew or not all(packet.sound and packet.shown for packet in packets):
        return None
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) < len(times) or (reorders and len(times) > 2 and times == sorted(times)):
        return None
    groups = _closed_groups(packets)
    if any(max(times[first:end]) >= min(times[end:last]) for (first, end), (_, last) in pairwise(groups)):
        return None
    index_of_pts = {pts: index for index, pts in enumerate(sorted(times))}
    frames = [index for index in wanted if index < len(packets)]
    if fast_frames:
        references = [index_of_pts[packet.pts] for packet in packets if not packet.droppable]
        frames = sorted({min(references, key=lambda index: (abs(index - one), index)) for one in frames})
    keep = set(frames)
    send = [False] * len(packets)
    restarts = set()
    for first, end in groups:
        kept = [number for number in range(first, end) if index_of_pts[times[number]] in keep]
        for number in range(first, kept[-1] + 1 if kept else first):
            send[number] = number in kept or not packets[number].droppable
        if kept and first:
            restarts.add(first)
    # The first packet holds x264's name and version, by which FFmpeg works around faults of old versions: without it,
    # 4:4:4 clips of FaceForensics++ come out green.
    send[0] = bool(frames)
    return DecodingPlan(send=send, restarts=frozenset(restarts), index_of_pts=index_of_pts, frames=frames)


def _closed_groups(packets: list[PacketFacts]) -> list[tuple[int, int]]:
    """(first, end) of the runs of packets that can be decoded by themselves; one run where parameter sets come with
    the frames, since a run left out might take those of a later one along."""
    if any(packet.carries_settings for packet in packets[1:]):
        return [(0, len(packets))]
    starts = [number for number, packet in enumerate(packets) if packet.starts_anew]
    return list(pairwise([*starts, len(packets)]))
