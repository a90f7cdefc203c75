"""Do libraries that know nothing of lazymem read an array right, on all their threads?

In children: a library's thread that hangs or dies must not take the tests with it.
"""

import numpy as np
import pytest
from support import check_child, compile_library, each_user, has_openmp, run_child

PRELUDE = """
import os
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "4"
import numpy as np, lazymem as lm
from support import PAGE, settled
plain = np.random.default_rng(3).random((256, 512))
def fresh(mode="r"):
    a = lm.from_provider(plain, plain.shape, "f8", mode=mode, block_nbytes=PAGE, delivery={delivery!r})
    assert lm.stats(a).blocks == 0
    return a
def same(f, *args, exact=True, whole=True):
    a = fresh()
    got, want = f(a, *args), f(plain, *args)
    for g, w in zip(got, want) if isinstance(want, tuple) else [(got, want)]:
        if exact:
            np.testing.assert_array_equal(np.asarray(g), np.asarray(w))
        else:
            np.testing.assert_allclose(np.asarray(g), np.asarray(w))
    s = settled(a)
    assert s.blocks == s.nblocks or not whole, s
    assert s.failed == 0
"""

PROGRAMS = {
    "BLAS": """
a = fresh()
np.testing.assert_allclose(a @ a.T, plain @ plain.T)
assert settled(a).blocks == settled(a).nblocks
same(lambda a: np.asarray(a) @ np.asarray(a).T, exact=False)
same(lambda a: np.linalg.svd(a, compute_uv=False), exact=False)
same(lambda a: np.linalg.solve(a[:, :256] + 300 * np.eye(256), a[:, 256]), exact=False)
same(lambda a: np.einsum("ij,kj->ik", a, a, optimize=True), exact=False)
""",
    "numpy.fft": """
same(np.fft.fft2)
same(np.fft.rfft)
""",
    "scipy.ndimage": """
from scipy import ndimage
same(ndimage.gaussian_filter, 2.0)
same(ndimage.label)
same(ndimage.zoom, 0.5)
same(ndimage.median_filter, 3)
same(ndimage.sum)
""",
    "scipy.fft": """
from scipy import fft
same(lambda a: fft.fft2(a, workers=4))
same(lambda a: fft.dctn(a, workers=2))
""",
    "scipy.linalg": """
from scipy import linalg
same(lambda a: linalg.qr(a, mode="r")[0], exact=False)
same(lambda a: linalg.lu_factor(a[:, :256])[0], exact=False, whole=False)
same(lambda a: linalg.expm(a[:64, :64]), exact=False, whole=False)
same(lambda a: linalg.norm(a), exact=False)
same(lambda a: linalg.blas.dgemm(1.0, a.T, a.T, trans_a=True), exact=False)
""",
    "scipy.stats": """
from scipy import stats
same(lambda a: stats.describe(a, axis=None).variance, exact=False)
same(lambda a: tuple(stats.linregress(a[:, 0], a[:, 1]))[:3], exact=False, whole=False)
same(lambda a: stats.rankdata(a))
same(lambda a: stats.zscore(a), exact=False)
""",
    "scipy.sparse and signal": """
from scipy import interpolate, signal, sparse
same(lambda a: sparse.csr_matrix(a).sum(), exact=False)
same(lambda a: sparse.csr_matrix(np.eye(256)) @ a, exact=False)
same(lambda a: signal.convolve2d(a, np.ones((3, 3))), exact=False)
same(lambda a: signal.fftconvolve(a, np.ones((5, 5))), exact=False)
same(lambda a: interpolate.CubicSpline(np.arange(256), a)(3.5), exact=False)
""",
    "numba": """
import numba
@numba.njit
def total(x):
    s = 0.0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            s += x[i, j]
    return s
@numba.njit(nogil=True, fastmath=False)
def columns(x):
    out = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        for i in range(x.shape[0]):
            out[j] += x[i, j]
    return out
same(total)
same(columns)
same(lambda a: columns(a.T))
""",
    "numba prange": """
import numba
@numba.njit(parallel=True)
def rows(x):
    out = np.zeros(x.shape[0])
    for i in numba.prange(x.shape[0]):
        for j in range(x.shape[1]):
            out[i] += x[i, j]
    return out
for i in range(3):
    same(rows)
    same(lambda a: rows(np.asarray(a).T))
@numba.njit(parallel=True)
def double(x):
    for i in numba.prange(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] *= 2
c = fresh("c")
double(c)
assert np.array_equal(c, plain * 2)
assert numba.get_num_threads() == 4
""",
    "pandas": """
import pandas
f = pandas.DataFrame(fresh())
pandas.testing.assert_frame_equal(f, pandas.DataFrame(plain))
same(lambda a: pandas.DataFrame(a).mean().to_numpy(), exact=False)
same(lambda a: pandas.Series(a.ravel()).rolling(5).sum().to_numpy(), exact=False)
""",
    "torch": """
import torch
a = fresh("c")
t = torch.from_numpy(np.asarray(a))
assert lm.is_lazy(t)
torch.testing.assert_close(t @ t.T, torch.from_numpy(plain @ plain.T))
t2 = torch.from_numpy(fresh("c"))
assert torch.equal(t2, torch.from_numpy(plain))
""",
    "threads of Python": """
from concurrent.futures import ThreadPoolExecutor
a = fresh()
with ThreadPoolExecutor(8) as pool:
    got = list(pool.map(lambda i: a[i].sum() + np.asarray(a)[255 - i].sum(), range(256)))
assert got == [plain[i].sum() + plain[255 - i].sum() for i in range(256)]
s = settled(a)
assert s.blocks == s.nblocks and s.nbytes_asked == s.nbytes  # nobody fetched twice
""",
}
# Programs that share a child, since importing such a library takes longer than the rest.
TOGETHER = {
    "numpy": ["BLAS", "numpy.fft", "threads of Python"],
    "scipy": ["scipy.ndimage", "scipy.fft", "scipy.linalg", "scipy.stats", "scipy.sparse and signal"],
    "numba": ["numba", "numba prange"], "pandas": ["pandas"], "torch": ["torch"],
}  # fmt: skip

