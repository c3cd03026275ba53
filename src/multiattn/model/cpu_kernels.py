"""Loops over channels-last arrays for training on a CPU: numba, parallel, with the same bits every time.

ATen normalises, activates and multiplies in separate passes over memory, and its depthwise convolution is slow
backward; these kernels, and those of `cpu_depthwise.py`, do the same arithmetic in as few passes as it takes. Arrays
hold float32 or bfloat16 (`cpu_arithmetic.py`); arithmetic and sums are float32, totals float64. Who calls them:
`cpu_functions.py`.

Work is cut into chunks by the shape alone, and partial sums are added in the order of the chunks, so a result depends
neither on the number of threads nor on their timing. Arrays of (positions, C) are handed over flat. They are walked in
tiles of a whole number of positions, because loops as short as the 24 channels of an early layer are not worth
entering; what each channel has of its own is repeated to fill a tile.

In what follows z = x * scale + shift is the normalised input, with scale = weight / sigma and
shift = bias - mean * scale; `gate` and `lift` are a number for each image and channel.
"""

import numba
import numpy as np

from multiattn.model.cpu_arithmetic import OPTIONS, in_parallel, narrow, silu_and_slope, silu_of, widen

TILE = 2048
"""Numbers in a tile, roughly: large enough for long loops, small enough that a tile stays in the second cache."""
CHUNK = 65536
"""Numbers a thread takes at once, at least, unless there are MAX_CHUNKS of them."""
MAX_CHUNKS = 64
MAX_CHANNELS = 4096
LANE = MAX_CHANNELS + 16
"""Floats from one of a tile's coefficients or sums to the next of them, which share an array: LLVM does not vectorise a
loop over many arrays, since any two might overlap. No power of 2, or they would evict each other from the first cache.
"""
L1, L2, L3, L4, L5 = (LANE * number for number in range(1, 6))


