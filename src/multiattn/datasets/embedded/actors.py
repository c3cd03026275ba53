"""People who do not exist, made from one photograph by changing shape, skin, hair and clothes.

The portrait is `skimage.data.astronaut()`: Eileen Collins, NASA, public domain, 512 x 512 RGB, inside the scikit-image
wheel. Its landmarks and outlines below are normalised by 512, so (1, 1) is the lower right corner.

Changes of shape are sums of Gaussian bumps, written as backward displacements for `cv2.remap`: a field says which pixel
of the old picture a pixel of the new one takes, relative to itself. Scaling around a centre by a factor > 1 therefore
has a negative sign here. Amplitudes stay well below the bumps' widths, so no field folds over itself.

An actor is a picture on a canvas larger than any frame, with the head at a fixed place, so that a clip only has to
move the canvas. Everything about an actor follows from its seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

PORTRAIT_SIZE = 512
CANVAS_WH = (400, 384)
CANVAS_FACE = (200.0, 170.0)  # where the portrait's FACE_CENTRE lies on the canvas
FACE_CENTRE = (224.0, 124.0)  # portrait pixels
ZOOM = 1.0  # canvas pixels a portrait pixel
_MIRRORED_ORDER = [1, 0, 2, 4, 3]

# Left eye, right eye (as seen in the picture), nose tip, left and right mouth corner: the output of
# facenet_pytorch.MTCNN(keep_all=True).detect(portrait, landmarks=True), the one box found, score 1.0000.
LANDMARKS = np.array(
    [[0.40041, 0.19869], [0.48196, 0.20257], [0.43881, 0.25189], [0.39398, 0.27195], [0.47903, 0.27707]], np.float64
)

# Drawn by hand over a 4x enlargement of the portrait with a 20 pixel grid.
FACE_OVAL = np.array([[184, 89], [198, 85], [226, 87], [252, 92], [264, 97], [267, 118], [262, 146], [252, 164]], float)
FACE_OVAL = np.vstack([FACE_OVAL, [[238, 175], [224, 178], [210, 174], [196, 164], [186, 146], [182, 118]]]) / 512
# fmt: off
SKIN = np.array([
    [184, 80], [198, 77], [216, 83], [240, 82], [256, 88], [266, 96], [269, 120], [276, 126], [276, 136], [268, 138],
    [264, 148], [258, 160], [255, 188], [226, 190], [188, 186], [185, 152], [180, 134], [170, 122], [172, 112],
    [181, 114], [182, 96]
]) / 512
EYES_AND_TEETH = np.array([[204, 101], [246, 103], [223, 145]]) / 512
EYES_AND_TEETH_HALF_SIZE = np.array([[9, 4], [9, 4], [17, 5]]) / 512
HEAD = np.array([
    [186, 192], [184, 150], [177, 132], [172, 119], [160, 108], [155, 90], [154, 70], [160, 56], [174, 42],
    [192, 31], [214, 18], [236, 16], [262, 22], [280, 36], [293, 60], [299, 85], [296, 102], [286, 120], [276, 133],
    [268, 136], [264, 146], [258, 160], [255, 172], [255, 192]
]) / 512
BODY = np.array([
    [30, 512], [36, 330], [43, 286], [64, 257], [96, 234], [110, 212], [114, 190], [126, 167], [150, 154],
    [184, 150], [254, 170], [274, 184], [291, 206], [303, 236], [314, 241], [334, 256], [349, 282], [357, 320],
    [362, 512]
]) / 512
# fmt: on


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
    import skimage.data  # takes a second to import, for this picture alone

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


@dataclass(frozen=True, kw_only=True)
class Bump:
    """One local change around `centre`, fading as a Gaussian with standard deviations `width` (x, y) in pixels.

    `shift` moves the content (pixels), `grow` enlarges it ((x, y), 0.1 is ten per cent larger).
    """

    centre: tuple[float, float]
    width: tuple[float, float]
    shift: tuple[float, float] = (0.0, 0.0)
    grow: tuple[float, float] = (0.0, 0.0)


def displacement(x: np.ndarray, y: np.ndarray, bumps: Sequence[Bump]) -> tuple[np.ndarray, np.ndarray]:
    """The backward displacement (dx, dy), in pixels and of the shape of `x`, of all bumps together."""
    dx, dy = np.zeros_like(x), np.zeros_like(y)
    for bump in bumps:
        u, v = x - bump.centre[0], y - bump.centre[1]
        weight = np.exp(-0.5 * ((u / bump.width[0]) ** 2 + (v / bump.width[1]) ** 2))
        dx -= weight * (bump.shift[0] + bump.grow[0] * u)
        dy -= weight * (bump.shift[1] + bump.grow[1] * v)
    return dx, dy


def random_field(rng: np.random.Generator, size_wh: tuple[int, int], cells: int, amplitude: float) -> np.ndarray:
    """A smooth random (H, W, 2) float32 field: `cells` x `cells` normal values, cubically enlarged."""
    coarse = rng.normal(0, amplitude, (cells, cells, 2)).astype(np.float32)
    return cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC)


def sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear values of an (H, W, 2) float32 field at (N, 2) points (x, y): (N, 2) float64."""
    x, y = (points[:, i].astype(np.float32)[None] for i in (0, 1))
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0].astype(np.float64)


