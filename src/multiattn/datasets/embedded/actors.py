"""Actors: people who do not exist, made from the portrait by changing shape, skin, hair and clothes.

An actor is a picture on a canvas larger than any frame, with the head at a fixed place, so that a clip only has to
move the canvas. Everything about an actor follows from its seed.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from multiattn.datasets.embedded.portrait import LANDMARKS, PORTRAIT_SIZE, load_portrait
from multiattn.datasets.embedded.warps import Bump, displacement, invert_at, random_field

CANVAS_WH = (400, 384)
CANVAS_FACE = (200.0, 170.0)  # where the portrait's FACE_CENTRE lies on the canvas
FACE_CENTRE = (224.0, 124.0)  # portrait pixels
ZOOM = 1.0  # canvas pixels a portrait pixel
_MIRRORED_ORDER = [1, 0, 2, 4, 3]


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A person on a canvas of (384, 400) pixels.

    `rgba` is uint8 with the outline of head and body in the fourth channel, `face` the face oval as uint8, and
    `landmarks` (5, 2) float64 canvas coordinates in the order left eye, right eye, nose, left and right mouth corner.
    """

    actor_id: str
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
def make_actor(actor_id: str, actor_seed: tuple[int, ...]) -> Actor:
    """The actor of that seed: the same seed gives the same person, bit by bit."""
    rng = np.random.default_rng(actor_seed)
    backward, mirrored = _canvas_map(rng)
    portrait = load_portrait()
    look = np.dstack([_recoloured(rng), np.round(portrait.person * 255).astype(np.uint8)])
    masks = np.round(portrait.face * 255).astype(np.uint8)
    map_x, map_y = np.ascontiguousarray(backward[..., 0]), np.ascontiguousarray(backward[..., 1])
    rgba = cv2.remap(look, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    face = cv2.remap(masks, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    rgba[..., 3][map_y < 2] = 0
    old = LANDMARKS * PORTRAIT_SIZE
    side = np.array([-ZOOM if mirrored else ZOOM, ZOOM])
    landmarks = invert_at(backward, old, (old - FACE_CENTRE) * side + CANVAS_FACE)
    if mirrored:
        landmarks = landmarks[_MIRRORED_ORDER]
    return Actor(actor_id=actor_id, rgba=rgba, face=face, landmarks=landmarks)
