"""Loops over float32 that LLVM turns into vectors, which it does neither with its library's ``exp`` nor with a maximum of floats."""

import numpy as np
from numba import njit

_f, _i = np.float32, np.int32


@njit(inline="always")
def exp(x):
    """The exponential of ``x``, at most 0, within two steps of float32 (coefficients of Cephes); of a NaN of either sign, a NaN."""
    x = max(x, _f(-87))
    n = np.floor(x * _f(1.44269504088896341) + _f(0.5))
    r = x - n * _f(0.693359375) + n * _f(2.12194440e-4)
    y = _f(1.9875691500e-4)
    y = y * r + _f(1.3981999507e-3)
    y = y * r + _f(8.3334519073e-3)
    y = y * r + _f(4.1665795894e-2)
    y = y * r + _f(1.6666665459e-1)
    y = y * r + _f(5.0000001201e-1)
    y = y * (r * r) + r + _f(1)
    return y * np.uint32((_i(n) + _i(127)) << _i(23)).view(np.float32)


@njit(inline="always")
def largest(values):
    """The largest: as integers, whose order is that of the numbers. A NaN is above all of them or below, by its sign: :func:`exp` tells of it."""
    found = _ordered(values[0])
    for i in range(values.size):
        found = max(found, _ordered(values[i]))
    return _ordered(_i(found).view(np.float32)).view(np.float32)


@njit(inline="always")
def _ordered(value):
    bits = _f(value).view(np.int32)
    return _i(bits ^ ((bits >> _i(31)) & _i(0x7FFFFFFF)))


@njit(inline="always")
def softmax(values):
    """Replace numbers by their softmax, in float32."""
    top, total = largest(values), _f(0)
    for i in range(values.size):
        values[i] = exp(values[i] - top)
        total += values[i]
    for i in range(values.size):
        values[i] /= total


@njit(inline="always")
def squeeze(values, softcap):
    """Squeeze numbers below ``softcap``, if it is above 0."""
    if softcap > 0:
        for i in range(values.size):
            values[i] = np.tanh(values[i] / softcap) * softcap


@njit(inline="always")
def copy(source, target):
    """Copy a matrix element by element: for an assignment of arrays Numba compiles what would write its error, too, which takes seconds."""
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            target[i, j] = source[i, j]
