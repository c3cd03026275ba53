"""Loops over channels-last float32 arrays for training on a CPU: numba, parallel, with the same bits every time.

ATen normalises, activates and multiplies in separate passes over memory, and its depthwise convolution is slow
backward; these kernels, and those of `cpu_depthwise.py`, do the same arithmetic in as few passes as it takes. Who
calls them: `cpu_layers.py`.

Work is cut into chunks by the shape alone, and partial sums are added in the order of the chunks, so a result depends
neither on the number of threads nor on their timing. Arrays of (rows, C) are handed over flat. They are walked in
tiles of a whole number of rows, because loops as short as the 24 channels of an early layer are not worth entering.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE = 2048
"""Floats in a tile, roughly: large enough for long loops, small enough that a tile stays in the second cache."""
CHUNK = 65536
"""Floats a thread takes at once, at least, unless there are MAX_CHUNKS of them."""
MAX_CHUNKS = 64

# Fused multiply-add is welcome; sums keep their order and NaN stays NaN.
OPTIONS: dict[str, Any] = {"fastmath": {"contract", "arcp", "nsz"}, "error_model": "numpy", "cache": True}

HALF, ONE = np.float32(0.5), np.float32(1.0)
LOG2_E, LN2_HIGH, LN2_LOW = (np.float32(value) for value in (1.44269504, 0.693359375, -2.12194440e-4))
# Minimax polynomial of (exp(r) - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2]: expf of the Cephes library (S. Moshier).
E0, E1, E2 = (np.float32(value) for value in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3))
E3, E4, E5 = (np.float32(value) for value in (4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))
LARGEST = np.float32(87.0)  # exp of it is finite in float32, and so is what it is multiplied with


@intrinsic
def _floor(typing_context: Any, value: Any) -> Any:
    """llvm.floor, which vectorises; NumPy's becomes a call."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.floor", [ir.FloatType()]), arguments)

    return types.float32(types.float32), generate


@intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** exponent of a whole float32 in [-126, 127], by writing its exponent bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = ir.IntType(32)
        biased = builder.add(builder.fptosi(arguments[0], bits), ir.Constant(bits, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(bits, 23)), ir.FloatType())

    return types.float32(types.float32), generate


