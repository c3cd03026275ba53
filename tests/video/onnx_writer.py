"""A small writer of ONNX files (onnx.proto3): what a test needs to make a network for OpenCV, without the package."""

from collections.abc import Iterable, Sequence

import numpy as np

FLOAT, INT64 = 1, 7
INTS = 7
"""Types of tensors, and that of an attribute of integers, by their numbers in onnx.proto3."""


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        low, value = value & 0x7F, value >> 7
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(name: str, values: np.ndarray) -> bytes:
    """An initializer."""
    kind = {"float32": FLOAT, "int64": INT64}[values.dtype.name]
    dims = b"".join(number(1, size) for size in values.shape)
    return dims + number(2, kind) + message(8, name) + message(9, values.tobytes())


def node(kind: str, inputs: Iterable[str], output: str, **attributes: Sequence[int]) -> bytes:
    """One operator with attributes that are lists of integers."""
    content = b"".join(message(1, name) for name in inputs) + message(2, output) + message(4, kind)
    for name, values in attributes.items():
        ints = b"".join(number(8, value) for value in values)
        content += message(5, message(1, name) + ints + number(20, INTS))
    return content


def place(name: str, shape: Sequence[int | str]) -> bytes:
    """An input or output of float32; a size that is text is left open."""
    dims = b"".join(message(1, number(1, size) if isinstance(size, int) else message(2, size)) for size in shape)
    return message(1, name) + message(2, message(1, number(1, FLOAT) + message(2, dims)))


def model(nodes: list[bytes], tensors: list[bytes], inputs: list[bytes], outputs: list[bytes]) -> bytes:
    """A file's content, of operator set 13."""
    graph = b"".join(message(1, each) for each in nodes) + message(2, "graph")
    for field, parts in ((5, tensors), (11, inputs), (12, outputs)):
        graph += b"".join(message(field, each) for each in parts)
    return number(1, 7) + message(8, number(2, 13)) + message(7, graph)
