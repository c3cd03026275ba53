"""Forgeries: another actor's face over the target's, with the traces that real methods leave.

Each recipe first makes the pasted face once, on the target's canvas, then places it frame by frame with the target's
own movement. The camera's noise lies in the frame already, so the pasted region lacks it, as in a real forgery.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from multiattn.datasets.embedded.actors import CANVAS_WH, Actor
from multiattn.datasets.embedded.clips import Forger, View, expression_bumps
from multiattn.datasets.embedded.warps import displacement, fit_affine

RECIPES = ("autoencoder", "graphics", "reenact", "gan")


@dataclass(frozen=True, kw_only=True)
class Paste:
    """A forged face on the target's canvas and how carelessly it is placed."""

    rgba: np.ndarray  # (384, 400, 4) uint8, the fourth channel is the blending mask
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
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * shrink + 1, 2 * shrink + 1))
    return cv2.GaussianBlur(cv2.erode(target.face, kernel).astype(np.float32) / 255, (0, 0), feather)


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
    return _paste(face, mask, jitter=0.3, flicker=0.8, kept_noise=rng.uniform(0.0, 0.15))


def _graphics(rng: np.random.Generator, source: Actor, target: Actor) -> Paste:
    """A sharp face with a visible seam and a slightly wrong colour, resampled twice (as FaceSwap)."""
    face = _colour_matched(_aligned(source, target), target, rng.uniform(0.5, 0.85))
    face = face + rng.choice([-1, 1]) * rng.uniform(5, 11) + rng.uniform(-6, 6, 3)
    face = cv2.resize(face, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_LINEAR)
    face = cv2.resize(face, CANVAS_WH, interpolation=cv2.INTER_LINEAR)
    face = face + 1.4 * (face - cv2.GaussianBlur(face, (0, 0), 1.6))
    mask = _mask(target, feather=0.9, shrink=2)
    return _paste(face, mask, jitter=0.6, flicker=1.2, kept_noise=rng.uniform(0.0, 0.15))


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
    return _paste(face, mask, jitter=0.7, flicker=0.8, kept_noise=rng.uniform(0.0, 0.15))


def _gan(rng: np.random.Generator, source: Actor, target: Actor) -> Paste:
    """A crisp face over which transposed convolutions left their grid; its own fine noise instead of the camera's."""
    face = _colour_matched(_aligned(source, target), target, rng.uniform(0.8, 1.0))
    x, y = np.meshgrid(np.arange(CANVAS_WH[0], dtype=np.float32), np.arange(CANVAS_WH[1], dtype=np.float32))
    period = rng.uniform(6.0, 8.0)
    grid = np.cos(2 * np.pi * x / period) + np.cos(2 * np.pi * y / period)
    face = face * (1 + rng.uniform(0.035, 0.06) * grid)[..., None]
    face = cv2.GaussianBlur(face, (0, 0), 0.8)
    mask = _mask(target, feather=rng.uniform(1.5, 3), shrink=3)
    return _paste(face, mask, jitter=0.2, flicker=0.6, kept_noise=rng.uniform(0.0, 0.15))


_MAKERS: dict[str, Callable[[np.random.Generator, Actor, Actor], Paste]] = {
    "autoencoder": _autoencoder,
    "graphics": _graphics,
    "reenact": _reenact,
    "gan": _gan,
}


def _paste(face: np.ndarray, mask: np.ndarray, *, jitter: float, flicker: float, kept_noise: float) -> Paste:
    rgba = np.dstack([face, mask * 255])
    rgba = np.round(np.clip(rgba, 0, 255)).astype(np.uint8)
    return Paste(rgba=rgba, jitter=jitter, flicker=flicker, kept_noise=float(kept_noise))


def make_forger(recipe: str, source: Actor, target: Actor, forgery_seed: tuple[int, ...], num_frames: int) -> Forger:
    """A function that puts the source's face over the target's in every frame of the target's clip.

    Raises:
        ValueError: the recipe is not one of `RECIPES`.
    """
    if recipe not in _MAKERS:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, found {recipe!r}.")
    rng = np.random.default_rng(forgery_seed)
    paste = _MAKERS[recipe](rng, source, target)
    shifts = rng.normal(0, paste.jitter, (num_frames, 2)).astype(np.float32)
    offsets = rng.normal(0, paste.flicker, num_frames).astype(np.float32)
    left, top, width, height = cv2.boundingRect((paste.rgba[..., 3] > 0).astype(np.uint8))

    def forge(index: int, frame: np.ndarray, view: View) -> np.ndarray:
        near = (view.map_x > left - 2) & (view.map_x < left + width + 2)
        near &= (view.map_y > top - 2) & (view.map_y < top + height + 2)
        x, y, w, h = cv2.boundingRect(near.astype(np.uint8))
        window = (slice(y, y + h), slice(x, x + w))
        map_x, map_y = view.map_x[window] + shifts[index, 0], view.map_y[window] + shifts[index, 1]
        rgba = cv2.remap(paste.rgba, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        face = rgba[..., :3] * view.light[window] + offsets[index] + paste.kept_noise * view.noise[window]
        frame[window] += rgba[..., 3:].astype(np.float32) / 255 * (face - frame[window])
        return frame

    return forge
