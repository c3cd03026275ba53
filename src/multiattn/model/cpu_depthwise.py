"""Depthwise convolution over channels-last arrays on a CPU, forward and backward; see `cpu_kernels.py`."""

import numba
import numpy as np

from multiattn.model.cpu_arithmetic import OPTIONS, in_parallel, narrow, widen

BLOCK = 128
"""Channels in a block of the kernel's gradient: their sums of all taps stay in the first cache."""
CHUNKS = 32
"""Parts the rows of the kernel's gradient are cut into."""
INDEX = np.uint64
"""Unsigned offsets: numba would compile signed ones with Python's wraparound, which does not vectorise."""
B1, B2, B3, B4, B5, B6, B7 = (INDEX(place * BLOCK) for place in range(1, 8))


@numba.njit(**OPTIONS)
def _copy_channels(row, width, channels, low, count, left, out):
    """Channels low .. low + count of a (W * C,) row to (W, BLOCK) places that begin `left` pixels into `out`."""
    for column in range(width):
        target, source = INDEX((column + left) * BLOCK), INDEX(column * channels + low)
        for c in range(INDEX(count)):
            out[target + c] = widen(row[source + c])


@numba.njit(**OPTIONS)
def _add_four_columns_3(gradient, line, at, channels, count, seen, sums):
    """sums (3, BLOCK) += gradient (w * C,) at four columns, times the 6 pixels of `line` they saw with stride 1."""
    p0, p1, p2, p3 = INDEX(at), INDEX(at + channels), INDEX(at + 2 * channels), INDEX(at + 3 * channels)
    r = INDEX(seen)
    for c in range(INDEX(count)):
        g0, g1, g2, g3 = (
            widen(gradient[p0 + c]),
            widen(gradient[p1 + c]),
            widen(gradient[p2 + c]),
            widen(gradient[p3 + c]),
        )
        x0, x1, x2, x3 = line[r + c], line[r + B1 + c], line[r + B2 + c], line[r + B3 + c]
        x4, x5 = line[r + B4 + c], line[r + B5 + c]
        sums[c] += (g0 * x0 + g1 * x1) + (g2 * x2 + g3 * x3)
        sums[B1 + c] += (g0 * x1 + g1 * x2) + (g2 * x3 + g3 * x4)
        sums[B2 + c] += (g0 * x2 + g1 * x3) + (g2 * x4 + g3 * x5)


@numba.njit(**OPTIONS)
def _add_four_columns_5(gradient, line, at, channels, count, seen, sums):
    """As `_add_four_columns_3`, with 5 taps; written out, since a loop over taps would not stay in registers."""
    p0, p1, p2, p3 = INDEX(at), INDEX(at + channels), INDEX(at + 2 * channels), INDEX(at + 3 * channels)
    r = INDEX(seen)
    for c in range(INDEX(count)):
        g0, g1, g2, g3 = (
            widen(gradient[p0 + c]),
            widen(gradient[p1 + c]),
            widen(gradient[p2 + c]),
            widen(gradient[p3 + c]),
        )
        x0, x1, x2, x3 = line[r + c], line[r + B1 + c], line[r + B2 + c], line[r + B3 + c]
        x4, x5, x6, x7 = line[r + B4 + c], line[r + B5 + c], line[r + B6 + c], line[r + B7 + c]
        sums[c] += (g0 * x0 + g1 * x1) + (g2 * x2 + g3 * x3)
        sums[B1 + c] += (g0 * x1 + g1 * x2) + (g2 * x3 + g3 * x4)
        sums[B2 + c] += (g0 * x2 + g1 * x3) + (g2 * x4 + g3 * x5)
        sums[B3 + c] += (g0 * x3 + g1 * x4) + (g2 * x5 + g3 * x6)
        sums[B4 + c] += (g0 * x4 + g1 * x5) + (g2 * x6 + g3 * x7)


@numba.njit(**OPTIONS)
def _add_column(gradient, line, at, count, seen, size, sums):
    """sums (size, BLOCK) += gradient (w * C,) at one column, times the `size` pixels of `line` it saw."""
    p, r = INDEX(at), INDEX(seen)
    for c in range(INDEX(count)):
        g = widen(gradient[p + c])
        sums[c] += g * line[r + c]
        sums[B1 + c] += g * line[r + B1 + c]
        sums[B2 + c] += g * line[r + B2 + c]
    if size == 5:
        for c in range(INDEX(count)):
            g = widen(gradient[p + c])
            sums[B3 + c] += g * line[r + B3 + c]
            sums[B4 + c] += g * line[r + B4 + c]