@numba.njit(**OPTIONS)
def _cut(size, channels):
    """(tile, chunks, numbers in a chunk) of a flat array of positions of `channels`."""
    tile = channels * max(1, TILE // channels)
    tiles = (size + tile - 1) // tile
    chunks = max(1, min(min(MAX_CHUNKS, size // CHUNK), tiles))
    return tile, chunks, (tiles + chunks - 1) // chunks * tile


@numba.njit(**OPTIONS)
def _repeat(values, size, out):
    """The float32 `values` over and over in the first `size` places of `out`."""
    for start in range(0, size, len(values)):
        out[start : start + len(values)] = values


@numba.njit(**OPTIONS)
def _fold(lanes, tile, out):
    """out (sums, C) += lanes (sums * LANE,): what the places of a tile have gathered, added up for each channel."""
    channels = out.shape[1]
    for number in range(out.shape[0]):
        for start in range(0, tile, channels):
            for c in range(channels):
                out[number, c] += lanes[number * LANE + start + c]


@numba.njit(**OPTIONS)
def _add_up(partial, batch):
    """(batch * chunks, sums, C) of the chunks -> (batch, sums, C), in the order of the chunks."""
    chunks = partial.shape[0] // batch
    out = np.zeros((batch, partial.shape[1], partial.shape[2]))
    for task in range(partial.shape[0]):
        out[task // chunks] += partial[task]
    return out


# --- statistics ---------------------------------------------------------------------------------------------------


@numba.njit(**OPTIONS)
def _add_moments(x, tile, shift, sums):
    """Add the first two moments of x - shift to `sums` (2 * LANE,)."""
    start = 0
    while start + 4 * tile <= len(x):
        x0, x1 = x[start : start + tile], x[start + tile : start + 2 * tile]
        x2, x3 = x[start + 2 * tile : start + 3 * tile], x[start + 3 * tile : start + 4 * tile]
        for c in range(tile):
            d0, d1, d2 = widen(x0[c]) - shift[c], widen(x1[c]) - shift[c], widen(x2[c]) - shift[c]
            d3 = widen(x3[c]) - shift[c]
            sums[c] += (d0 + d1) + (d2 + d3)
            sums[c + L1] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        start += 4 * tile
    while start < len(x):
        x0 = x[start : start + tile]
        for c in range(len(x0)):
            d0 = widen(x0[c]) - shift[c]
            sums[c] += d0
            sums[c + L1] += d0 * d0
        start += tile


@in_parallel
def batch_moments(x, channels):
    """Mean and biased variance of every channel.

    Args:
        x: (positions * C,), stored numbers.
        channels: C.

    Returns:
        mean and variance, (C,) float64; float32 sums within a chunk, taken about its first position, float64 beyond.
    """
    tile, chunks, step = _cut(x.size, channels)
    firsts, sums = np.zeros((chunks, channels), np.float32), np.zeros((chunks, 2, channels))
    for k in numba.prange(chunks):
        part = x[k * step : (k + 1) * step]
        if part.size:
            for c in range(channels):
                firsts[k, c] = widen(part[c])
            lanes, shift = np.zeros(2 * LANE, np.float32), np.empty(LANE, np.float32)
            _repeat(firsts[k], tile, shift)
            _add_moments(part, tile, shift, lanes)
            _fold(lanes, tile, sums[k])
    mean, scatter = np.zeros(channels), np.zeros(channels)
    count = 0
    for k in range(chunks):
        rows = (min(x.size, (k + 1) * step) - k * step) // channels
        if rows <= 0:
            break
        total = count + rows
        for c in range(channels):
            # Chan, Golub and LeVeque 1979: two groups' means and scatters into one.
            first, second = sums[k, 0, c], sums[k, 1, c]
            delta = firsts[k, c] + first / rows - mean[c]
            scatter[c] += second - first * first / rows + delta * delta * count * rows / total
            mean[c] += delta * rows / total
        count = total
    for c in range(channels):
        scatter[c] = max(scatter[c], 0.0) / count
    return mean, scatter


# --- normalisation and SiLU, with or without a gate ---------------------------------------------------------------


@numba.njit(**OPTIONS)
def _write_silu(x, own, out):
    for c in range(len(x)):
        out[c] = narrow(silu_of(widen(x[c]) * own[c] + own[c + L1]) * own[c + L2], out)


@in_parallel
def silu(x, scale, shift, gate, out):
    """out = SiLU(z) * gate.

    Args:
        x: (B, positions * C), stored numbers; without a gate the batch may come as one image.
        scale, shift: (C,) float32.
        gate: (B, C) float32.
        out: as x, takes the result.
    """
    batch, size = x.shape
    tile, chunks, step = _cut(size, scale.size)
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        own = np.empty(3 * LANE, np.float32)
        _repeat(scale, tile, own)
        _repeat(shift, tile, own[L1:])
        _repeat(gate[b], tile, own[L2:])
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            _write_silu(x[b, start:end], own, out[b, start:end])


@numba.njit(**OPTIONS)
def _add_silu(x, own, sums):
    for c in range(len(x)):
        sums[c] += silu_of(widen(x[c]) * own[c] + own[c + L1])


@in_parallel
def silu_sums(x, scale, shift):
    """Sum of SiLU(z) over the positions of each image: (B, positions * C), (C,), (C,) -> (B, C) float64."""
    batch, size = x.shape
    tile, chunks, step = _cut(size, scale.size)
    partial = np.zeros((batch * chunks, 1, scale.size))
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        own, sums = np.empty(2 * LANE, np.float32), np.zeros(LANE, np.float32)
        _repeat(scale, tile, own)
        _repeat(shift, tile, own[L1:])
        for start in range(k * step, min(size, (k + 1) * step), tile):
            _add_silu(x[b, start : min(size, start + tile)], own, sums)
        _fold(sums, tile, partial[task])
    return _add_up(partial, batch)[:, 0]


@numba.njit(**OPTIONS)
def _add_slopes(x, gradient, own, sums):
    for c in range(len(x)):
        value = widen(x[c])
        slope = widen(gradient[c]) * silu_and_slope(value * own[c] + own[c + L1])[1]
        sums[c] += slope
        sums[c + L1] += slope * (value - own[c + L2])


@numba.njit(**OPTIONS)
def _add_gated_slopes(x, gradient, own, sums):
    for c in range(len(x)):
        value, g = widen(x[c]), widen(gradient[c])
        activated, slope = silu_and_slope(value * own[c] + own[c + L1])
        centred = slope * (value - own[c + L2])
        sums[c] += g * slope
        sums[c + L1] += g * centred
        sums[c + L2] += g * activated
        sums[c + L3] += slope
        sums[c + L4] += centred


@in_parallel
def slope_sums(x, gradient, scale, shift, mean, gated):
    """What the backward pass of `silu` needs from all positions of an image.

    Args:
        x, gradient: (B, positions * C), stored numbers; the gradient g of the output.
        scale, shift, mean: (C,) float32.
        gated: whether sums 2 to 4 are needed.

    Returns:
        (B, 5, C) float64, sums of g s', g s' (x - mean), g SiLU(z), s', s' (x - mean), with s' = SiLU'(z).
    """
    batch, size = x.shape
    tile, chunks, step = _cut(size, scale.size)
    partial = np.zeros((batch * chunks, 5, scale.size))
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        own, sums = np.empty(3 * LANE, np.float32), np.zeros(5 * LANE, np.float32)
        _repeat(scale, tile, own)
        _repeat(shift, tile, own[L1:])
        _repeat(mean, tile, own[L2:])
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            if gated:
                _add_gated_slopes(x[b, start:end], gradient[b, start:end], own, sums)
            else:
                _add_slopes(x[b, start:end], gradient[b, start:end], own, sums)
        _fold(sums, tile, partial[task])
    return _add_up(partial, batch)


@numba.njit(**OPTIONS)
def _write_silu_gradient(x, gradient, own, out):
    for c in range(len(x)):
        value = widen(x[c])
        slope = silu_and_slope(value * own[c] + own[c + L1])[1]
        outer = (widen(gradient[c]) * own[c + L2] + own[c + L3]) * slope
        out[c] = narrow(outer - (value * own[c + L4] + own[c + L5]), out)


@in_parallel
def silu_gradient(x, gradient, scale, shift, gate, lift, slope, offset, out):
    """out = (gradient * gate + lift) * SiLU'(z) - (x * slope + offset), the gradient of a normalised, gated SiLU.

    Args:
        x, gradient: (B, positions * C), stored numbers.
        scale, shift, slope, offset: (C,) float32.
        gate, lift: (B, C) float32.
        out: as x, takes the result.
    """
    batch, size = x.shape
    tile, chunks, step = _cut(size, scale.size)
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        own = np.empty(6 * LANE, np.float32)
        _repeat(scale, tile, own)
        _repeat(shift, tile, own[L1:])
        _repeat(gate[b], tile, own[L2:])
        _repeat(lift[b], tile, own[L3:])
        _repeat(slope, tile, own[L4:])
        _repeat(offset, tile, own[L5:])
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            _write_silu_gradient(x[b, start:end], gradient[b, start:end], own, out[b, start:end])


# --- products and sums without an activation ----------------------------------------------------------------------


@numba.njit(**OPTIONS)
def _write_scaled(x, own, out):
    for c in range(len(x)):
        out[c] = narrow(widen(x[c]) * own[c] + own[c + L1], out)


@numba.njit(**OPTIONS)
def _write_scaled_and_added(x, other, own, out):
    for c in range(len(x)):
        out[c] = narrow(widen(x[c]) * own[c] + own[c + L1] + widen(other[c]), out)


@in_parallel
def scale_and_add(x, scale, shift, other, out):
    """out = x * scale + shift + other.

    Args:
        x: (B, positions * C), stored numbers.
        scale, shift: (B, C) float32.
        other: as x, or (B, 0) for nothing.
        out: as x, takes the result.
    """
    batch, size = x.shape
    tile, chunks, step = _cut(size, scale.shape[1])
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        own = np.empty(2 * LANE, np.float32)
        _repeat(scale[b], tile, own)
        _repeat(shift[b], tile, own[L1:])
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            if other.shape[1]:
                _write_scaled_and_added(x[b, start:end], other[b, start:end], own, out[b, start:end])
            else:
                _write_scaled(x[b, start:end], own, out[b, start:end])


@numba.njit(**OPTIONS)
def _add_products(x, gradient, center, sums):
    for c in range(len(x)):
        g = widen(gradient[c])
        sums[c] += g
        sums[c + L1] += g * (widen(x[c]) - center[c])


@in_parallel
def product_sums(x, gradient, center):
    """Sums over the positions of each image.

    Args:
        x, gradient: (B, positions * C), stored numbers.
        center: (C,) float32.

    Returns:
        (B, 2, C) float64, sums of gradient and of gradient * (x - center).
    """
    batch, size = x.shape
    tile, chunks, step = _cut(size, center.size)
    partial = np.zeros((batch * chunks, 2, center.size))
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        own, sums = np.empty(LANE, np.float32), np.zeros(2 * LANE, np.float32)
        _repeat(center, tile, own)
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            _add_products(x[b, start:end], gradient[b, start:end], own, sums)
        _fold(sums, tile, partial[task])
    return _add_up(partial, batch)


@numba.njit(**OPTIONS)
def _write_gradient(x, gradient, own, out):
    for c in range(len(x)):
        out[c] = narrow(widen(gradient[c]) * own[c] - (widen(x[c]) * own[c + L1] + own[c + L2]), out)


@in_parallel
def norm_gradient(x, gradient, scale, slope, offset, out):
    """out = gradient * scale - (x * slope + offset), the gradient of a normalisation without an activation.

    Args:
        x, gradient: (B, positions * C), stored numbers.
        scale: (B, C) float32.
        slope, offset: (C,) float32.
        out: as x, takes the result.
    """
    batch, size = x.shape
    tile, chunks, step = _cut(size, slope.size)
    for task in numba.prange(batch * chunks):
        b, k = task // chunks, task % chunks
        own = np.empty(3 * LANE, np.float32)
        _repeat(scale[b], tile, own)
        _repeat(slope, tile, own[L1:])
        _repeat(offset, tile, own[L2:])
        for start in range(k * step, min(size, (k + 1) * step), tile):
            end = min(size, start + tile)
            _write_gradient(x[b, start:end], gradient[b, start:end], own, out[b, start:end])