RUN = """
import traceback
names = {names!r}
failed = []
for name in names:
    print("at", name, flush=True)
    try:
        exec(compile(programs[name], name, "exec"), dict(globals()))
    except BaseException:
        failed.append(name)
        traceback.print_exc()
print("right:", len(names) - len(failed), "wrong:", failed)
"""


def run_programs(library, delivery, user):
    pytest.importorskip(library)
    names = TOGETHER[library]
    code = f"{PRELUDE.format(delivery=delivery)}\nprograms = {PROGRAMS!r}\n{RUN.format(names=names)}"
    status, out, err = run_child(code, timeout=110, user=user, fresh=True)
    assert (status, out.splitlines()[-1:]) == (0, [f"right: {len(names)} wrong: []"]), f"{out}\n{err[-6000:]}"


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("library", [name for name in TOGETHER if name != "numba"])
def test_library(delivery, library, user):
    run_programs(library, delivery, user)


@pytest.mark.slow
def test_numba(delivery):
    run_programs("numba", delivery, None)


def test_every_program_runs():
    assert sorted(name for names in TOGETHER.values() for name in names) == sorted(PROGRAMS)


OPENMP = """
#include <omp.h>
#include <stdint.h>
/* Sums n bytes on so many threads, each starting somewhere else; returns how many threads there were. */
int sums(const unsigned char *bytes, int64_t n, int threads, uint64_t *out)
{
    int were = 0;
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num();
        uint64_t sum = 0;
        for (int64_t i = 0; i < n; i++)
            sum += bytes[(i + me * (n / threads)) % n];
        out[me] = sum;
#pragma omp atomic
        were++;
    }
    return were;
}
"""


@pytest.mark.thin
@each_user
@pytest.mark.skipif(not has_openmp(), reason="no compiler that does -fopenmp here")
@pytest.mark.parametrize("threads", [1, 4, 16])
def test_openmp(folder, delivery, threads, user):
    """C threads that Python has never seen, all over the same blocks: right, and each block is fetched once."""
    library = compile_library(OPENMP, folder, flags=("-fopenmp",))
    check_child(
        f"""
        import ctypes, numpy as np, lazymem as lm
        from support import PAGE, settled
        plain = np.random.default_rng(5).integers(0, 256, 200 * PAGE, "u1")
        sums = ctypes.CDLL({str(library)!r}).sums
        sums.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p]
        for i in range(5):
            a = lm.from_provider(plain, block_nbytes=2 * PAGE, delivery={delivery!r})
            out = np.zeros({threads}, "u8")
            assert sums(a.ctypes.data, a.size, {threads}, out.ctypes.data) == {threads}
            assert (out == plain.sum()).all(), out
            s = settled(a)
            assert s.blocks == 100 and s.nbytes_asked == a.nbytes, s
        """,
        user=user,
    )


def test_the_oracle_differs():
    """What the programs compare with is no constant."""
    plain = np.random.default_rng(3).random((256, 512))
    assert len(np.unique(plain)) == plain.size