@numba.njit(**OPTIONS)
def _add_row(gradient, line, width, stride, channels, low, count, size, sums):
    """sums (size, BLOCK) += gradient (w * C,) times the pixels of `line` that each of its columns saw."""
    fours = width // 4 if stride == 1 else 0
    for number in range(fours):
        at, seen = 4 * number * channels + low, 4 * number * BLOCK
        if size == 3:
            _add_four_columns_3(gradient, line, at, channels, count, seen, sums)
        else:
            _add_four_columns_5(gradient, line, at, channels, count, seen, sums)
    for column in range(4 * fours, width):
        _add_column(gradient, line, column * channels + low, count, column * stride * BLOCK, size, sums)


@in_parallel
def depthwise_weight_gradient(x, gradient, size, stride, top, left):
    """Gradient of a depthwise kernel.

    Args:
        x: (B, H, W, C), stored numbers, the convolution's input without its padding.
        gradient: (B, h, w, C), stored numbers, of the output.
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
    for k in numba.prange(chunks):
        line = np.zeros(places * BLOCK, np.float32)  # a row of x between its padding
        for row in range(k * step, min(rows, (k + 1) * step)):
            b, y = row // height, row % height
            for block in range(blocks):
                low = block * BLOCK
                count = min(BLOCK, channels - low)
                _copy_channels(x[b, y].reshape(width * channels), width, channels, low, count, left, line)
                for i in range(size):
                    out_row = y + top - i
                    if out_row % stride or not 0 <= out_row // stride < out_height:
                        continue
                    slopes = gradient[b, out_row // stride].reshape(out_width * channels)
                    _add_row(slopes, line, out_width, stride, channels, low, count, size, partial[k, block, i])
    out = np.zeros((size, size, channels))
    for block in numba.prange(blocks):
        for k in range(chunks):
            for i in range(size):
                for j in range(size):
                    _add_to(out[i, j, block * BLOCK : (block + 1) * BLOCK], partial[k, block, i, j * BLOCK :])
    return out


@numba.njit(**OPTIONS)
def _add_to(out, values):
    for c in range(len(out)):
        out[c] += values[c]


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
            out[q + c] += widen(source[p + c]) * weight[c]
        source_at += source_step
        out_at += out_step


@numba.njit(**OPTIONS)
def _write(line, out):
    for place in range(len(line)):
        out[place] = narrow(line[place], out)


@in_parallel
def depthwise_forward(x, weight, stride, top, left, out):
    """Depthwise cross-correlation that reads the padding's zeros from nowhere.

    Args:
        x: (B, H, W, C), stored numbers.
        weight: (k, k, C) float32.
        stride: in both directions.
        top, left: zeros before the first row and column; those after the last follow from the shapes.
        out: (B, h, w, C), stored numbers, takes the result.
    """
    height, width, channels = x.shape[1:]
    batch, out_height, out_width = out.shape[:3]
    size = weight.shape[0]
    for task in numba.prange(batch * out_height):
        b, out_row = task // out_height, task % out_height
        line = np.zeros(out_width * channels, np.float32)
        for i in range(size):
            y = out_row * stride + i - top
            if 0 <= y < height:
                source = x[b, y].reshape(width * channels)
                for j in range(size):
                    first, end = _columns_seen(width, out_width, stride, j - left)
                    start, step = (first * stride + j - left) * channels, stride * channels
                    _add_scaled(source, weight[i, j], line, end - first, start, step, first * channels, channels)
        _write(line, out[b, out_row].reshape(out_width * channels))


@in_parallel
def depthwise_input_gradient(gradient, weight, stride, top, left, out):
    """Gradient of `depthwise_forward` with respect to x.

    Args:
        gradient: (B, h, w, C), stored numbers, of the output.
        weight, stride, top, left: as in `depthwise_forward`.
        out: (B, H, W, C), stored numbers, takes the result.
    """
    out_height, out_width, channels = gradient.shape[1:]
    batch, height, width = out.shape[:3]
    size = weight.shape[0]
    for task in numba.prange(batch * height):
        b, y = task // height, task % height
        line = np.zeros(width * channels, np.float32)
        for i in range(size):
            out_row = y + top - i
            if out_row % stride == 0 and 0 <= out_row // stride < out_height:
                source = gradient[b, out_row // stride].reshape(out_width * channels)
                for j in range(size):
                    first, end = _columns_seen(width, out_width, stride, j - left)
                    start, step = (first * stride + j - left) * channels, stride * channels
                    _add_scaled(source, weight[i, j], line, end - first, first * channels, channels, start, step)
        _write(line, out[b, y].reshape(width * channels))
