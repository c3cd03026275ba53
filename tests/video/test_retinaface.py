"""RetinaFace: names and arithmetic of the public weights, anchors by hand, and the faces of the seven real clips."""

import functools
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from multiattn.video.decoding.frames import FrameReader
from multiattn.video.detectors.mtcnn import MtcnnDetector
from multiattn.video.detectors.registry import load_detector
from multiattn.video.detectors.retinaface import RetinaFaceDetector
from multiattn.video.detectors.retinaface_network import (
    ANCHOR_SIDES,
    anchors,
    decode_boxes,
    decode_landmarks,
    load_retinaface,
    select_faces,
)
from multiattn.video.extraction.scan import pairwise_iou

State = dict[str, Tensor]
CPU = torch.device("cpu")
FRAMES = 4
MOBILENET_BLOCKS = [
    *[("body.stage1", number) for number in range(1, 6)],
    *[("body.stage2", number) for number in range(6)],
    *[("body.stage3", number) for number in range(2)],
]
MOBILENET_WIDTHS = [8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256]
MOBILENET_STRIDES = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
"""Strides of the 13 separable blocks of MobileNet v1 at a quarter of its width, without what follows the last."""


def normalised(state: State, convolution: str, normalisation: str, *shape: int) -> None:
    """Add the tensors of a convolution and its batch normalisation, of sizes that keep activations near 1."""
    state[f"{convolution}.weight"] = torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"{normalisation}.{name}"] = 0.1 * torch.randn(shape[0]) + (name in ("weight", "running_var"))
    state[f"{normalisation}.num_batches_tracked"] = torch.tensor(7)


def mobilenet_body() -> State:
    state: State = {}
    normalised(state, "body.stage1.0.0", "body.stage1.0.1", 8, 3, 3, 3)
    for (stage, number), (inputs, outputs) in zip(MOBILENET_BLOCKS, pairwise(MOBILENET_WIDTHS), strict=True):
        block = f"{stage}.{number}"
        normalised(state, f"{block}.0", f"{block}.1", inputs, 1, 3, 3)
        normalised(state, f"{block}.3", f"{block}.4", outputs, inputs, 1, 1)
    return state


