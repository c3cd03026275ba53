"""Clips: an actor before a background, moving, lit and filmed by a noisy camera; for fakes with another actor's face.

A `Take` holds everything about a clip but who is in it and whether the face is forged; it follows from the clip's
seed. A fake uses the take of its original, so both show the same movement, background, light and sensor noise.

A forgery recipe makes the pasted face once, on the target's canvas; it is then placed frame by frame with the target's
own movement. The camera's noise lies in the frame already, so the pasted region lacks it, as in a real forgery.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from multiattn.datasets.embedded.actors import (
    CANVAS_FACE,
    CANVAS_WH,
    Actor,
    Bump,
    displacement,
    fit_affine,
    random_field,
)

FRAME_RATE = 12
FRAME_SIZES_WH = ((256, 256), (256, 240), (288, 240))
_EXPRESSION_CELL = 4  # the expression's displacement is smooth: computed on every 4th pixel and enlarged


@dataclass(frozen=True, kw_only=True)
class Take:
    """One recording: camera, light, background and movement, without the person.

    `poses` is (T, 4): shift x, shift y (frame pixels), angle (degrees), scale. `expressions` is (T, 3): how far the
    mouth opens and widens and the eyes close, all within about +-0.25.
    """

    size_wh: tuple[int, int]
    poses: np.ndarray
    expressions: np.ndarray
    background: np.ndarray  # (H + 2 * margin, W + 2 * margin, 3) float32, 0..255
    background_shift: np.ndarray  # (T, 2) pixels
    light: np.ndarray  # (H, W, 1) float32 factor, around 1
    flicker: np.ndarray  # (T,) factor, around 1
    blur: float  # optical blur, standard deviation in pixels
    noise: float  # sensor noise, standard deviation in grey levels at mid grey
    noise_seed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """One frame for a forger: the canvas coordinates of every frame pixel, the light on it, and the noise in it."""

    map_x: np.ndarray  # (H, W) float32 canvas coordinates
    map_y: np.ndarray
    light: np.ndarray  # (H, W, 1) float32
    noise: np.ndarray  # (H, W, 3) float32 grey levels, already part of the frame


Forger = Callable[[int, np.ndarray, View], np.ndarray]
"""(frame index, (H, W, 3) float32 frame with noise, view) -> the frame with the face replaced."""


def _smooth_path(rng: np.random.Generator, num_frames: int, amplitude: float) -> np.ndarray:
    """(T,) float64: two slow sines of random frequency and phase, within +-amplitude."""
    seconds = np.arange(num_frames) / FRAME_RATE
    waves = [np.sin(2 * np.pi * (rng.uniform(0.1, 0.45) * seconds + rng.random())) for _ in range(2)]
    return amplitude * (0.65 * waves[0] + 0.35 * waves[1])


def _background(rng: np.random.Generator, size_wh: tuple[int, int]) -> np.ndarray:
    """A blurred background: a gradient of two colours, soft blotches, sometimes bars; (H, W, 3) float32."""
    width, height = size_wh
    colours = rng.uniform(40, 215, (2, 3)) * 0.6 + rng.uniform(40, 215, (2, 1)) * 0.4
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    ramp = np.clip(0.5 + 0.5 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)[..., None]
    wall = colours[0] * (1 - ramp) + colours[1] * ramp
    for cells in (5, 14, 40):
        wall = wall + random_field(rng, size_wh, cells, rng.uniform(2, 9))[..., :1]
    if rng.random() < 0.5:  # shelves, curtains
        bars = np.sin((x if rng.random() < 0.6 else y) * rng.uniform(4, 14) + rng.uniform(0, 6))
        wall = wall + np.clip(bars * rng.uniform(2, 8), -1, 1)[..., None] * rng.uniform(-16, 16, 3)
    return cv2.GaussianBlur(np.clip(wall, 8, 247).astype(np.float32), (0, 0), rng.uniform(0.8, 3.5))


def make_take(take_seed: tuple[int, ...], num_frames: int) -> Take:
    """The recording of that seed, `num_frames` frames long."""
    rng = np.random.default_rng((*take_seed, 0))
    width, height = FRAME_SIZES_WH[rng.integers(len(FRAME_SIZES_WH))]
    scale = rng.uniform(0.9, 1.05) + _smooth_path(rng, num_frames, 0.03)
    angle = rng.uniform(-3, 3) + _smooth_path(rng, num_frames, 5.0)
    shifts = [rng.uniform(-8, 8) + _smooth_path(rng, num_frames, 7.0) for _ in range(2)]
    expressions = np.stack([_smooth_path(rng, num_frames, reach) for reach in (0.25, 0.1, 0.2)], axis=1)
    x, y = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    direction, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.28)
    light = rng.uniform(0.85, 1.08) * (1 + strength * (x * np.cos(direction) + y * np.sin(direction)))
    margin = 24
    return Take(
        size_wh=(width, height),
        poses=np.stack([*shifts, angle, scale], axis=1),
        expressions=expressions,
        background=_background(rng, (width + 2 * margin, height + 2 * margin)),
        background_shift=np.stack([_smooth_path(rng, num_frames, 5.0) for _ in range(2)], axis=1) + margin,
        light=light[..., None].astype(np.float32),
        flicker=1 + _smooth_path(rng, num_frames, 0.015),
        blur=float(rng.uniform(0.0, 0.5)),
        noise=float(rng.uniform(5.0, 8.5)),
        noise_seed=(*take_seed, 1),
    )


def _canvas_coordinates(take: Take, actor: Actor, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the actor's canvas of every pixel of a frame: two (H, W) float32 maps."""
    width, height = take.size_wh
    shift_x, shift_y, angle, scale = take.poses[index]
    x = np.arange(width, dtype=np.float32)[None] - np.float32(width / 2 + shift_x)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(0.47 * height + shift_y)
    cos, sin = (np.float32(f(np.deg2rad(angle)) / scale) for f in (np.cos, np.sin))
    map_x = cos * x + sin * y + np.float32(CANVAS_FACE[0])
    map_y = -sin * x + cos * y + np.float32(CANVAS_FACE[1])
    coarse = [np.ascontiguousarray(m[::_EXPRESSION_CELL, ::_EXPRESSION_CELL]) for m in (map_x, map_y)]
    dx, dy = displacement(*coarse, expression_bumps(actor.landmarks, *take.expressions[index]))
    enlarge = np.array([[1 / _EXPRESSION_CELL, 0, 0], [0, 1 / _EXPRESSION_CELL, 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    map_x += cv2.warpAffine(dx, enlarge, take.size_wh, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    map_y += cv2.warpAffine(dy, enlarge, take.size_wh, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return map_x, map_y


def expression_bumps(landmarks: np.ndarray, mouth_open: float, mouth_wide: float, eyes_closed: float) -> list[Bump]:
    """A facial expression around (5, 2) landmarks, in their pixels."""
    apart = float(np.hypot(*(landmarks[1] - landmarks[0])))
    mouth = tuple(landmarks[3:].mean(axis=0))
    chin = (mouth[0], mouth[1] + 0.48 * apart)
    bumps = [Bump(centre=mouth, width=(0.48 * apart, 0.26 * apart), grow=(mouth_wide, mouth_open))]
    bumps.append(Bump(centre=chin, width=(0.62 * apart, 0.3 * apart), shift=(0, 0.16 * apart * mouth_open)))
    for eye in landmarks[:2]:
        closing = (0, -max(eyes_closed, -0.05))
        bumps.append(Bump(centre=tuple(eye), width=(0.26 * apart, 0.15 * apart), grow=closing))
    return bumps


def _sensor_noise(rng: np.random.Generator, size_wh: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32 of standard deviation about 1: grainy luma, weaker and coarser chroma."""
    width, height = size_wh
    luma = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (5, 5), 0.75) * np.float32(2.4)
    chroma = rng.standard_normal((height // 2, width // 2, 3), np.float32) * np.float32(0.5)
    return cv2.resize(chroma, size_wh, interpolation=cv2.INTER_LINEAR) + luma[..., None]


def render_frames(take: Take, actor: Actor | None, forger: Forger | None = None) -> Iterator[np.ndarray]:
    """The clip's frames, (H, W, 3) uint8 RGB; without an actor of the background alone."""
    rng = np.random.default_rng(take.noise_seed)
    for index in range(len(take.poses)):
        matrix = np.array([[1, 0, take.background_shift[index, 0]], [0, 1, take.background_shift[index, 1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(take.background, matrix, take.size_wh, flags=flags, borderMode=cv2.BORDER_REFLECT)
        light = take.light * np.float32(take.flicker[index])
        view = None
        if actor is not None:
            map_x, map_y = _canvas_coordinates(take, actor, index)
            rgba = cv2.remap(actor.rgba, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            alpha = rgba[..., 3:].astype(np.float32) / 255
            frame += alpha * (rgba[..., :3] - frame)
        frame *= light
        if take.blur > 0.2:
            frame = cv2.GaussianBlur(frame, (5, 5), take.blur)
        noise = _sensor_noise(rng, take.size_wh)
        brightness = frame.mean(axis=2, keepdims=True)
        noise *= take.noise * np.sqrt(0.5 + np.clip(brightness, 0, 255) / 255)
        frame += noise
        if actor is not None and forger is not None:
            view = View(map_x=map_x, map_y=map_y, light=light, noise=noise)
            frame = forger(index, frame, view)
        yield np.round(np.clip(frame, 0, 255)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Paste:
    """A forged face on the target's canvas and how carelessly it is placed."""

    face: np.ndarray  # (384, 400, 3), 0..255
    mask: np.ndarray  # (384, 400), the share of the face in each pixel
    jitter: float  # placement error from frame to frame, standard deviation in pixels
    flicker: float  # brightness error from frame to frame, standard deviation in grey levels
    kept_noise: float  # share of the camera's noise left in the pasted region, 0..1


def _aligned(source: Actor, target: Actor) -> np.ndarray:
    """The source's picture laid over the target's landmarks by an affine map: (384, 400, 3) float32."""
    matrix = fit_affine(source.landmarks, target.landmarks)
    rgb = cv2.warpAffine(source.rgba[..., :3], matrix, CANVAS_WH, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return rgb.astype(np.float32)


def _colour_matched(face: np.ndarray, target: Actor, strength: float) -> np.ndarray:
    """`face` with mean and spread of the target's face in LAB; strength 1 matches fully, 0 not at all."""
    inside = target.face > 127
    lab, wanted = (cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for p in (face, target.rgba[..., :3]))
    mean, spread = lab[inside].mean(axis=0), lab[inside].std(axis=0) + 1e-3
    matched = (lab - mean) * (wanted[inside].std(axis=0) / spread) + wanted[inside].mean(axis=0)
    lab = (lab + strength * (matched - lab)).astype(np.float32)
    return np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1) * 255


def _mask(target: Actor, feather: float, shrink: int) -> np.ndarray:
    """The target's face oval with soft edges, (384, 400) float32; shrunk so that the edge fades inside it."""
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * shrink + 1, 2 * shrink + 1))
    return cv2.GaussianBlur(cv2.erode(target.face, ellipse).astype(np.float32) / 255, (0, 0), feather)


def _through_low_resolution(face: np.ndarray, target: Actor, side: int) -> np.ndarray:
    """The face as a network with `side` x `side` outputs would draw it, enlarged again (only around the face)."""
    x, y, width, height = cv2.boundingRect((target.face > 10).astype(np.uint8))
    margin = 10
    rows, columns = slice(y - margin, y + height + margin), slice(x - margin, x + width + margin)
    window = face[rows, columns]
    small = cv2.resize(window, (side, side), interpolation=cv2.INTER_AREA)
    out = face.copy()
    out[rows, columns] = cv2.resize(small, window.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return out


def _autoencoder(rng: np.random.Generator, source: Actor, target: Actor) -> Paste:
    """A swapped face drawn at low resolution: smooth skin, no grain (as Deepfakes)."""
    face = _colour_matched(_aligned(source, target), target, rng.uniform(0.65, 1.0))
    face = _through_low_resolution(face, target, int(rng.integers(26, 37)))
    mask = _mask(target, feather=rng.uniform(2.5, 4.5), shrink=4)
    return Paste(face=face, mask=mask, jitter=0.3, flicker=0.8, kept_noise=rng.uniform(0.0, 0.15))


def _graphics(rng: np.random.Generator, source: Actor, target: Actor) -> Paste:
    """A sharp face with a visible seam and a slightly wrong colour, resampled twice (as FaceSwap)."""
    face = _colour_matched(_aligned(source, target), target, rng.uniform(0.5, 0.85))
    face = face + rng.choice([-1, 1]) * rng.uniform(5, 11) + rng.uniform(-6, 6, 3)
    face = cv2.resize(face, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_LINEAR)
    face = cv2.resize(face, CANVAS_WH, interpolation=cv2.INTER_LINEAR)
    face = face + 1.4 * (face - cv2.GaussianBlur(face, (0, 0), 1.6))
    mask = _mask(target, feather=0.9, shrink=2)
    return Paste(face=face, mask=mask, jitter=0.6, flicker=1.2, kept_noise=rng.uniform(0.0, 0.15))


def _reenact(rng: np.random.Generator, source: Actor, target: Actor) -> Paste:
    """Only the lower face, with another expression, low-pass and trembling (as Face2Face, NeuralTextures)."""
    face = _colour_matched(_aligned(source, target), target, rng.uniform(0.8, 1.0))
    x, y = np.meshgrid(np.arange(CANVAS_WH[0], dtype=np.float32), np.arange(CANVAS_WH[1], dtype=np.float32))
    opened = float(rng.choice([-1, 1]) * rng.uniform(0.2, 0.4))
    dx, dy = displacement(x, y, expression_bumps(target.landmarks, opened, -0.4 * opened, 0.0))
    face = cv2.remap(face, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    face = cv2.GaussianBlur(face, (0, 0), rng.uniform(1.4, 2.2))
    nose_y = target.landmarks[2, 1] - 10
    lower = 1 / (1 + np.exp(-(y - nose_y) / 2.5))
    mask = _mask(target, feather=rng.uniform(1.5, 3), shrink=3) * lower
    return Paste(face=face, mask=mask, jitter=0.7, flicker=0.8, kept_noise=rng.uniform(0.0, 0.15))


def _gan(rng: np.random.Generator, source: Actor, target: Actor) -> Paste:
    """A crisp face over which transposed convolutions left their grid; its own fine noise instead of the camera's."""
    face = _colour_matched(_aligned(source, target), target, rng.uniform(0.8, 1.0))
    x, y = np.meshgrid(np.arange(CANVAS_WH[0], dtype=np.float32), np.arange(CANVAS_WH[1], dtype=np.float32))
    period = rng.uniform(6.0, 8.0)
    grid = np.cos(2 * np.pi * x / period) + np.cos(2 * np.pi * y / period)
    face = face * (1 + rng.uniform(0.035, 0.06) * grid)[..., None]
    face = cv2.GaussianBlur(face, (0, 0), 0.8)
    mask = _mask(target, feather=rng.uniform(1.5, 3), shrink=3)
    return Paste(face=face, mask=mask, jitter=0.2, flicker=0.6, kept_noise=rng.uniform(0.0, 0.15))


RECIPES: dict[str, Callable[[np.random.Generator, Actor, Actor], Paste]] = {
    "autoencoder": _autoencoder,
    "graphics": _graphics,
    "reenact": _reenact,
    "gan": _gan,
}
"""Name -> maker of the pasted face of a source and a target."""


def make_forger(recipe: str, source: Actor, target: Actor, forgery_seed: tuple[int, ...], num_frames: int) -> Forger:
    """A function that puts the source's face over the target's in every frame of the target's clip.

    `recipe` is a name in `RECIPES`.
    """
    rng = np.random.default_rng(forgery_seed)
    paste = RECIPES[recipe](rng, source, target)
    shifts = rng.normal(0, paste.jitter, (num_frames, 2)).astype(np.float32)
    offsets = rng.normal(0, paste.flicker, num_frames).astype(np.float32)
    picture = np.round(np.clip(np.dstack([paste.face, paste.mask * 255]), 0, 255)).astype(np.uint8)
    left, top, width, height = cv2.boundingRect((picture[..., 3] > 0).astype(np.uint8))

    def forge(index: int, frame: np.ndarray, view: View) -> np.ndarray:
        near = (view.map_x > left - 2) & (view.map_x < left + width + 2)
        near &= (view.map_y > top - 2) & (view.map_y < top + height + 2)
        x, y, w, h = cv2.boundingRect(near.astype(np.uint8))
        window = (slice(y, y + h), slice(x, x + w))
        map_x, map_y = view.map_x[window] + shifts[index, 0], view.map_y[window] + shifts[index, 1]
        rgba = cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        face = rgba[..., :3] * view.light[window] + offsets[index] + paste.kept_noise * view.noise[window]
        frame[window] += rgba[..., 3:].astype(np.float32) / 255 * (face - frame[window])
        return frame

    return forge
