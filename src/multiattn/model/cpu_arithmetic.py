"""Numbers inside the loops of `cpu_kernels.py` and `cpu_depthwise.py`: stored forms, and SiLU with its slope.

An array holds float32 or bfloat16. NumPy has no bfloat16, so an array of them holds their bits as uint16. Arithmetic
is float32 in registers either way: a bfloat16 is the upper half of a float32.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

# Fused multiply-add is welcome; sums keep their order and NaN stays NaN.
OPTIONS: dict[str, Any] = {"fastmath": {"contract", "arcp", "nsz"}, "error_model": "numpy", "cache": True}

FLOAT, BITS, HALF_BITS = ir.FloatType(), ir.IntType(32), ir.IntType(16)

HALF, ONE = np.float32(0.5), np.float32(1.0)
MINUS_LOG2_E, LARGEST = np.float32(-1.4426950408889634), np.float32(126.0)
# Minimax polynomial of 2^r on [-1/2, 1/2] in the relative error, which is 7.5e-8 (Lawson's reweighted least squares).
E0, E1, E2 = (np.float32(value) for value in (1.0000000717, 6.9314696705e-1, 2.4022119718e-1))
E3, E4, E5 = (np.float32(value) for value in (5.5507132917e-2, 9.6755416821e-3, 1.3276467200e-3))


def in_parallel(function: Callable) -> Callable:
    """Compile a function whose `prange` loops alone run in parallel.

    By default numba makes a parallel region of every array it fills as well, and a region costs 50 microseconds where
    idle threads sleep: 200 for the mean and variance of a small map.
    """
    automatic = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion")
    return numba.njit(parallel={"prange": True, **dict.fromkeys(automatic, False)}, **OPTIONS)(function)


@intrinsic
def widen(typing_context: Any, value: Any) -> Any:
    """The float32 of a stored number: of a float32 itself, or of a bfloat16's bits."""
    if value not in (types.float32, types.uint16):
        raise TypingError(f"widen: expected float32 or uint16, found {value}.")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if value == types.float32:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], BITS), ir.Constant(BITS, 16)), FLOAT)

    return types.float32(value), generate


@intrinsic
def narrow(typing_context: Any, value: Any, out: Any) -> Any:
    """A float32 as the array `out` stores it: to the nearest bfloat16, ties to even, as ATen does.

    In integers, which every machine vectorises. A NaN of arithmetic stays one; only a NaN whose lower bits are all
    set, which no processor makes, would not.
    """
    if out.dtype not in (types.float32, types.uint16):
        raise TypingError(f"narrow: expected an array of float32 or uint16, found {out}.")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if out.dtype == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], BITS)
        odd = builder.and_(builder.lshr(bits, ir.Constant(BITS, 16)), ir.Constant(BITS, 1))
        rounded = builder.add(builder.add(bits, odd), ir.Constant(BITS, 0x7FFF))
        return builder.trunc(builder.lshr(rounded, ir.Constant(BITS, 16)), HALF_BITS)

    return out.dtype(types.float32, out), generate


@intrinsic
def _floor(typing_context: Any, value: Any) -> Any:
    """llvm.floor, which vectorises; NumPy's becomes a call."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.floor", [FLOAT]), arguments)

    return types.float32(types.float32), generate


@intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** exponent of a whole float32 in [-126, 127], by writing its exponent bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        biased = builder.add(builder.fptosi(arguments[0], BITS), ir.Constant(BITS, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(BITS, 23)), FLOAT)

    return types.float32(types.float32), generate


@numba.njit(**OPTIONS)
def _exp_minus(z):
    """e ** -z, within 2 ** -126 and 2 ** 126."""
    t = z * MINUS_LOG2_E
    t = LARGEST if t > LARGEST else t
    t = -LARGEST if t < -LARGEST else t
    n = _floor(t + HALF)
    r = t - n
    return (((((E5 * r + E4) * r + E3) * r + E2) * r + E1) * r + E0) * _power_of_two(n)


@numba.njit(**OPTIONS)
def silu_of(z):
    return z / (ONE + _exp_minus(z))


@numba.njit(**OPTIONS)
def silu_and_slope(z):
    """SiLU(z) = z s and its derivative s + z s (1 - s), where s = sigmoid(z)."""
    s = ONE / (ONE + _exp_minus(z))
    value = z * s
    return value, s + value * (ONE - s)