@numba.njit(**OPTIONS)
def _sigmoid(value):
    x = -value
    x = LARGEST if x > LARGEST else x
    x = -LARGEST if x < -LARGEST else x
    n = _floor(x * LOG2_E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    polynomial = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    return ONE / (ONE + (polynomial * r * r + r + ONE) * _power_of_two(n))


@numba.njit(**OPTIONS)
def _cut(size, channels):
    """(tile, chunks, floats in a chunk) of a flat array of rows of `channels`."""
    tile = channels * max(1, TILE // channels)
    tiles = (size + tile - 1) // tile
    chunks = max(1, min(min(MAX_CHUNKS, size // CHUNK), tiles))
    return tile, chunks, (tiles + chunks - 1) // chunks * tile


@numba.njit(**OPTIONS)
def _repeat(values, size):
    """`values` over and over until there are `size`."""
    out = np.empty(size, np.float32)
    for start in range(0, size, len(values)):
        out[start : start + len(values)] = values
    return out


# --- batch normalisation and SiLU ---------------------------------------------------------------------------------


@numba.njit(**OPTIONS)
def _add_moments(x, tile, shift, sums, squares):
    """Add the first two moments of x - shift to `sums` and `squares` (tile,)."""
    start = 0
    while start + 4 * tile <= len(x):
        x0, x1 = x[start : start + tile], x[start + tile : start + 2 * tile]
        x2, x3 = x[start + 2 * tile : start + 3 * tile], x[start + 3 * tile : start + 4 * tile]
        for c in range(tile):
            d0, d1, d2, d3 = x0[c] - shift[c], x1[c] - shift[c], x2[c] - shift[c], x3[c] - shift[c]
            sums[c] += (d0 + d1) + (d2 + d3)
            squares[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        start += 4 * tile
    while start < len(x):
        x0 = x[start : start + tile]
        for c in range(len(x0)):
            d0 = x0[c] - shift[c]
            sums[c] += d0
            squares[c] += d0 * d0
        start += tile


@numba.njit(parallel=True, **OPTIONS)
def batch_moments(x, channels):
    """Mean and biased variance of every channel.

    Args:
        x: (rows * C,) float32.
        channels: C.

    Returns:
        mean and variance, (C,) float64; float32 sums within a chunk, taken about the chunk's first row, float64 beyond.
    """
    tile, chunks, step = _cut(x.size, channels)
    sums, squares = np.zeros((chunks, tile), np.float32), np.zeros((chunks, tile), np.float32)
    for k in numba.prange(chunks):
        part = x[k * step : (k + 1) * step]
        if part.size:
            _add_moments(part, tile, _repeat(part[:channels], tile), sums[k], squares[k])
    mean, scatter = np.zeros(channels), np.zeros(channels)
    count = 0
    for k in range(chunks):
        start = k * step
        rows = (min(x.size, start + step) - start) // channels
        if rows <= 0:
            break
        total = count + rows
        for c in range(channels):
            first, second = 0.0, 0.0
            for lane in range(c, tile, channels):
                first += sums[k, lane]
                second += squares[k, lane]
            # Chan, Golub and LeVeque 1979: two groups' means and scatters into one.
            delta = x[start + c] + first / rows - mean[c]
            scatter[c] += second - first * first / rows + delta * delta * count * rows / total
            mean[c] += delta * rows / total
        count = total
    for c in range(channels):
        scatter[c] = max(scatter[c], 0.0) / count
    return mean, scatter


@numba.njit(**OPTIONS)
def _scale_silu(x, scale, shift, out):
    for c in range(len(x)):
        y = x[c] * scale[c] + shift[c]
        out[c] = y * _sigmoid(y)


@numba.njit(parallel=True, **OPTIONS)
def scale_silu(x, scale, shift, out):
    """out = SiLU(x * scale + shift): x and out (rows * C,), scale and shift (C,), float32."""
    tile, chunks, step = _cut(x.size, scale.size)
    scale, shift = _repeat(scale, tile), _repeat(shift, tile)
    for k in numba.prange(chunks):
        for start in range(k * step, min(x.size, (k + 1) * step), tile):
            end = min(x.size, start + tile)
            _scale_silu(x[start:end], scale, shift, out[start:end])


@numba.njit(**OPTIONS)
def _silu_slope(x, gradient, scale, shift, out):
    for c in range(len(x)):
        y = x[c] * scale[c] + shift[c]
        s = _sigmoid(y)
        out[c] = gradient[c] * (s + y * s * (ONE - s))


@numba.njit(**OPTIONS)
def _add_products(gradient, x, center, sums, products):
    for c in range(len(x)):
        sums[c] += gradient[c]
        products[c] += gradient[c] * (x[c] - center[c])


@numba.njit(**OPTIONS)
def _center_gradient(gradient, x, scale, slope, offset):
    for c in range(len(x)):
        gradient[c] = gradient[c] * scale[c] - (x[c] * slope[c] + offset[c])


@numba.njit(parallel=True, **OPTIONS)
def batch_norm_silu_backward(x, gradient, weight, bias, mean, inverse_std, out):
    """Gradients of SiLU(batch_norm(x)) with the batch's own statistics.

    Args:
        x, gradient: (rows * C,) float32, the layer's input and the gradient of its output.
        weight, bias, mean, inverse_std: (C,) float32.
        out: (rows * C,) float32, takes the gradient of x; holds that of the normalised x in between.

    Returns:
        Gradients of weight and bias, (C,) float64.
    """
    channels = weight.size
    tile, chunks, step = _cut(x.size, channels)
    scale = weight * inverse_std
    wide_scale, wide_shift = _repeat(scale, tile), _repeat(bias - mean * scale, tile)
    wide_mean = _repeat(mean, tile)
    sums, products = np.zeros((chunks, tile), np.float32), np.zeros((chunks, tile), np.float32)
    for k in numba.prange(chunks):
        for start in range(k * step, min(x.size, (k + 1) * step), tile):
            end = min(x.size, start + tile)
            _silu_slope(x[start:end], gradient[start:end], wide_scale, wide_shift, out[start:end])
            _add_products(out[start:end], x[start:end], wide_mean, sums[k], products[k])
    total, product = np.zeros(channels), np.zeros(channels)
    for k in range(chunks):
        for start in range(0, tile, channels):
            for c in range(channels):
                total[c] += sums[k, start + c]
                product[c] += products[k, start + c]
    rows = x.size // channels
    slope, offset = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for c in range(channels):
        # dx = scale (dz - mean(dz) - (x - mean) inverse_std^2 mean(dz (x - mean)))
        along = scale[c] * inverse_std[c] * inverse_std[c] * product[c] / rows
        slope[c] = along
        offset[c] = scale[c] * total[c] / rows - along * mean[c]
        product[c] *= inverse_std[c]
    wide_slope, wide_offset = _repeat(slope, tile), _repeat(offset, tile)
    for k in numba.prange(chunks):
        for start in range(k * step, min(x.size, (k + 1) * step), tile):
            end = min(x.size, start + tile)
            _center_gradient(out[start:end], x[start:end], wide_scale, wide_slope, wide_offset)
    return product, total


# --- squeeze and excitation ---------------------------------------------------------------------------------------


@numba.njit(**OPTIONS)
def _add_row(x, sums):
    for c in range(len(x)):
        sums[c] += x[c]


@numba.njit(**OPTIONS)
def _add_product_row(x, y, sums):
    for c in range(len(x)):
        sums[c] += x[c] * y[c]


@numba.njit(**OPTIONS)
def _scale_row(x, scale, shift, out):
    for c in range(len(x)):
        out[c] = x[c] * scale[c] + shift[c]


@numba.njit(**OPTIONS)
def _fold(partial, channels):
    """(chunks, tile) float32 partial sums of one image -> (C,) float64."""
    out = np.zeros(channels)
    for k in range(partial.shape[0]):
        for start in range(0, partial.shape[1], channels):
            for c in range(channels):
                out[c] += partial[k, start + c]
    return out


@numba.njit(parallel=True, **OPTIONS)
def image_sums(x, y, channels):
    """Sum of x * y (of x alone where y is empty) over the positions of each image.

    Args:
        x: (B, positions * C) float32; y: the same shape, or (B, 0).
        channels: C.

    Returns:
        (B, C) float64.
    """
    batch, size = x.shape
    tile, chunks, step = _cut(size, channels)
    partial = np.zeros((batch, chunks, tile), np.float32)
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            if y.shape[1]:
                _add_product_row(x[b, start:end], y[b, start:end], partial[b, k])
            else:
                _add_row(x[b, start:end], partial[b, k])
    out = np.empty((batch, channels))
    for b in range(batch):
        out[b] = _fold(partial[b], channels)
    return out


@numba.njit(parallel=True, **OPTIONS)
def scale_images(x, scale, shift, out):
    """out = x * scale + shift: x and out (B, positions * C), scale and shift (B, C), float32."""
    batch, size = x.shape
    tile, chunks, step = _cut(size, scale.shape[1])
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        wide_scale, wide_shift = _repeat(scale[b], tile), _repeat(shift[b], tile)
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            _scale_row(x[b, start:end], wide_scale, wide_shift, out[b, start:end])
