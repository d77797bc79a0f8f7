"""Products with perturbed weights that exist nowhere as a whole (Numba, CPU).

A few columns' noise is drawn, the weights W + s z of one lane are laid out as the product reads them, and all of the lane's rows
go by while they are in the cache. Float32; each sum is made term after term, so that a row's result is the same bits
whatever rows are beside it, for any number of threads, and on any processor that has FMA.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from twinpass.perturb.compiled import kernel
from twinpass.perturb.draw import CODES, draw
from twinpass.perturb.gemm.registers import COLUMNS, ROWS, WIDTH, aligned, form, product_of_row, product_of_rows
from twinpass.perturb.noise import UNIT, Distribution
from twinpass.perturb.threads import threads_for
from twinpass.phases import phase

AVAILABLE = WIDTH > 0
"""Whether this processor is one that the products are made for: AVX-512, or AVX2 with FMA.

There they are always taken, not where a measurement at the start finds them faster: a row keeps its bits beside any other rows, which a library
does not promise. The other way, writing both lanes and the library's product, is ``written float32`` in ``benchmarks/products.py``.
"""

_f = np.float32


@njit(inline="always")
def _form(w, at, width, z, first, scale, columns, panel):
    """``panel[k * COLUMNS + j]``: input k's weight for output j of these ``columns``; zero for outputs beyond them."""
    whole = width // WIDTH * WIDTH
    for j in range(0, COLUMNS, WIDTH):
        transposed = whole if columns >= j + WIDTH else 0
        for k in range(0, transposed, WIDTH):
            form(w, at + j * width + k, width, z, first + j * width + k, scale, panel, k * COLUMNS + j)
        for k in range(transposed, width):
            for i in range(j, j + WIDTH):
                if i < columns:
                    panel[k * COLUMNS + i] = w[at + i * width + k] + scale * z[first + i * width + k]
                else:
                    panel[k * COLUMNS + i] = _f(0)


@kernel(parallel=True)
def _multiply(x, w, scales, y, code, seed, high):
    lanes, rows, width = x.shape
    out = y.shape[2]
    source, target = x.reshape(-1), y.reshape(-1)
    # The last tile of rows begins early enough to be whole, and computes some of them again to the same bits.
    count, last = min(ROWS, rows), max(0, rows - ROWS)
    for c in prange((out + COLUMNS - 1) // COLUMNS):
        n = c * COLUMNS
        columns = min(COLUMNS, out - n)
        unit = n * width // UNIT
        units = ((n + columns) * width + UNIT - 1) // UNIT - unit
        z = np.empty(units * UNIT, np.float32)
        draw(z, unit, units, code, seed, high)
        # width x COLUMNS weights of one lane stay in the second cache while that lane's rows go by; z, drawn once, serves all lanes.
        panel, part = aligned(width * COLUMNS), np.empty(ROWS * COLUMNS, np.float32)
        for lane in range(lanes):
            _form(w, n * width, width, z, n * width - unit * UNIT, _f(scales[lane]), columns, panel)
            for r in range(0, rows, ROWS):
                row = lane * rows + min(r, last)
                at, to = row * width, row * out + n
                if count == ROWS and columns == COLUMNS:
                    product_of_rows(source, at, width, panel, width, target, to, out)
                    continue
                if count == ROWS:
                    product_of_rows(source, at, width, panel, width, part, 0, COLUMNS)
                else:
                    for i in range(count):
                        product_of_row(source, at + i * width, width, panel, width, part, i * COLUMNS, COLUMNS)
                for i in range(count):
                    target[to + i * out : to + i * out + columns] = part[i * COLUMNS : i * COLUMNS + columns]


@phase("product")
def multiply(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    scales: NDArray[np.float64],
    y: NDArray[np.float32],
    seed: int,
    key: int,
    distribution: Distribution,
) -> None:
    """``y[l] = x[l] (w + scales[l] * z)^T``, one draw for all lanes.

    ``x`` has shape [lanes, rows, in], ``w`` [out * in], ``y`` [lanes, rows, out], all of them one row after another in memory; ``z`` belongs to
    the parameter whose :func:`name_key` is ``key``. The weights have the bits of :func:`twinpass.perturb.kernels.perturb`.
    """
    with threads_for(w.size):
        _multiply(x, w, scales, y, CODES[distribution], np.uint64(seed), np.uint64(key))
