"""Width and height of pictures by their headers: JPEG, PNG and WebP."""

import struct

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that are followed by its size."""
_PNG = struct.Struct(">8s4x4sII")


def picture_size(head: bytes) -> tuple[int, int] | None:
    """Width and height that a picture's header names; None where none is found in these bytes."""
    return jpeg_size(head) or _png_size(head) or _webp_size(head)


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG's header names; None where it is no JPEG or has no such header."""
    if not content.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in _JPEG_FRAMES:
            height, width = (int.from_bytes(content[place + i : place + i + 2], "big") for i in (5, 7))
            return width, height
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def _png_size(head: bytes) -> tuple[int, int] | None:
    if len(head) < _PNG.size:
        return None
    signature, kind, width, height = _PNG.unpack(head[: _PNG.size])
    return (width, height) if signature == b"\x89PNG\r\n\x1a\n" and kind == b"IHDR" else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Size in any of its three forms: lossy, lossless, and extended (RFC 9649, sections 2.5 to 2.7)."""
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None