def resnet_body() -> State:
    """torchvision's own names, without the classifier."""
    state = torchvision.models.resnet50(weights=None).state_dict()
    return {f"body.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}


def make_state(layout: str) -> State:
    """Random weights under the names of the public state dicts."""
    torch.manual_seed(0)
    is_small = layout == "mobilenet"
    state = mobilenet_body() if is_small else resnet_body()
    channels, width = ((64, 128, 256), 64) if is_small else ((512, 1024, 2048), 256)
    for level, inputs in enumerate(channels, start=1):
        normalised(state, f"fpn.output{level}.0", f"fpn.output{level}.1", width, inputs, 1, 1)
    for name in ("fpn.merge1", "fpn.merge2"):
        normalised(state, f"{name}.0", f"{name}.1", width, width, 3, 3)
    for level in (1, 2, 3):
        for name in ("conv3X3", "conv5X5_1", "conv5X5_2", "conv7X7_2", "conv7x7_3"):
            inputs = width if name in ("conv3X3", "conv5X5_1") else width // 4
            outputs = width // 2 if name == "conv3X3" else width // 4
            normalised(state, f"ssh{level}.{name}.0", f"ssh{level}.{name}.1", outputs, inputs, 3, 3)
        for head, values in (("ClassHead", 2), ("BboxHead", 4), ("LandmarkHead", 10)):
            state[f"{head}.{level - 1}.conv1x1.weight"] = torch.randn(2 * values, width, 1, 1) / math.sqrt(width)
            state[f"{head}.{level - 1}.conv1x1.bias"] = torch.randn(2 * values)
    return state


@pytest.fixture(scope="module", params=["mobilenet", "resnet"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def state(layout: str) -> State:
    return make_state(layout)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[object], Path]:
    def save(content: object) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


def reference(state: State, layout: str, images: Tensor) -> list[Tensor]:
    """RetinaFace written down again with functions, normalisation unfolded."""
    slope = 0.1 if layout == "mobilenet" else 0.0

    def layer(values: Tensor, convolution: str, normalisation: str, **options: int) -> Tensor:
        values = functional.conv2d(values, state[f"{convolution}.weight"], **options)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(values, *(state[f"{normalisation}.{name}"] for name in names))

    def pair(values: Tensor, name: str, *, active: bool = True) -> Tensor:
        kernel = state[f"{name}.0.weight"].shape[-1]
        values = layer(values, f"{name}.0", f"{name}.1", padding=kernel // 2)
        return functional.leaky_relu(values, slope) if active else values

    features = mobilenet_features(layer, images) if layout == "mobilenet" else resnet_features(state, images)
    fine, middle, coarse = (pair(feature, f"fpn.output{level}") for level, feature in enumerate(features, start=1))
    middle = pair(middle + functional.interpolate(coarse, size=middle.shape[2:]), "fpn.merge2")
    fine = pair(fine + functional.interpolate(middle, size=fine.shape[2:]), "fpn.merge1")
    outputs: dict[str, list[Tensor]] = {"ClassHead": [], "BboxHead": [], "LandmarkHead": []}
    for level, values in enumerate((fine, middle, coarse)):
        head = f"ssh{level + 1}"
        five = pair(values, f"{head}.conv5X5_1")
        seven = pair(pair(five, f"{head}.conv7X7_2"), f"{head}.conv7x7_3", active=False)
        three, five = pair(values, f"{head}.conv3X3", active=False), pair(five, f"{head}.conv5X5_2", active=False)
        context = functional.relu(torch.cat([three, five, seven], dim=1))
        for name, found in outputs.items():
            weight, bias = (state[f"{name}.{level}.conv1x1.{part}"] for part in ("weight", "bias"))
            cells = functional.conv2d(context, weight, bias).permute(0, 2, 3, 1)
            found.append(cells.reshape(len(images), -1, weight.shape[0] // 2))
    return [torch.cat(levels, dim=1) for levels in outputs.values()]


def mobilenet_features(layer: Callable, values: Tensor) -> Iterator[Tensor]:
    values = functional.leaky_relu(layer(values, "body.stage1.0.0", "body.stage1.0.1", stride=2, padding=1), 0.1)
    for number, (stage, block) in enumerate(MOBILENET_BLOCKS):
        name, groups = f"{stage}.{block}", values.shape[1]
        options = {"stride": MOBILENET_STRIDES[number], "padding": 1, "groups": groups}
        values = functional.leaky_relu(layer(values, f"{name}.0", f"{name}.1", **options), 0.1)
        values = functional.leaky_relu(layer(values, f"{name}.3", f"{name}.4"), 0.1)
        if number in (4, 10, 12):
            yield values


def resnet_features(state: State, values: Tensor) -> Iterator[Tensor]:
    network = torchvision.models.resnet50(weights=None).eval()
    body = {name.removeprefix("body."): tensor for name, tensor in state.items() if name.startswith("body.")}
    network.load_state_dict(body, strict=False)
    for name, module in network.named_children():
        if name == "avgpool":
            return
        values = module(values)
        if name in ("layer2", "layer3", "layer4"):
            yield values


@pytest.mark.parametrize("size_hw", [(64, 96), (45, 71)], ids=["whole strides", "odd"])
def test_the_network_is_the_published_one(layout, state, saved, size_hw):
    images = 60 * torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(1))
    network = load_retinaface(saved(state), CPU)
    with torch.inference_mode():
        found, expected = network(images), reference(state, layout, images)
    assert [values.shape[1:] for values in found] == [(len(anchors(size_hw[::-1])), values) for values in (2, 4, 10)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3 * theirs.std().item(), rtol=1e-4)
        assert theirs.std() > 0.1


@pytest.mark.parametrize(
    "disguise",
    [
        pytest.param(lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, id="data parallel"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 3}, id="of a training checkpoint"),
        pytest.param(
            lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
            id="no counters",
        ),
    ],
)
def test_the_same_weights_load_in_their_usual_wrappings(disguise, saved):
    state = make_state("mobilenet")
    network = load_retinaface(saved(disguise(state)), CPU)
    torch.testing.assert_close(network.ClassHead[1].conv1x1.weight, state["ClassHead.1.conv1x1.weight"])


def test_safetensors_and_half_precision_load_too(tmp_path):
    state = {name: tensor.half() for name, tensor in make_state("mobilenet").items()}
    save_file(state, tmp_path / "weights.safetensors")
    network = load_retinaface(tmp_path / "weights.safetensors", CPU)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()), "all folded"
    assert not network.training


def changed(**changes: Tensor | None) -> State:
    """The MobileNet state with tensors replaced, added or, where None, left out; `__` stands for a dot."""
    state = make_state("mobilenet")
    for name, tensor in changes.items():
        state.pop(name.replace("__", "."), None)
        if tensor is not None:
            state[name.replace("__", ".")] = tensor
    return state


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        pytest.param(
            lambda: changed(fpn__merge1__0__weight=None), ["MobileNet-0.25: 1 missing (fpn.merge1.0.weight)"], id="less"
        ),
        pytest.param(lambda: changed(fc__bias=torch.zeros(3)), ["1 unexpected (fc.bias)"], id="more"),
        pytest.param(
            lambda: changed(
                BboxHead__0__conv1x1__bias=torch.zeros(12), ssh1=torch.zeros(1), ssh2__conv3X3__1__bias=None
            ),
            [
                "1 missing (ssh2.conv3X3.1.bias)",
                "1 unexpected (ssh1)",
                "1 of another shape (BboxHead.0.conv1x1.bias (12,) instead of (8,))",
            ],
            id="all at once",
        ),
        pytest.param(lambda: mobilenet_body(), ["118 missing (fpn.output1.0.weight, ", ", ...)"], id="only a body"),
        pytest.param(
            lambda: {name: tensor for name, tensor in resnet_body().items() if "layer4.2" not in name},
            ["ResNet-50", "missing (body.layer4.2.conv1.weight"],
            id="another ResNet",
        ),
        pytest.param(lambda: {"a": torch.zeros(1)}, ["not RetinaFace weights", "found a."], id="another network"),
        pytest.param(dict, ["found no tensor"], id="empty"),
        pytest.param(lambda: torch.zeros(3), ["expected a state dict", "found Tensor"], id="a tensor"),
        pytest.param(lambda: {"network": Path()}, ["pickled Python objects, which are refused"], id="pickled objects"),
    ],
)
def test_weights_that_do_not_fit_say_how(content, messages, saved):
    with pytest.raises(ValueError) as error:
        load_retinaface(saved(content()), CPU)
    for message in ["weights.pth", *messages]:
        assert message in str(error.value)


