"""Non-maximum suppression beside torchvision's, and without it."""

import subprocess
import sys

import pytest
import torch
from torchvision.ops import batched_nms as torchvision_nms

from multiattn.video.detectors.nms import MOST_SHIFTED, batched_nms


def boxes_of(number: int, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes of which many overlap, their scores, of which some are equal, and three groups."""
    draw = torch.Generator().manual_seed(number)
    corners = torch.rand(number, 2, generator=draw) * 300
    boxes = torch.cat([corners, corners + 20 + torch.rand(number, 2, generator=draw) * 60], dim=1)
    scores = (torch.rand(number, generator=draw) * 50).round() / 50
    return boxes.floor() if whole else boxes, scores, torch.randint(3, (number,), generator=draw)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("whole", [True, False], ids=["whole pixels", "fractions"])
@pytest.mark.parametrize("number", [0, 1, 300, MOST_SHIFTED["cpu"], MOST_SHIFTED["cpu"] + 1])
def test_the_same_boxes_stay_as_by_torchvision(number, whole, threshold):
    boxes, scores, groups = boxes_of(number, whole=whole)
    kept = batched_nms(boxes, scores, groups, threshold)
    assert kept.tolist() == torchvision_nms(boxes, scores, groups, threshold).tolist()
    assert kept.dtype == torch.int64


@pytest.mark.slow
def test_neither_it_nor_what_answers_for_a_clip_imports_torchvision_or_timm():
    code = """
import sys, torch, multiattn.inference.detector
from multiattn.video.detectors.nms import batched_nms
boxes, scores, group = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.5, 0.9]), torch.tensor([0, 0])
print(batched_nms(boxes, scores, group, 0.5).tolist(), {"torchvision", "timm"} & {*sys.modules})
import torchvision
print(torchvision.ops.nms(boxes, scores, 0.5).tolist())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["[1] set()", "[1]"]
