"""Depthwise convolution over channels-last float32 arrays on a CPU, forward and backward; see `cpu_kernels.py`."""

import numba
import numpy as np

from multiattn.model.cpu_kernels import OPTIONS

BLOCK = 64
"""Channels in a block of the kernel's gradient: their sums of all taps stay in the first cache."""
CHUNKS = 16
"""Parts the rows of the kernel's gradient are cut into."""
ZERO = np.float32(0.0)
INDEX = np.uint64
"""Unsigned offsets: numba would compile signed ones with Python's wraparound, which does not vectorise."""
B0, B1, B2, B3, B4 = (INDEX(tap * BLOCK) for tap in range(5))


@numba.njit(**OPTIONS)
def _copy_channels(row, width, channels, low, count, left, out):
    """Channels low .. low + count of a (W * C,) row to (W, BLOCK) places that begin `left` pixels into `out`."""
    for column in range(width):
        target, source = INDEX((column + left) * BLOCK), INDEX(column * channels + low)
        for c in range(INDEX(count)):
            out[target + c] = row[source + c]


@numba.njit(**OPTIONS)
def _add_taps_3(gradient, line, width, stride, channels, low, count, sums):
    """sums (3, BLOCK) += gradient (w * C,) times the 3 pixels of `line` that each of its columns saw."""
    for column in range(0, width - 1, 2):
        p, q = INDEX(column * channels + low), INDEX((column + 1) * channels + low)
        r, t = INDEX(column * stride * BLOCK), INDEX((column + 1) * stride * BLOCK)
        for c in range(INDEX(count)):
            g, h = gradient[p + c], gradient[q + c]
            sums[c] += g * line[r + c] + h * line[t + c]
            sums[B1 + c] += g * line[r + B1 + c] + h * line[t + B1 + c]
            sums[B2 + c] += g * line[r + B2 + c] + h * line[t + B2 + c]
    if width % 2:
        p, r = INDEX((width - 1) * channels + low), INDEX((width - 1) * stride * BLOCK)
        for c in range(INDEX(count)):
            g = gradient[p + c]
            sums[c] += g * line[r + c]
            sums[B1 + c] += g * line[r + B1 + c]
            sums[B2 + c] += g * line[r + B2 + c]


@numba.njit(**OPTIONS)
def _add_taps_5(gradient, line, width, stride, channels, low, count, sums):
    """As `_add_taps_3`, with 5 taps; written out, since a loop over taps would not stay in registers."""
    for column in range(0, width - 1, 2):
        p, q = INDEX(column * channels + low), INDEX((column + 1) * channels + low)
        r, t = INDEX(column * stride * BLOCK), INDEX((column + 1) * stride * BLOCK)
        for c in range(INDEX(count)):
            g, h = gradient[p + c], gradient[q + c]
            sums[c] += g * line[r + c] + h * line[t + c]
            sums[B1 + c] += g * line[r + B1 + c] + h * line[t + B1 + c]
            sums[B2 + c] += g * line[r + B2 + c] + h * line[t + B2 + c]
            sums[B3 + c] += g * line[r + B3 + c] + h * line[t + B3 + c]
            sums[B4 + c] += g * line[r + B4 + c] + h * line[t + B4 + c]
    if width % 2:
        p, r = INDEX((width - 1) * channels + low), INDEX((width - 1) * stride * BLOCK)
        for c in range(INDEX(count)):
            g = gradient[p + c]
            sums[c] += g * line[r + c]
            sums[B1 + c] += g * line[r + B1 + c]
            sums[B2 + c] += g * line[r + B2 + c]
            sums[B3 + c] += g * line[r + B3 + c]
            sums[B4 + c] += g * line[r + B4 + c]