def test_anchors_by_hand():
    """20 x 9 pixels: 3 x 2 cells of stride 8, 2 x 1 of stride 16, one of stride 32; x first, the smaller side first.

    640 x 640 with two anchors at strides 8, 16 and 32, as the paper counts: 2 (80² + 40² + 20²).
    """
    assert anchors((640, 640)).shape == (16800, 3)
    expected = [
        *[[x, y, side] for y in (4, 12) for x in (4, 12, 20) for side in (16, 32)],
        *[[x, 8, side] for x in (8, 24) for side in (64, 128)],
        *[[16, 16, side] for side in (256, 512)],
    ]
    assert anchors((20, 9)).tolist() == expected


def test_offsets_by_hand():
    """An anchor of 100 pixels at (50, 60): 0.1 · 2 · 100 to the right, 0.1 · 1 · 100 up, exp(0.2 · 5 ln 2) = 2 wide."""
    anchor = torch.tensor([[50.0, 60.0, 100.0]])
    boxes = decode_boxes(torch.tensor([[2.0, -1.0, 5 * math.log(2), 0.0]]), anchor)
    torch.testing.assert_close(boxes, torch.tensor([[-30.0, 0.0, 170.0, 100.0]]))
    landmarks = decode_landmarks(torch.tensor([[0.0, 0, 1, 0, 0, 1, -1, -1, 5, 5]]), anchor)
    assert landmarks.tolist() == [[[50, 60], [60, 60], [50, 70], [40, 50], [100, 110]]]


