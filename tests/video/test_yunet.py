"""YuNet on a network of its twelve outputs that sees brightness: boxes by hand, thresholds, errors."""

from pathlib import Path

import numpy as np
import pytest
from onnx_writer import model, node, place, tensor

from multiattn.video.detectors.registry import get_detector, load_detector
from multiattn.video.detectors.yunet import YunetDetector

STRIDES = (8, 16, 32)
BOX = (0.25, -0.5, np.log(3), np.log(2))
"""Offset of the centre in strides; log of width and height in strides, of every box of the network below."""
POINTS = np.arange(10) / 8
"""Offsets of the five landmarks, (x, y) in strides."""


def write_yunet(path: Path, *, leave_out: str = "", mean: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)) -> Path:
    """A network whose scores are the mean brightness of each cell in [0, 1], of its channels in the order blue, green,
    red weighted by `mean`; boxes and landmarks stand in the same place of every cell."""
    nodes, tensors, outputs = [], [], []
    tensors.append(tensor("grey", np.array(mean, np.float32).reshape(1, 3, 1, 1) / 255))
    nodes.append(node("Conv", ["input", "grey"], "brightness", kernel_shape=[1, 1]))
    for values, name, constants in ((1, "cls", (0.0,)), (1, "obj", (0.0,)), (4, "bbox", BOX), (10, "kps", POINTS)):
        weight = 1.0 if values == 1 else 0.0
        tensors.append(tensor(f"{name}_w", np.full((values, 1, 1, 1), weight, np.float32)))
        tensors.append(tensor(f"{name}_b", np.array(constants, np.float32)))
        tensors.append(tensor(f"{name}_shape", np.array([1, -1, values], np.int64)))
        for stride in STRIDES:
            if f"{name}_{stride}" == leave_out:
                continue
            own = f"{name}{stride}"
            nodes += [
                node("AveragePool", ["brightness"], f"{own}_p", kernel_shape=[stride] * 2, strides=[stride] * 2),
                node("Conv", [f"{own}_p", f"{name}_w", f"{name}_b"], f"{own}_c", kernel_shape=[1, 1]),
                node("Transpose", [f"{own}_c"], f"{own}_t", perm=[0, 2, 3, 1]),
                node("Reshape", [f"{own}_t", f"{name}_shape"], f"{name}_{stride}"),
            ]
            outputs.append(place(f"{name}_{stride}", [1, "cells", values]))
    path.write_bytes(model(nodes, tensors, [place("input", [1, 3, "height", "width"])], outputs))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_yunet(tmp_path_factory.mktemp("yunet") / "yunet.onnx")


def bright(shape: tuple[int, int], stride: int, row: int, column: int, value: int = 255) -> np.ndarray:
    """A dark picture, (H, W, 3), with one cell of a stride so bright."""
    image = np.zeros((*shape, 3), np.uint8)
    image[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] = value
    return image


@pytest.mark.parametrize("shape", [(320, 320), (352, 640)], ids=str)
def test_box_and_landmarks_of_a_cell_are_those_by_hand(weights, shape):
    detector = YunetDetector(threshold=0.95, weights=weights)
    (faces,) = detector([bright(shape, 32, 4, 6)])  # its cells of strides 8 and 16 are as bright, and overlap more
    best = {8: (16, 24), 16: (8, 12), 32: (4, 6)}
    expected = []
    for stride, (row, column) in best.items():
        centre = (np.array([column, row]) + BOX[:2]) * stride
        side = np.exp(BOX[2:]) * stride
        expected.append([*(centre - side / 2), *(centre + side / 2)])
    found = [box for box in faces.boxes_xyxy if any(np.allclose(box, one, atol=1e-3) for one in expected)]
    assert found and np.allclose(faces.scores, 1, atol=1e-3)
    large = np.flatnonzero(np.isclose(np.ptp(faces.boxes_xyxy[:, ::2], axis=1), 96))
    assert faces.boxes_xyxy[large].tolist() == [pytest.approx(expected[-1], abs=1e-3)]
    assert np.allclose(faces.landmarks[large[0]], (POINTS.reshape(5, 2) + [6, 4]) * 32, atol=1e-3)


@pytest.mark.parametrize(
    ("value", "threshold", "thorough", "count"),
    [(255, 0.9, False, True), (204, 0.9, False, False), (204, 0.9, True, True), (0, 0.9, True, False)],
    ids=["bright", "below the threshold", "the thorough pass takes it", "nothing there"],
)
def test_the_threshold_holds_for_each_pass(weights, value, threshold, thorough, count):
    (faces,) = YunetDetector(threshold=threshold, weights=weights)(
        [bright((320, 320), 32, 4, 6, value)], thorough=thorough
    )
    assert bool(len(faces)) == count
    assert faces.scores.max(initial=0) == pytest.approx(value / 255 if count else 0, abs=1e-3)


def test_the_network_is_given_blue_first_and_one_size_after_another(tmp_path):
    blue = YunetDetector(weights=write_yunet(tmp_path / "blue.onnx", mean=(1, 0, 0)))
    for shape in ((64, 64), (96, 160), (64, 64)):
        image = bright(shape, 32, 1, 1)
        assert [
            len(faces) > 0 for faces in blue([image, image * np.uint8([0, 0, 1]), image * np.uint8([1, 1, 0])])
        ] == [*(True, True, False)]
    assert blue([]) == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(b"", "expected face_detection_yunet_2023mar.onnx .* found another file", id="empty"),
        pytest.param(b"no network", "expected face_detection_yunet_2023mar.onnx .* found another file", id="text"),
        pytest.param("kps_32", "expected face_detection_yunet_2023mar.onnx .* found another file", id="an output less"),
        pytest.param(None, "no such weights file", id="no file"),
    ],
)
def test_weights_that_are_others_are_one_clear_error(content, found, tmp_path):
    path = tmp_path / "weights.onnx"
    if isinstance(content, str):
        write_yunet(path, leave_out=content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"weights.onnx: {found}"):
        load_detector(get_detector("yunet"), threshold=0.9, device="cpu", weights=path)