@numba.njit(parallel=True, **OPTIONS)
def depthwise_weight_gradient(x, gradient, size, stride, top, left):
    """Gradient of a depthwise kernel.

    Args:
        x: (B, H, W, C) float32, the convolution's input without its padding.
        gradient: (B, h, w, C) float32, of the output.
        size: of the square kernel, 3 or 5.
        stride: in both directions.
        top, left: zeros before the first row and column; those after the last follow from the shapes.

    Returns:
        (size, size, C) float64.
    """
    batch, height, width, channels = x.shape
    out_height, out_width = gradient.shape[1:3]
    rows, blocks = batch * height, (channels + BLOCK - 1) // BLOCK
    chunks = min(rows, CHUNKS)
    step = (rows + chunks - 1) // chunks
    partial = np.zeros((chunks, blocks, size, size * BLOCK), np.float32)
    places = max(width + left, (out_width - 1) * stride + size)
    for task in numba.prange(chunks * blocks):
        k, block = task // blocks, task % blocks
        low = block * BLOCK
        count = min(BLOCK, channels - low)
        line = np.zeros(places * BLOCK, np.float32)  # a row of x between its padding
        for row in range(k * step, min(rows, (k + 1) * step)):
            b, y = row // height, row % height
            _copy_channels(x[b, y].reshape(width * channels), width, channels, low, count, left, line)
            for i in range(size):
                out_row = y + top - i
                if out_row % stride or not 0 <= out_row // stride < out_height:
                    continue
                slopes = gradient[b, out_row // stride].reshape(out_width * channels)
                if size == 3:
                    _add_taps_3(slopes, line, out_width, stride, channels, low, count, partial[k, block, i])
                else:
                    _add_taps_5(slopes, line, out_width, stride, channels, low, count, partial[k, block, i])
    out = np.zeros((size, size, channels))
    for k in range(chunks):
        for i in range(size):
            for j in range(size):
                for c in range(channels):
                    out[i, j, c] += partial[k, c // BLOCK, i, j * BLOCK + c % BLOCK]
    return out


@numba.njit(**OPTIONS)
def _columns_seen(width, out_width, stride, shift):
    """(first, end) of the output columns o with 0 <= o * stride + shift < width."""
    first = max(0, (stride - 1 - shift) // stride)
    return first, max(first, min(out_width, (width - shift + stride - 1) // stride))


@numba.njit(**OPTIONS)
def _add_scaled(source, weight, out, count, source_at, source_step, out_at, out_step):
    """out (.., C) += source (.., C) * weight (C,), at `count` places each its own step apart."""
    for _ in range(count):
        p, q = INDEX(source_at), INDEX(out_at)
        for c in range(INDEX(len(weight))):
            out[q + c] += source[p + c] * weight[c]
        source_at += source_step
        out_at += out_step


@numba.njit(parallel=True, **OPTIONS)
def depthwise_forward(x, weight, stride, top, left, out):
    """Depthwise cross-correlation that reads the padding's zeros from nowhere.

    Args:
        x: (B, H, W, C) float32.
        weight: (k, k, C) float32.
        stride: in both directions.
        top, left: zeros before the first row and column; those after the last follow from the shapes.
        out: (B, h, w, C) float32, takes the result.
    """
    height, width, channels = x.shape[1:]
    batch, out_height, out_width = out.shape[:3]
    size = weight.shape[0]
    for task in numba.prange(batch * out_height):
        b, out_row = task // out_height, task % out_height
        line = out[b, out_row].reshape(out_width * channels)
        line[:] = ZERO
        for i in range(size):
            y = out_row * stride + i - top
            if 0 <= y < height:
                source = x[b, y].reshape(width * channels)
                for j in range(size):
                    first, end = _columns_seen(width, out_width, stride, j - left)
                    start, step = (first * stride + j - left) * channels, stride * channels
                    _add_scaled(source, weight[i, j], line, end - first, start, step, first * channels, channels)


@numba.njit(parallel=True, **OPTIONS)
def depthwise_input_gradient(gradient, weight, stride, top, left, out):
    """Gradient of `depthwise_forward` with respect to x.

    Args:
        gradient: (B, h, w, C) float32, of the output.
        weight, stride, top, left: as in `depthwise_forward`.
        out: (B, H, W, C) float32, takes the result.
    """
    out_height, out_width, channels = gradient.shape[1:]
    batch, height, width = out.shape[:3]
    size = weight.shape[0]
    for task in numba.prange(batch * height):
        b, y = task // height, task % height
        line = out[b, y].reshape(width * channels)
        line[:] = ZERO
        for i in range(size):
            out_row = y + top - i
            if out_row % stride == 0 and 0 <= out_row // stride < out_height:
                source = gradient[b, out_row // stride].reshape(out_width * channels)
                for j in range(size):
                    first, end = _columns_seen(width, out_width, stride, j - left)
                    start, step = (first * stride + j - left) * channels, stride * channels
                    _add_scaled(source, weight[i, j], line, end - first, first * channels, channels, start, step)