def invert_at(backward_map: np.ndarray, points: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Where (N, 2) points of the old picture came to lie in the new one, by fixed-point iteration from a first guess.

    `backward_map` is (H, W, 2), old coordinates for every new pixel, and locally close to a scaled identity. The result
    is right within 0.05 pixel for the fields of this package.
    """
    found = start.astype(np.float64)
    for _ in range(40):
        step_x = sample(backward_map, found + (1, 0)) - sample(backward_map, found - (1, 0))
        step_y = sample(backward_map, found + (0, 1)) - sample(backward_map, found - (0, 1))
        jacobian = np.stack([step_x, step_y], axis=-1) / 2
        error = points - sample(backward_map, found)
        found = found + 0.7 * np.linalg.solve(jacobian, error[..., None])[..., 0]
    return found


def fit_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (2, 3) float64 affine matrix that brings (N, 2) source points nearest to target points (least squares)."""
    design = np.column_stack([source, np.ones(len(source))])
    return np.linalg.lstsq(design, target, rcond=None)[0].T


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A person on a canvas of (384, 400) pixels.

    `rgba` is uint8 with the outline of head and body in the fourth channel, `face` the face oval as uint8, and
    `landmarks` (5, 2) float64 canvas coordinates in the order left eye, right eye, nose, left and right mouth corner.
    """

    rgba: np.ndarray  # (384, 400, 4)
    face: np.ndarray  # (384, 400)
    landmarks: np.ndarray


def _shape_bumps(rng: np.random.Generator) -> list[Bump]:
    """The face's proportions, in portrait pixels; the eyes are 42 apart."""
    left_eye, right_eye, nose, left_mouth, right_mouth = LANDMARKS * PORTRAIT_SIZE
    mouth = (left_mouth + right_mouth) / 2
    apart, eye_drop, eye_size = rng.uniform(-2.8, 3.2), rng.uniform(-2.5, 2.5), rng.uniform(-0.16, 0.2)
    openness = rng.uniform(-0.22, 0.18)
    bumps = []
    for eye, side in ((left_eye, -1), (right_eye, 1)):
        bumps.append(Bump(centre=tuple(eye), width=(13, 11), shift=(side * apart, eye_drop)))
        bumps.append(Bump(centre=tuple(eye), width=(11, 8), grow=(eye_size, eye_size + openness)))
        bumps.append(Bump(centre=(eye[0], eye[1] - 13), width=(14, 6), shift=(0, rng.uniform(-2, 2))))
    nose_width, nose_length = rng.uniform(-0.2, 0.35), rng.uniform(-3.5, 3.5)
    bumps.append(Bump(centre=tuple(nose), width=(11, 12), shift=(0, nose_length), grow=(nose_width, 0)))
    mouth_size = rng.uniform(-0.22, 0.16), rng.uniform(-0.35, 0.3)
    bumps.append(Bump(centre=tuple(mouth), width=(19, 9), shift=(0, rng.uniform(-2.5, 2.5)), grow=mouth_size))
    jaw, chin, cheeks = rng.uniform(-0.13, 0.13), rng.uniform(-5, 6), rng.uniform(-0.09, 0.09)
    bumps.append(Bump(centre=(224, 164), width=(40, 18), shift=(0, chin), grow=(jaw, 0)))
    bumps.append(Bump(centre=(224, 122), width=(46, 20), grow=(cheeks, 0)))
    hair = rng.uniform(-0.1, 0.12), rng.uniform(-0.14, 0.12)
    bumps.append(Bump(centre=(226, 70), width=(75, 40), grow=hair))
    return bumps


def _canvas_map(rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Portrait coordinates for every canvas pixel, (384, 400, 2) float32, and whether the actor is mirrored."""
    x, y = np.meshgrid(np.arange(CANVAS_WH[0], dtype=np.float32), np.arange(CANVAS_WH[1], dtype=np.float32))
    mirrored = bool(rng.random() < 0.5)
    wide, tall = rng.uniform(0.93, 1.06), rng.uniform(0.94, 1.06)
    x = (x - CANVAS_FACE[0]) / (ZOOM * wide) * (-1 if mirrored else 1) + FACE_CENTRE[0]
    y = (y - CANVAS_FACE[1]) / (ZOOM * tall) + FACE_CENTRE[1]
    dx, dy = displacement(x, y, _shape_bumps(rng))
    wobble = random_field(rng, CANVAS_WH, cells=7, amplitude=1.4)
    return np.stack([x + dx, y + dy], axis=-1).astype(np.float32) + wobble, mirrored


def _recoloured(rng: np.random.Generator) -> np.ndarray:
    """The portrait with other skin, hair and clothes: (512, 512, 3) uint8."""
    portrait = load_portrait()
    lab = cv2.cvtColor(portrait.rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)  # L 0..100, a and b about -60..60
    clothes = np.clip(portrait.person - portrait.skin - portrait.hair, 0, 1)
    tone = rng.uniform(0, 1)  # 0 pale .. 1 dark
    skin_light = 1.03 - 0.42 * tone**1.3
    skin = lab * (skin_light, 1.0, 1.0) + (0, rng.uniform(-3, 5), rng.uniform(-4, 6) + 3 * tone)
    hair_light, hair_chroma = rng.choice([0.3, 0.45, 0.65, 0.9, 1.15]) * rng.uniform(0.9, 1.1), rng.uniform(0.15, 1.3)
    hair = lab * (hair_light, hair_chroma, hair_chroma) + (0, rng.choice([0.0, 2.0, 9.0]), 0)
    angle, chroma = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.8)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    suit = (lab @ turn.T) * (rng.uniform(0.55, 1.1), chroma, chroma)
    for mask, changed in ((portrait.skin, skin), (portrait.hair, hair), (clothes, suit)):
        lab = lab + mask[..., None] * (changed - lab)
    if rng.random() < 0.35:  # the shade of a shaved beard around mouth and chin
        rows, columns = np.mgrid[0:PORTRAIT_SIZE, 0:PORTRAIT_SIZE]
        beard = 1 / (1 + np.exp(-(rows - 140 + 0.008 * (columns - 224) ** 2) / 4.0))
        shade = portrait.skin * beard * (rows < 182) * rng.uniform(0.12, 0.3)
        lab[..., 0] *= 1 - cv2.GaussianBlur(shade.astype(np.float32), (0, 0), 2.5)
    rgb = cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


@lru_cache(maxsize=16)
def make_actor(actor_seed: tuple[int, ...]) -> Actor:
    """The actor of that seed: the same seed gives the same person, bit by bit."""
    rng = np.random.default_rng(actor_seed)
    backward, mirrored = _canvas_map(rng)
    portrait = load_portrait()
    picture = np.dstack([_recoloured(rng), np.round(portrait.person * 255).astype(np.uint8)])
    masks = np.round(portrait.face * 255).astype(np.uint8)
    map_x, map_y = np.ascontiguousarray(backward[..., 0]), np.ascontiguousarray(backward[..., 1])
    rgba = cv2.remap(picture, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    face = cv2.remap(masks, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    rgba[..., 3][map_y < 2] = 0
    old = LANDMARKS * PORTRAIT_SIZE
    side = np.array([-ZOOM if mirrored else ZOOM, ZOOM])
    landmarks = invert_at(backward, old, (old - FACE_CENTRE) * side + CANVAS_FACE)
    if mirrored:
        landmarks = landmarks[_MIRRORED_ORDER]
    return Actor(rgba=rgba, face=face, landmarks=landmarks)