def logits(*faces: tuple[int, int, float], images: int = 2, count: int = 18) -> Tensor:
    """(B, A, 2): probability `score` at (image, anchor), next to none elsewhere."""
    values = torch.zeros(images, count, 2)
    values[..., 0] = 20
    for image, anchor, score in faces:
        values[image, anchor] = torch.tensor([0.0, math.log(score / (1 - score))])
    return values


@pytest.mark.parametrize(
    ("faces", "found"),
    [
        pytest.param([], [], id="none"),
        pytest.param([(0, 0, 0.8)], [(0, 0.8)], id="one"),
        pytest.param([(0, 0, 0.69)], [], id="below the threshold"),
        pytest.param([(1, 0, 0.8), (0, 0, 0.9)], [(0, 0.9), (1, 0.8)], id="the same place in two images, best first"),
        pytest.param([(0, 12, 0.8), (0, 14, 0.9)], [(0, 0.9)], id="IoU 0.6: the better one stays"),
        pytest.param([(0, 1, 0.8), (0, 5, 0.9)], [(0, 0.9), (0, 0.8)], id="IoU 0.33: both stay"),
    ],
)
def test_faces_are_selected(faces, found):
    """Anchors of 20 x 9 pixels; 12 and 14 are of side 64 and 16 apart, 1 and 5 of side 32 and 16 apart."""
    offsets = [torch.zeros(2, 18, values) for values in (4, 10)]
    image_index, boxes, scores, landmarks = select_faces(logits(*faces), *offsets, (20, 9), threshold=0.7)
    assert image_index.tolist() == [image for image, _ in found]
    np.testing.assert_allclose(scores, [score for _, score in found], rtol=1e-5)
    assert boxes.shape == (len(found), 4) and landmarks.shape == (len(found), 5, 2)


@pytest.mark.parametrize("thorough", [False, True])
def test_odd_frames_go_through_both_layouts(state, saved, thorough):
    """With weights that know nothing: what counts is shapes and order."""
    detector = RetinaFaceDetector(weights=saved(state), threshold=0.001)
    assert detector([], thorough=thorough) == []
    for shape in [(1, 1, 3), (37, 53, 3)]:
        found = detector([np.full(shape, 99, np.uint8)] * 3, thorough=thorough)
        assert len(found) == 3
        for faces in found:
            assert faces.boxes_xyxy.shape == (len(faces), 4) and faces.landmarks.shape == (len(faces), 5, 2)
            assert (np.diff(faces.scores) <= 0).all()


@pytest.fixture(scope="module")
def weights(shared: Path) -> Path:
    return shared / "weights" / "retinaface_mobilenet0.25.pth"


