"""Which functions does numba compile for the calls?"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit
def total(x):
    s = 0.0
    for k in range(x.shape[0]):
        for n in range(x.shape[1]):
            s += x[k, n]
    return s


@numba.njit(nogil=True)
def columns(x):
    out = np.zeros(x.shape[1])
    for n in range(x.shape[1]):
        for k in range(x.shape[0]):
            out[n] += x[k, n]
    return out


@numba.njit(parallel=True)
def rows(x):
    out = np.zeros(x.shape[0])
    for k in numba.prange(x.shape[0]):
        for n in range(x.shape[1]):
            out[k] += x[k, n]
    return out


@numba.njit(parallel=True)
def double(x):
    for k in numba.prange(x.shape[0]):
        for n in range(x.shape[1]):
            x[k, n] *= 2


@numba.njit
def scatter(at, x):
    out = np.zeros(50)
    for k in range(at.size):
        out[at[k]] += x[k]
    return out


@numba.njit
def smooth(x):
    return (x[1:-1] + x[:-2] + x[2:]) / 3


@numba.njit
def complain(x):
    if x.sum() != 0.5:
        raise ValueError("not a half")


@numba.njit
def product(x, y):
    return np.dot(x, y)


@numba.njit
def fields(x):
    s = 0.0
    for k in range(x.size):
        s += x[k].x * x[k].n
    return s


@numba.vectorize(["f8(f8, f8)"])
def scaled(x, y):
    return x * y + 1


@numba.guvectorize(["(f8[:], f8[:])"], "(n)->()")
def largest(x, out):
    out[0] = x.max()
