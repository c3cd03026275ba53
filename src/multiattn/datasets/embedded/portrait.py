"""The one photograph every actor is made of, with its landmarks, outlines and soft masks.

The portrait is `skimage.data.astronaut()`: Eileen Collins, NASA, public domain, 512 x 512 RGB, inside the scikit-image
wheel. All coordinates below are normalised by 512, so (1, 1) is the lower right corner.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import skimage.data

PORTRAIT_SIZE = 512

# Left eye, right eye (as seen in the picture), nose tip, left and right mouth corner: the output of
# facenet_pytorch.MTCNN(keep_all=True).detect(portrait, landmarks=True), the one box found, score 1.0000.
LANDMARKS = np.array(
    [[0.40041, 0.19869], [0.48196, 0.20257], [0.43881, 0.25189], [0.39398, 0.27195], [0.47903, 0.27707]], np.float64
)

# Drawn by hand over a 4x enlargement of the portrait with a 20 pixel grid.
FACE_OVAL = np.array([[184, 89], [198, 85], [226, 87], [252, 92], [264, 97], [267, 118], [262, 146], [252, 164]], float)
FACE_OVAL = np.vstack([FACE_OVAL, [[238, 175], [224, 178], [210, 174], [196, 164], [186, 146], [182, 118]]]) / 512
SKIN = [
    [184, 80],
    [198, 77],
    [216, 83],
    [240, 82],
    [256, 88],
    [266, 96],
    [269, 120],
    [276, 126],
    [276, 136],
    [268, 138],
]
SKIN += [[264, 148], [258, 160], [255, 188], [226, 190], [188, 186], [185, 152], [180, 134], [170, 122], [172, 112]]
SKIN += [[181, 114], [182, 96]]
SKIN = np.array(SKIN, float) / 512
EYES_AND_TEETH = np.array([[204, 101], [246, 103], [223, 145]]) / 512
EYES_AND_TEETH_HALF_SIZE = np.array([[9, 4], [9, 4], [17, 5]]) / 512
HEAD = [
    [186, 192],
    [184, 150],
    [177, 132],
    [172, 119],
    [160, 108],
    [155, 90],
    [154, 70],
    [160, 56],
    [174, 42],
    [192, 31],
]
HEAD += [
    [214, 18],
    [236, 16],
    [262, 22],
    [280, 36],
    [293, 60],
    [299, 85],
    [296, 102],
    [286, 120],
    [276, 133],
    [268, 136],
]
HEAD += [[264, 146], [258, 160], [255, 172], [255, 192]]
HEAD = np.array(HEAD, float) / 512
BODY = [
    [30, 512],
    [36, 330],
    [43, 286],
    [64, 257],
    [96, 234],
    [110, 212],
    [114, 190],
    [126, 167],
    [150, 154],
    [184, 150],
]
BODY += [[254, 170], [274, 184], [291, 206], [303, 236], [314, 241], [334, 256], [349, 282], [357, 320], [362, 512]]
BODY = np.array(BODY, float) / 512


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """The photograph and what is where in it; every mask is (512, 512) float32 in [0, 1] with soft edges."""

    rgb: np.ndarray  # (512, 512, 3) uint8
    person: np.ndarray  # head and body; 0 is background
    skin: np.ndarray  # face, ears and neck without eyes and teeth
    hair: np.ndarray
    face: np.ndarray  # the face oval, brow to chin


def _filled(polygon: np.ndarray, feather: float) -> np.ndarray:
    mask = np.zeros((PORTRAIT_SIZE, PORTRAIT_SIZE), np.float32)
    points = np.round(polygon * PORTRAIT_SIZE * 16).astype(np.int32)
    cv2.fillPoly(mask, [points], 1.0, lineType=cv2.LINE_AA, shift=4)
    return np.clip(cv2.GaussianBlur(mask, (0, 0), feather), 0, 1)


@lru_cache(maxsize=1)
def load_portrait() -> Portrait:
    """The portrait with its masks; read once a process."""
    rgb = skimage.data.astronaut()
    head = _filled(HEAD, 1.0)
    columns, rows = np.meshgrid(*[np.arange(PORTRAIT_SIZE, dtype=np.float32)] * 2)
    eyes_and_teeth = np.zeros_like(head)
    for centre, half_size in zip(EYES_AND_TEETH * PORTRAIT_SIZE, EYES_AND_TEETH_HALF_SIZE * PORTRAIT_SIZE, strict=True):
        distance = np.hypot((columns - centre[0]) / half_size[0], (rows - centre[1]) / half_size[1])
        eyes_and_teeth = np.maximum(eyes_and_teeth, np.clip(1.6 - distance, 0, 1))
    bare = cv2.GaussianBlur(_filled(SKIN, 1.0), (0, 0), 2.0)
    return Portrait(
        rgb=rgb,
        person=np.maximum(head, _filled(BODY, 1.2)),
        skin=(head * bare * (1 - 0.8 * eyes_and_teeth)).astype(np.float32),
        hair=(head * (1 - bare) * np.clip((142 - rows) / 8, 0, 1)).astype(np.float32),
        face=_filled(FACE_OVAL, 1.0),
    )