@pytest.mark.shared
def test_the_names_of_the_real_file_are_the_ones_tested(weights):
    real = torch.load(weights, map_location="cpu", weights_only=True)
    expected = make_state("mobilenet")
    assert {name.removeprefix("module."): tensor.shape for name, tensor in real.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def trained_on(sides: tuple[tuple[int, int], ...], state: State) -> State:
    """The same network with offsets from anchors of other sides: it means the same faces."""
    state = {name.removeprefix("module."): tensor.clone() for name, tensor in state.items()}
    for level, (own, others) in enumerate(zip(ANCHOR_SIDES, sides, strict=True)):
        for number, ratio in enumerate(mine / other for mine, other in zip(own, others, strict=True)):
            for part in ("weight", "bias"):
                state[f"LandmarkHead.{level}.conv1x1.{part}"][10 * number : 10 * number + 10] *= ratio
                state[f"BboxHead.{level}.conv1x1.{part}"][4 * number : 4 * number + 2] *= ratio
            state[f"BboxHead.{level}.conv1x1.bias"][4 * number + 2 : 4 * number + 4] += math.log(ratio) / 0.2
    return state


@pytest.mark.shared
@pytest.mark.parametrize(
    ("sides", "found"),
    [
        pytest.param(ANCHOR_SIDES, "", id="own"),
        pytest.param(((10, 20), (32, 64), (128, 256)), "32 as 20, 128 as 63", id="half as large"),
        pytest.param(((24, 48), (96, 192), (384, 768)), "32 as 49, 128 as 190", id="larger"),
        pytest.param(None, ".*", id="random weights"),
    ],
)
def test_weights_of_other_anchors_are_refused(sides, found, weights, saved):
    real = torch.load(weights, map_location="cpu", weights_only=True)
    path = saved(trained_on(sides, real) if sides else make_state("mobilenet"))
    if not found:
        assert load_detector(RetinaFaceDetector, threshold=0.7, device="cpu", weights=path).weights == path
        return
    with pytest.raises(ValueError, match=rf"anchors of 16, 32, 64, 128, 256, 512 pixels; .* \({found}\)"):
        load_detector(RetinaFaceDetector, threshold=0.7, device="cpu", weights=path)


@pytest.mark.shared
def test_every_frame_of_the_real_clips_shows_a_face_where_mtcnn_finds_one(shared, weights):
    """Four frames of each of seven clips, each detector at its own threshold.

    In one clip the woman's face blurs behind her hands, where MTCNN finds nothing but a portrait on the wall behind her
    (in one of 32 frames).
    """
    retinaface, mtcnn = RetinaFaceDetector(weights=weights), MtcnnDetector()
    disagreements = []
    clips = sorted((shared / "videos").rglob("*.mp4"))
    assert len(clips) == 7
    for clip in clips:
        images = [frame.image for frame in FrameReader(clip, FRAMES)]
        for number, (mine, theirs) in enumerate(zip(retinaface(images), mtcnn(images), strict=True)):
            assert len(mine), f"{clip.name}, sample {number}"
            assert len(theirs), f"{clip.name}, sample {number}"
            iou = pairwise_iou(mine.boxes_xyxy[:1], theirs.boxes_xyxy)[0]
            if iou.max() < 0.5:
                disagreements.append((clip.stem, theirs.boxes_xyxy.round().tolist()))
                continue
            width = mine.boxes_xyxy[0, 2] - mine.boxes_xyxy[0, 0]
            assert np.abs(mine.landmarks[0] - theirs.landmarks[iou.argmax()]).max() < 0.25 * width
    assert len(disagreements) <= 1 and {name for name, _ in disagreements} <= {"yhffcuhhjy"}, disagreements


@pytest.mark.shared
def test_a_real_face_is_found_at_any_size_and_by_the_second_pass_where_it_is_tiny(shared, weights):
    detector = RetinaFaceDetector(threshold=0.9, weights=weights)
    clip = shared / "videos/ffpp/original_sequences/youtube/c23/videos/519.mp4"
    frame, _ = FrameReader(clip, 2)
    (whole,) = detector([frame.image])
    tiny = cv2.resize(frame.image, (64, 48), interpolation=cv2.INTER_AREA)  # a face of 8 x 11 pixels
    assert len(whole) == 1 and len(detector([tiny])[0]) == 0
    (found,) = detector([tiny], thorough=True)
    assert len(found) == 1 and found.scores[0] >= 0.5
    assert pairwise_iou(found.boxes_xyxy * 10, whole.boxes_xyxy)[0, 0] >= 0.5


@pytest.mark.gpu
@pytest.mark.shared
def test_half_precision_finds_the_same_faces(shared, weights):
    frame, _ = FrameReader(shared / "videos/ffpp/original_sequences/youtube/c23/videos/634.mp4", 2)
    for load in (functools.partial(RetinaFaceDetector, weights=weights), MtcnnDetector):
        (there,), (here,) = load(device="cuda")([frame.image]), load(device="cpu")([frame.image])
        assert len(there) == len(here) > 0
        assert pairwise_iou(there.boxes_xyxy, here.boxes_xyxy).max(axis=1).min() > 0.9
