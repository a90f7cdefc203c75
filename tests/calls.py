"""Which calls of which libraries must give on a lazy array what they give on an ordinary one?

One call a line, by library; a call is an expression of the arrays below. What is special about one follows its `#`:

    writes v        the call changes v, which is opened in mode "c"; where it may not be written to, it raises
    writable v      it raises there, too, though it does not write: mode "c" (np.memmap needs it, too)
    unchecked       it writes without asking (np.memmap's read-only memory ends the process, too): not tried there
    some v, none v  of v it reads only some blocks, or none; of every other array it reads all
    kernel          it hands an array's memory to a system call: EFAULT of a plain view, where those cannot wait for pages
    kernel: both    and of a lazy array, since the library takes its address without asking for its bytes
    copied          of a lazy array it gives a LazyArray of ordinary memory where of an ordinary one it gives an ndarray
    raises E        it raises E, in the same words
    close: why      results are compared with np.allclose, and why
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

# What a call may name: expressions of numpy and `random`, a generator with a seed. Each has several pages.
INPUTS = {
    "a": "random.random((128, 128))",
    "b": "random.normal(size=(128, 128))",
    "s": "(lambda x: x @ x.T / 64 + 8 * np.eye(64))(random.random((64, 64)))",
    "c": "random.normal(size=(64, 64)) + 1j * random.normal(size=(64, 64))",
    "f": "random.random((128, 128)).astype('f4')",
    "F": "np.asfortranarray(random.random((64, 96)))",
    "n": "np.where(random.random((64, 64)) < 0.1, np.nan, random.random((64, 64)))",
    "v": "random.normal(size=8192)",
    "w": "np.sort(random.random(8192)) + np.arange(8192)",
    "i": "random.integers(0, 50, 8192)",
    "j": "random.integers(-9, 99, 8192)",
    "h": "random.integers(0, 1 << 16, 8192).astype('u2')",
    "m": "random.random((128, 128)) < 0.4",
    "u": "random.integers(0, 256, (128, 192)).astype('u1')",
    "g": "np.kron(random.integers(0, 2, (8, 12)), np.ones((16, 16))).astype('u1')",
    "rgb": "random.integers(0, 256, (96, 128, 3)).astype('u1')",
    "vol": "random.random((16, 32, 32)).astype('f4')",
    "d": "np.datetime64('2001-02-03T04:05:06') + np.cumsum(random.integers(1, 9999, 4096)).astype('m8[s]')",
    "t": "random.choice(['ash', 'bay', 'elm', 'fir', 'oak', 'yew'], 2048)",
    "r": "np.rec.fromarrays([random.random(2048), random.integers(0, 9, 2048), random.choice([b'pq', b'rs'], 2048)],"
         " dtype=[('x', 'f8'), ('n', 'i4'), ('s', 'S4')]).view(np.ndarray).view([('x', 'f8'), ('n', 'i4'), ('s', 'S4')])",
    "X": "random.normal(size=(1024, 8)) + 3 * (np.arange(1024) % 3)[:, None]",
    "y": "np.arange(1024) % 3",
    "z": "random.normal(size=1024)",
    "p": "random.random((1024, 3))",
}  # fmt: skip

PYTHON = """
bytes(a)
bytearray(a)[9999]
a.tobytes()
memoryview(v).tolist()
memoryview(a).cast("B").tobytes()
memoryview(u)[5:9].tolist()                             # some u
list(v)
[float(x) for x in a[3]]                                # some a
list(map(float, v))
sum(i.tolist())
max(v)
min(v)
any(i)                                                  # some i
sorted(v)
list(reversed(i))
list(zip(i, j))
list(enumerate(j))
dict(zip(range(8192), i.tolist()))
set(i.tolist())
7 in i
len(a), a.shape, a.ndim                                 # none a
float(v[-1]), int(i[0]), complex(c[1, 2]), bool(m[0, 0])    # some v i c m
bool(v.any())
divmod(i, 7)
pow(a, 2)
round(v[7], 2)                                          # some v
abs(v)
f"{v[0]:.3f} {a[0, 0]!s}"                               # some v a
str(a)                                                  # some a
repr(t).replace("LazyArray(", "    array(").split()     # some t
str(d)                                                  # some d
math.fsum(v)
math.prod(a[0])                                         # some a
math.dist(v, w)
statistics.fmean(v)
statistics.median(v)
bisect.bisect(w, 4000.5)                                # some w
array.array("d", v).tolist()
array.array("B", u.tobytes())[-1]
struct.unpack_from("<4d", a, 4096)                      # some a
struct.unpack("<8192d", v)
hashlib.sha256(a).hexdigest()
hashlib.md5(np.asarray(a)).hexdigest()
hashlib.blake2b(memoryview(a)).digest()
zlib.crc32(a)
zlib.adler32(u)
zlib.compress(a)
bz2.compress(u)
lzma.compress(u)
base64.b64encode(a)
binascii.hexlify(u)
io.BytesIO(a).getvalue()
io.BytesIO().write(a)
pickle.loads(pickle.dumps(np.asarray(a)))
pickle.dumps(pickle.PickleBuffer(memoryview(u).toreadonly()), 5)
copy.copy(a)
copy.deepcopy({"a": a})["a"]
re.findall(b"abc", u)
b"".join([u, v])
bytes.fromhex("00") in u.tobytes()
operator.itemgetter(5)(a)                               # none a
functools.reduce(operator.add, i)
heapq.nlargest(5, v)
random.Random(3).choice(v)                             # some v
collections.Counter(i.tolist())
json.dumps(a.tolist())
csv.writer(io.StringIO()).writerows(a)
random.Random(3).shuffle(v)                            # writes v
memoryview(a).cast("B").__setitem__(slice(0, 8), b"12345678")    # writes a; some a
io.BytesIO(bytes(range(256)) * 96).readinto(u)          # writes u
struct.pack_into("<d", a, 8000, 2.5)                    # writes a; some a
tmp.write(a)                                            # kernel
os.write(tmp.fileno(), a)                               # kernel
os.writev(tmp.fileno(), [u, v])                         # kernel
os.pwrite(tmp.fileno(), u, 512)                         # kernel
sent(lambda end: end.sendall(u))                        # kernel
sent(lambda end: end.sendmsg([v[:500], u[0]]))          # kernel; some v u
received(lambda end: end.recv_into(v))                  # kernel; writes v; some v
open("/dev/zero", "rb", buffering=0).readinto(u)        # kernel; writes u
os.preadv(os.open("/dev/zero", os.O_RDONLY), [u], 0)    # kernel; writes u
open("/dev/zero", "rb").readinto(v)                     # kernel; writes v
"""

NUMPY = """
a[3, 5]                                                 # some a
a[...]                                                  # none a
a[5:90:3, ::-1] + 0                                     # some a
a[m]
a[[3, 1, 2], [5, 6, 7]]                                 # some a
v[i]                                                    # some v
a[m.argmax(axis=0)]                                     # some a
r["n"].sum()
r[5:9]["x"].tolist()                                    # some r
a.__setitem__((slice(3, 5), 7), 9.5)                    # writes a; some a
a.__setitem__(m, 0)                                     # writes a
v.__setitem__(i, w)                                     # writes v; some v
v.__iadd__(w)                                           # writes v
a.__imul__(2)                                           # writes a
m.__ixor__(True)                                        # writes m
a.sort()                                                # writes a
a.partition(9, axis=0)                                  # writes a
v.fill(3)                                               # writes v
v.put([1, 5000], [3, 4])                                # writes v; some v
i.byteswap().sum()
h.byteswap(inplace=True).sum()                          # writes h
a + b
a * 2.5 - b / 3
i // (j + 10)
i % 7
i << 3 | j & 5 ^ i
~m
-v
a @ b
v @ w
a == b
a < b
d[1:] - d[:-1]
c * c.conj()
np.add(a, b)
np.add(a, 1, out=a)                                     # writes a
np.subtract(v, w, where=v > 0, out=v)                   # writes v
np.exp(b)
np.log1p(a)
np.sin(f)
np.arctan2(a, b)
np.hypot(a, b)
np.sqrt(a)
np.cbrt(b)
np.tanh(b)
np.floor(b)
np.rint(b)
np.sign(b)
np.signbit(b)
np.copysign(a, b)
np.nextafter(a, b)
np.frexp(b)
np.ldexp(a, 3)
np.modf(b)
np.divmod(i, 7)
np.gcd(i, j)
np.lcm(i, j)
np.bitwise_and(i, j)
np.left_shift(u, 2)
np.isnan(n)
np.isfinite(n)
np.maximum(a, b)
np.fmin(n, n.T)
np.logical_xor(m, m.T)
np.heaviside(b, 0.5)
np.clip(b, -1, 1)
np.float_power(a, 3)
np.abs(c)
np.angle(c)
np.real(c)                                              # none c
np.conjugate(c)
np.add.reduce(a, axis=1)
np.add.accumulate(i)
np.multiply.outer(v[:50], w[:60])                       # some v w
np.add.reduceat(v, [0, 100, 5000])
np.add.at(v, i, 1)                                      # writes v; some v; unchecked
np.maximum.reduce(a, axis=None)
np.minimum.accumulate(v)
np.sum(a)
np.sum(a, axis=0, where=m)
np.sum(f, dtype="f8")
np.prod(a[:, :9], axis=1)
np.cumsum(v)
np.cumprod(a, axis=1)
np.diff(v, n=2)
np.ediff1d(i)
np.gradient(a)
np.cross(p, p[::-1])
np.mean(a, axis=(0, 1))
np.std(a, axis=0, ddof=1)
np.var(f)
np.average(v, weights=w)
np.median(a, axis=1)
np.percentile(v, [5, 50, 95])
np.quantile(a, 0.3, axis=0)
np.ptp(a, axis=1)
np.corrcoef(a[:20])                                     # some a
np.cov(X.T)
np.histogram(v, bins=30)
np.histogram2d(v, w, bins=9)
np.histogramdd(p, bins=4)
np.bincount(i)
np.bincount(i, weights=v)
np.digitize(v, [-1, 0, 1])
np.correlate(v, w[:99])                                 # some w
np.convolve(v, w[:99], "same")                          # some w
np.interp(v, w, j)
np.polyfit(w[:500], v[:500], 3)                         # some w v
np.polyval([1, 2, 3], v)
np.nansum(n)
np.nanmean(n, axis=0)
np.nanmedian(n)
np.nanmax(n, axis=1)
np.nanpercentile(n, 30)
np.nanstd(n)
np.nancumsum(n)
np.nanargmin(n)
np.nan_to_num(n)
np.sort(a, axis=None)
np.sort(d)
np.sort(t)
np.sort(r, order=["n", "x"])
np.argsort(v, kind="stable")
np.lexsort((v, i))
np.partition(v, 100)
np.argpartition(v, 100)[100]
np.argmax(a, axis=1)
np.argmin(v)
np.searchsorted(w, v)                                   # some w
np.nonzero(m)
np.flatnonzero(i == 7)
np.argwhere(m)
np.count_nonzero(m, axis=0)
np.extract(m, a)
np.unique(i, return_counts=True, return_inverse=True)
np.unique(t)
np.unique(a.round(1), axis=0)
np.union1d(i, j)
np.intersect1d(i, j, return_indices=True)
np.setdiff1d(j, i)
np.setxor1d(i, j)
np.isin(j, i)
np.isin(t, ["elm", "oak"])
np.all(a > 0)
np.any(m, axis=0)
np.array_equal(a, b)
np.array_equal(a, a.copy())
np.allclose(a, a + 1e-12)
np.isclose(a, b)
np.reshape(a, (64, -1)).sum(axis=1)
np.ravel(a, order="F")
np.transpose(a)                                         # none a
np.ascontiguousarray(a.T)
np.asfortranarray(a)
np.require(a, requirements="F")                         # copied
np.moveaxis(vol, 0, -1).copy()
np.swapaxes(vol, 0, 2)                                  # none vol
np.rollaxis(vol, 2)                                     # none vol
np.expand_dims(a, 1)                                    # none a
np.squeeze(a[None])                                     # none a
np.broadcast_to(v, (3, 8192)).sum(axis=1)
np.broadcast_arrays(a, b[0])[1].sum()                   # none a; some b
np.atleast_3d(a)                                        # none a
np.concatenate([a, b], axis=1)
np.stack([a, b], axis=1)
np.vstack([a, b])
np.hstack([v, w])
np.dstack([a, b])
np.column_stack([v, w])
np.block([[a, b], [b, a]])
np.split(a, 4)[2].sum()                                 # some a
np.array_split(v, 7)[6]                                 # none v
np.tile(a, (2, 1))
np.repeat(v, 3)
np.flip(a, 1)                                           # none a
np.flipud(a) + 0
np.rot90(a).copy()
np.roll(a, 5, axis=1)
np.pad(a, 3, mode="reflect")
np.pad(a, ((1, 2), (0, 3)), mode="linear_ramp")
np.delete(v, [5, 7])
np.insert(v, 9, 1.5)
np.append(v, w)
np.resize(v, (100, 100))
np.trim_zeros(i)
np.where(m, a, b)
np.choose(y, [z, z + 1, z + 2])
np.select([a < 0.2, a > 0.8], [a, b])
np.piecewise(v, [v < 0, v >= 0], [-1, lambda x: x * 2])
np.take(a, [5, 3], axis=1)
np.take_along_axis(a, np.argsort(b, axis=1), axis=1)
np.put_along_axis(a, np.argmax(b, axis=1)[:, None], 9, axis=1)    # writes a
np.putmask(a, m, b)                                     # writes a
np.place(a, m, [1, 2])                                  # writes a
np.copyto(a, b)                                         # writes a
np.fill_diagonal(a, 7)                                  # writes a
np.compress(y == 1, X, axis=0)
np.diag(a)                                              # none a
np.diagonal(a, 3)                                       # none a
np.tril(a)
np.triu_indices_from(a)                                 # none a
np.meshgrid(v[:20], w[:30])                             # some v w
np.ix_(i[:5], j[:6])                                    # none i j
np.unravel_index(i, (10, 10))
np.ravel_multi_index((i, i), (50, 50))
np.packbits(u & 1)
np.unpackbits(u)
np.apply_along_axis(np.sum, 1, a)
np.apply_over_axes(np.sum, vol, [0, 2])
np.vectorize(lambda x: x + 1)(v)
np.frompyfunc(lambda x: x * 2, 1, 1)(v).astype("f8")
np.fromiter(v, "f8")
np.frombuffer(a, "u8").max()
np.frombuffer(u, "u1", 7, 30).sum()                          # some u
np.array(a)
np.array([a, b])
np.array(v, dtype="f4", ndmin=2)
np.asarray(a, dtype="c16")
np.asarray(a, order="F")
np.asanyarray(a).mean()
np.zeros_like(a)                                        # none a
np.ones_like(a, dtype="i2")                             # none a
np.full_like(a, 3)                                      # none a
np.empty_like(a).shape                                  # none a
np.shape(a), np.ndim(a), np.size(a)                     # none a
np.result_type(a, f), np.can_cast(a.dtype, "f4")        # none a f
np.shares_memory(a, a[5:]), np.may_share_memory(a, b)    # none a b
np.iscomplexobj(c), np.isrealobj(a), np.isfortran(F)    # none c a F
np.lib.stride_tricks.sliding_window_view(v, 5).max(axis=1)
np.lib.stride_tricks.as_strided(v, (80, 3), (800, 8)).sum(axis=1)
[q.sum() + q2.sum() for q, q2 in np.nditer([a, b], flags=["external_loop", "buffered"])]
[x.item() for x in np.nditer(i)]
list(np.ndenumerate(i))
a.flat[500:900]                                         # some a; copied
np.dot(a, b)
np.vdot(c, c)
np.inner(v, w)
np.outer(v[:40], w[:50])                                # some v w
np.matmul(vol, vol.swapaxes(1, 2))
np.tensordot(vol, vol, axes=([1, 2], [2, 1]))
np.einsum("ij,kj->ik", a, b)
np.einsum("ij,jk,kl->il", a, b, a, optimize=True)
np.kron(a[:9, :9], b[:5, :5])                           # some a b
np.trace(a)
np.linalg.norm(a)
np.linalg.norm(a, ord=2)
np.linalg.norm(p, axis=1)
np.linalg.det(s)
np.linalg.slogdet(s)
np.linalg.inv(s)
np.linalg.pinv(F)
np.linalg.solve(s, s[0])
np.linalg.lstsq(X, z, rcond=None)
np.linalg.svd(F)
np.linalg.qr(a)
np.linalg.cholesky(s)
np.linalg.eigh(s)
np.linalg.eigvals(s)
np.linalg.eig(s)
np.linalg.matrix_power(s, 5)
np.linalg.matrix_rank(F)
np.linalg.cond(s)
np.linalg.multi_dot([a, b, a])
np.fft.fft(v)
np.fft.ifft(c)
np.fft.rfft(a, axis=0)
np.fft.irfft(c)
np.fft.fft2(a)
np.fft.fftn(vol)
np.fft.hfft(c)
np.fft.fftshift(a)
np.random.default_rng(5).choice(v, 20)                  # some v
np.random.default_rng(5).permutation(v)
np.random.default_rng(5).shuffle(v)                     # writes v
np.random.default_rng(5).multivariate_normal(s[0], s)
np.random.default_rng(5).poisson(a)
np.char.upper(t)
np.char.add(t, "-")
np.char.startswith(t, "e")
np.datetime_as_string(d[:9])                            # some d
np.is_busday(d.astype("M8[D]"))
d.astype("M8[M]").astype("i8")
np.ma.masked_invalid(n).mean(axis=0)
np.ma.masked_array(a, mask=m).sum()
np.ma.median(np.ma.array(a, mask=m), axis=1)
np.ma.masked_where(m, a).compressed()
np.rec.array(r)["n"].sum()
np.polynomial.Polynomial([1, 2, 3])(v)
np.polynomial.chebyshev.chebfit(w[:99], v[:99], 3)      # some w v
np.array2string(v[:50], precision=3)                    # some v
np.array_repr(i[:7])                                    # some i
np.savetxt(text_io, a[:9])                                # some a
np.save(tmp, a)                                         # kernel
np.save(bytes_io, a)
np.savez(bytes_io, a=a, b=b)
np.savez_compressed(bytes_io, a)
a.tofile(tmp)                                           # kernel
i.tofile(path, sep=",")
a.tolist()
a.astype("f4")
a.astype("f8", copy=False)                              # none a
a.view("i8").sum()
a.view("u1")[:, 5].tolist()
a.copy(order="F")
F.copy()
F.ravel("K")                                            # none F
F.T.tobytes()
F @ F.T
F.sum(axis=0)
v.cumsum()[-1]
v.searchsorted(0.5)                                     # some v
v.clip(0, 1)
v.round(2)
v.argmax()
v.nonzero()
v.take([5, 8000])                                       # some v
i.repeat(2)
i.choose([j, j + 1], mode="clip")
v.compress(i > 40)
a.item(5, 7)                                            # some a
a.max(axis=1, initial=0.5)
a.mean(axis=0, keepdims=True)
a.trace()
a.__array_interface__["shape"]                          # none a
np.from_dlpack(a).sum()
"""

NUMPY_TESTING = """
testing.assert_array_equal(a, np.array(a))
testing.assert_array_equal(a, b)                        # raises AssertionError
testing.assert_equal([a, {"i": i}], [a.copy(), {"i": i.copy()}])
testing.assert_equal(a, b)                              # raises AssertionError
testing.assert_almost_equal(a, a + 1e-9)
testing.assert_allclose(a, a * (1 + 1e-9))
testing.assert_allclose(a, b)                           # raises AssertionError
testing.assert_array_almost_equal(a, a + 1e-8)
testing.assert_array_almost_equal(a, b, decimal=0)      # raises AssertionError
testing.assert_array_almost_equal_nulp(a, a + np.spacing(a))
testing.assert_array_max_ulp(a, np.nextafter(a, 2))
testing.assert_array_less(-a, a + 1)
testing.assert_array_less(a, b)                         # raises AssertionError
testing.assert_array_compare(np.less_equal, a, a)
testing.assert_raises(IndexError, a.__getitem__, 500)    # none a
testing.assert_no_gc_cycles(np.sum, a)
testing.assert_string_equal(str(a[0, :3]), str(a[0, :3].copy()))    # some a
testing.assert_array_equal(n, n.copy())
testing.assert_array_equal(t, t.copy())
testing.assert_array_equal(r, r.copy())
"""

SCIPY = """
fft.fft(v, workers=4)
fft.fft2(a, workers=4)
fft.rfftn(vol)
fft.irfft(c, axis=0)
fft.dctn(a, workers=2)
fft.idst(a, type=2)
fft.fht(v, 0.1, 0.5)
fft.next_fast_len(a.shape[0] + 1)                       # none a
fft.fft(c, overwrite_x=True)                            # writes c
ndimage.gaussian_filter(a, 2.0)
ndimage.uniform_filter(f, 5)
ndimage.median_filter(u, 3)
ndimage.percentile_filter(a, 30, size=3)
ndimage.maximum_filter(a, 4)
ndimage.minimum_filter1d(a, 5, axis=0)
ndimage.sobel(a)
ndimage.laplace(vol)
ndimage.gaussian_gradient_magnitude(a, 1)
ndimage.convolve(a, b[:5, :5])                          # some b
ndimage.correlate1d(a, [1, 2, 1])
ndimage.generic_filter(a[:30, :30], np.max, 3)          # some a
ndimage.label(m)
ndimage.find_objects(ndimage.label(m)[0])[:5]
ndimage.sum_labels(a, ndimage.label(m)[0], [1, 2, 3])
ndimage.center_of_mass(a)
ndimage.extrema(a)
ndimage.histogram(a, 0, 1, 20)
ndimage.binary_erosion(m)
ndimage.binary_dilation(m, iterations=2)
ndimage.binary_fill_holes(m)
ndimage.grey_opening(u, 3)
ndimage.distance_transform_edt(m)
ndimage.distance_transform_cdt(m)
ndimage.zoom(a, 0.5)
ndimage.rotate(a, 30)
ndimage.shift(a, (2.5, 1))
ndimage.affine_transform(a, [[1, 0.2], [0, 1]])
ndimage.map_coordinates(a, [[5.5, 8], [100.25, 3]], order=1)    # some a
ndimage.spline_filter(a)
ndimage.watershed_ift(u, g.astype("i4"))
linalg.inv(s)
linalg.det(s)
linalg.solve(s, s[:, 3])
linalg.solve(a, b, overwrite_a=False)
linalg.solve_triangular(s, s[0])
linalg.lu(s)
linalg.lu_factor(s)
linalg.qr(a)
linalg.qr(a, mode="r", pivoting=True)
linalg.svd(F, full_matrices=False)
linalg.svdvals(F)
linalg.eigh(s)
linalg.eigvals(s)
linalg.eigvalsh(s, subset_by_index=[0, 5])
linalg.cholesky(s)
linalg.cho_solve(linalg.cho_factor(s), s[1])
linalg.schur(s)
linalg.hessenberg(s)
linalg.ldl(s)
linalg.expm(s / 64)
linalg.sqrtm(s)
linalg.logm(s)
linalg.norm(a)
linalg.pinv(F)
linalg.lstsq(X, z)
linalg.null_space(F[:20])
linalg.toeplitz(z[:90])                                 # some z
linalg.block_diag(s, s)
linalg.blas.dgemm(1.0, a.T, b.T, trans_a=True)
linalg.blas.ddot(v, w)
linalg.blas.daxpy(v, w, a=2.0)                          # writes w; unchecked
linalg.lapack.dgesv(s, s[0])
signal.convolve(v, w[:99])                              # some w
signal.fftconvolve(a, b[:9, :9])                        # some b
signal.oaconvolve(v, w[:50])                            # some w
signal.correlate2d(a[:40], b[:9, :9])                   # some a b
signal.lfilter([1, 0.5], [1, -0.2], v)
signal.filtfilt([0.2, 0.3], [1, -0.4], v)
signal.sosfilt(signal.butter(4, 0.2, output="sos"), v)
signal.savgol_filter(v, 11, 3)
signal.medfilt(v, 5)
signal.medfilt2d(a, 3)
signal.wiener(a, 3)
signal.detrend(v)
signal.hilbert(v)
signal.welch(v)                                         # close: an ndarray given twice is squared, two np.memmaps multiplied
signal.periodogram(v)
signal.spectrogram(v)[2]
signal.coherence(v, w)                                  # close: an ndarray given twice is squared, two np.memmaps multiplied
signal.resample(v, 1000)
signal.resample_poly(v, 3, 2)
signal.decimate(v, 4)
signal.find_peaks(v, height=1)[0]
signal.argrelmax(v)
signal.czt(v, 100)
stats.describe(v)
stats.zscore(a)
stats.rankdata(v)
stats.skew(v)
stats.kurtosis(a, axis=1)
stats.iqr(v)
stats.mode(i)
stats.entropy(a)
stats.sem(v)
stats.trim_mean(v, 0.1)
stats.gmean(a)
stats.ttest_ind(v, w)
stats.ttest_1samp(v, 0)
stats.ks_2samp(v[:999], w[:999])                        # some v w
stats.mannwhitneyu(v, w)
stats.wilcoxon(z)
stats.kruskal(v, w)
stats.f_oneway(v, w)
stats.pearsonr(v, w)
stats.spearmanr(v, w)
stats.kendalltau(v, w)
stats.linregress(w, v)
stats.theilslopes(z[:200])                              # some z
stats.normaltest(v)
stats.shapiro(z)
stats.chisquare(i + 1)
stats.chi2_contingency(i[:60].reshape(6, 10) + 1)       # some i
stats.norm.pdf(v)
stats.norm.fit(v)
stats.gaussian_kde(z)(v[:50])                           # some v
stats.binned_statistic(v, w, bins=9)[0]
stats.boxcox(w)
stats.percentileofscore(v, 0.3)
stats.multivariate_normal(s[0], s).logpdf(s)
spatial.distance.cdist(p[:300], p)
spatial.distance.pdist(p[:200])                         # some p
spatial.distance.squareform(spatial.distance.pdist(p[:50]))    # some p
spatial.cKDTree(p).query(p[:90], k=3)
spatial.KDTree(p).query_ball_point(p[5], 0.2)
spatial.ConvexHull(p).simplices
spatial.Delaunay(p).simplices
spatial.procrustes(p, p[::-1])
spatial.transform.Rotation.from_rotvec(p).as_matrix()   # writable p
interpolate.interp1d(w, v)(w[:-1] + 0.1)
interpolate.CubicSpline(w, v)(50.5)
interpolate.PchipInterpolator(w, v)(np.arange(1, 99))
interpolate.Akima1DInterpolator(w, v)(7.5)
interpolate.make_interp_spline(w, v)(33.3)
interpolate.UnivariateSpline(w, v, s=0)(44.4)
interpolate.RectBivariateSpline(np.arange(128), np.arange(128), a)(5.5, 6.5)
interpolate.RegularGridInterpolator((np.arange(128), np.arange(128)), a)([[5.5, 6.5]])    # some a
interpolate.griddata(p[:, :2], z, [[0.5, 0.5]])         # some z
interpolate.LinearNDInterpolator(p[:, :2], z)(0.5, 0.5)   # some z
interpolate.RBFInterpolator(p[:200], z[:200])(p[200:220])    # some p z
integrate.trapezoid(v, w)
integrate.simpson(v, x=w)
integrate.cumulative_trapezoid(v)
optimize.linear_sum_assignment(a)
optimize.nnls(X[:100], z[:100])                         # some X z
optimize.least_squares(lambda x: X @ x - z, np.zeros(8)).x
optimize.curve_fit(lambda x, k, q: k * x + q, w, v)
optimize.lsq_linear(X, z).x
sparse.csr_matrix(a * m)
sparse.csc_matrix(a)
sparse.coo_matrix(m)
sparse.csr_array((v, (i, j + 9)), shape=(64, 128))
sparse.coo_array((v, (i, j + 9))).tocsr()
sparse.csr_matrix((z, y, np.arange(1025)), shape=(1024, 3)) @ a[:3]    # some a
sparse.diags(v)
sparse.dia_array((a[:3], [0, 1, 2]), shape=(128, 128))  # none a
sparse.bsr_matrix(a, blocksize=(8, 8))
sparse.lil_matrix(a * m)
sparse.kron(a[:8, :8], b[:8, :8])                       # some a b
sparse.csr_matrix(np.eye(128)) @ a
sparse.linalg.spsolve(sparse.csc_matrix(s), s[0])
sparse.linalg.cg(s, s[0])[0]
sparse.linalg.eigsh(s, k=3, v0=s[0])[0]
sparse.linalg.svds(F, k=3, v0=F[:, 0])[1]
csgraph.shortest_path(s)
csgraph.connected_components(m)
csgraph.minimum_spanning_tree(s)
special.gamma(a)
special.erf(b)
special.jv(2, a)
special.expit(v)
special.logsumexp(a, axis=1)
special.softmax(b, axis=0)
special.xlogy(a, a)
cluster.vq.kmeans2(p, 5, seed=3)
cluster.vq.whiten(p)
cluster.hierarchy.linkage(p[:200], "ward")              # some p
cluster.hierarchy.fcluster(cluster.hierarchy.linkage(p[:200]), 5, "maxclust")    # some p
io.savemat(bytes_io, {"a": a})
io.mmwrite(bytes_io, s)
io.wavfile.write(bytes_io, 8000, h.view("i2"))
"""

SKLEARN = """
preprocessing.StandardScaler().fit_transform(X)
preprocessing.MinMaxScaler().fit_transform(X)
preprocessing.RobustScaler().fit_transform(X)
preprocessing.QuantileTransformer(n_quantiles=50, random_state=0).fit_transform(X)
preprocessing.PolynomialFeatures(2).fit_transform(X)
preprocessing.OneHotEncoder().fit_transform(y[:, None])
preprocessing.LabelEncoder().fit_transform(t)
preprocessing.normalize(X)
preprocessing.KBinsDiscretizer(4, encode="ordinal", quantile_method="averaged_inverted_cdf").fit_transform(X)
impute.SimpleImputer().fit_transform(n)
impute.KNNImputer().fit_transform(n)
feature_selection.SelectKBest(k=3).fit_transform(X, y)
feature_selection.mutual_info_classif(X, y, random_state=0)
feature_selection.VarianceThreshold(0.1).fit_transform(X)
decomposition.PCA(3, svd_solver="full").fit_transform(X)
decomposition.PCA(3, svd_solver="randomized", random_state=0).fit(X).components_
decomposition.TruncatedSVD(3, random_state=0).fit_transform(X)
decomposition.NMF(3, random_state=0, init="random", max_iter=20).fit_transform(a)
decomposition.FastICA(3, random_state=0).fit_transform(X)
decomposition.IncrementalPCA(3, batch_size=256).fit_transform(X)
linear_model.LinearRegression().fit(X, z).coef_
linear_model.Ridge().fit(X, z).predict(X)
linear_model.Lasso(0.01).fit(X, z).coef_
linear_model.LogisticRegression(max_iter=200).fit(X, y).predict_proba(X)
linear_model.SGDClassifier(random_state=0).fit(X, y).coef_
linear_model.BayesianRidge().fit(X, z).predict(X)
svm.SVC(random_state=0).fit(X, y).decision_function(X)
svm.LinearSVC(random_state=0).fit(X, y).coef_
neighbors.KNeighborsClassifier(n_jobs=2).fit(X, y).predict(X)
neighbors.NearestNeighbors(algorithm="brute").fit(X).kneighbors(X)
neighbors.KDTree(X).query(X[:50], k=3)
neighbors.BallTree(X).query_radius(X[:9], 1.5, count_only=True)
neighbors.KernelDensity().fit(X).score_samples(X[:50])
neighbors.LocalOutlierFactor().fit_predict(X)
tree.DecisionTreeClassifier(random_state=0).fit(X, y).predict(X)
tree.DecisionTreeRegressor(random_state=0, max_depth=5).fit(X, z).predict(X)
ensemble.RandomForestClassifier(9, n_jobs=2, random_state=0).fit(X, y).predict_proba(X)
ensemble.RandomForestRegressor(9, random_state=0).fit(X, z).predict(X)
ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0).fit(X, y).predict_proba(X)
ensemble.HistGradientBoostingRegressor(max_iter=9, random_state=0).fit(X, z).predict(X)
ensemble.IsolationForest(n_estimators=9, random_state=0).fit_predict(X)
naive_bayes.GaussianNB().fit(X, y).predict_proba(X)
discriminant_analysis.LinearDiscriminantAnalysis().fit(X, y).transform(X)
gaussian_process.GaussianProcessRegressor(random_state=0).fit(X[:99], z[:99]).predict(X[99:150])    # some X z
neural_network.MLPRegressor(hidden_layer_sizes=(8,), max_iter=9, random_state=0).fit(X, z).predict(X)
cluster.KMeans(3, n_init=2, random_state=0).fit_predict(X)
cluster.MiniBatchKMeans(3, n_init=2, random_state=0).fit(X).cluster_centers_
cluster.DBSCAN(0.9).fit_predict(X)
cluster.AgglomerativeClustering(3).fit_predict(X[:300])    # some X
mixture.GaussianMixture(3, random_state=0).fit(X).means_
manifold.Isomap().fit_transform(X[:150])                # some X
random_projection.GaussianRandomProjection(3, random_state=0).fit_transform(X)
kernel_approximation.RBFSampler(random_state=0).fit_transform(X)
metrics.accuracy_score(y, y[::-1])
metrics.confusion_matrix(y, y[::-1])
metrics.roc_auc_score(y == 1, z)
metrics.silhouette_score(X, y)
metrics.pairwise_distances(X[:200])                     # some X
metrics.pairwise.rbf_kernel(X[:200], X)
metrics.mean_squared_error(v, w)
model_selection.train_test_split(X, y, random_state=0)
model_selection.cross_val_score(linear_model.Ridge(), X, z, cv=3)
model_selection.GridSearchCV(linear_model.Ridge(), {"alpha": [0.1, 1]}, cv=3).fit(X, z).cv_results_["mean_test_score"]
pipeline.make_pipeline(preprocessing.StandardScaler(), svm.SVC()).fit(X, y).score(X, y)
utils.shuffle(X, y, random_state=0)
utils.resample(X, random_state=0)
utils.check_array(X)
"""

SKIMAGE = """
color.rgb2gray(rgb)
color.rgb2hsv(rgb)
color.rgb2lab(rgb)
color.gray2rgb(u)
exposure.equalize_hist(u)
exposure.equalize_adapthist(u)
exposure.rescale_intensity(a, out_range=(0, 255))
exposure.adjust_gamma(a, 2)
exposure.histogram(u)
feature.canny(a)
feature.hog(a)
feature.corner_harris(a)
feature.peak_local_max(a, min_distance=3)
feature.local_binary_pattern(u, 8, 1)
feature.graycomatrix(u, [1], [0])                       # writable u
feature.blob_dog(a)
feature.match_template(a, a[20:40, 30:50])
filters.gaussian(a, 2)
filters.sobel(a)
filters.threshold_otsu(u)
filters.threshold_local(u, 15)
filters.median(u)
filters.unsharp_mask(a)
filters.rank.mean(u, morphology.disk(3))                # writable u
filters.frangi(a)
measure.label(g)
[q.area for q in measure.regionprops(measure.label(g))]
measure.find_contours(a, 0.5)
measure.marching_cubes(vol, 0.5)[0]                     # writable vol
measure.moments(a)
measure.block_reduce(a, (4, 4), np.mean)
measure.shannon_entropy(u)
morphology.skeletonize(m)                               # writable m
morphology.remove_small_objects(m, max_size=9)
morphology.dilation(u, morphology.disk(2))
morphology.white_tophat(u)
morphology.convex_hull_image(g)                         # writable g
metrics.structural_similarity(a, b, data_range=1)
metrics.peak_signal_noise_ratio(a, b, data_range=1)
registration.phase_cross_correlation(a, np.roll(a, 3, axis=0))
restoration.denoise_tv_chambolle(a)
restoration.denoise_bilateral(a[:50, :50])              # some a
restoration.denoise_nl_means(a[:40, :40])               # some a
restoration.richardson_lucy(a, np.ones((3, 3)) / 9, num_iter=3)
segmentation.slic(rgb, n_segments=20)
segmentation.felzenszwalb(rgb)
segmentation.watershed(a, markers=9)
segmentation.chan_vese(a, max_num_iter=5)
segmentation.find_boundaries(g)
transform.resize(a, (60, 70))
transform.rescale(a, 0.5)
transform.rotate(a, 20)                                 # writable a
transform.warp(a, transform.AffineTransform(scale=1.1)) # writable a
transform.radon(a[:40, :40], circle=False)              # some a
transform.hough_line(m)[0]
transform.integral_image(a)
util.img_as_float(u)
util.view_as_windows(a, (8, 8)).sum(axis=(2, 3))
util.random_noise(a, rng=3)
util.invert(u)
io.imsave(path + ".png", u, check_contrast=False), io.imread(path + ".png")
"""

CV2 = """
cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
cv2.resize(u, (60, 50))
cv2.resize(a, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
cv2.GaussianBlur(a, (5, 5), 1.5)
cv2.medianBlur(u, 5)
cv2.bilateralFilter(u, 5, 50, 50)
cv2.boxFilter(f, -1, (3, 3))
cv2.filter2D(a, -1, np.ones((3, 3)))
cv2.Sobel(u, cv2.CV_16S, 1, 0)
cv2.Laplacian(f, cv2.CV_32F)
cv2.Canny(u, 50, 150)
cv2.threshold(u, 0, 255, cv2.THRESH_OTSU)
cv2.adaptiveThreshold(u, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, 11, 2)
cv2.erode(u, np.ones((3, 3), "u1"))
cv2.morphologyEx(u, cv2.MORPH_GRADIENT, np.ones((3, 3), "u1"))
cv2.equalizeHist(u)
cv2.calcHist([u], [0], None, [32], [0, 256])
cv2.connectedComponentsWithStats(g)
cv2.findContours(g, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]
cv2.distanceTransform(g, cv2.DIST_L2, 3)
cv2.integral(u)
cv2.dft(f)
cv2.dct(f)
cv2.gemm(a, b, 1, None, 0)
cv2.invert(s)
cv2.solve(s, s[:, :1])
cv2.SVDecomp(F)
cv2.eigen(s)
cv2.add(u, u)
cv2.addWeighted(a, 0.3, b, 0.7, 1)
cv2.absdiff(a, b)
cv2.multiply(f, f)
cv2.bitwise_not(u)
cv2.merge([u, g])
cv2.split(rgb)
cv2.flip(u, 1)
cv2.rotate(u, cv2.ROTATE_90_CLOCKWISE)
cv2.transpose(a)
cv2.warpAffine(u, np.float64([[1, 0.1, 2], [0, 1, 3]]), (192, 128))
cv2.remap(u, f * 100, f * 90, cv2.INTER_LINEAR)         # some u
cv2.matchTemplate(u, u[30:50, 40:60], cv2.TM_CCOEFF)
cv2.minMaxLoc(a)
cv2.meanStdDev(rgb)
cv2.norm(a, b)
cv2.countNonZero(u)
cv2.reduce(a, 0, cv2.REDUCE_SUM)
cv2.sort(a, cv2.SORT_EVERY_ROW)
cv2.normalize(a, None, 0, 255, cv2.NORM_MINMAX)
cv2.LUT(u, np.arange(256, dtype="u1")[::-1].copy())
cv2.pyrDown(u)
cv2.copyMakeBorder(u, 3, 3, 3, 3, cv2.BORDER_REFLECT)
cv2.inRange(u, 50, 100)
cv2.goodFeaturesToTrack(u, 20, 0.01, 5)
cv2.HoughLines(g, 1, 0.02, 30)
cv2.kmeans(f, 3, None, (3, 10, 1.0), 1, cv2.KMEANS_PP_CENTERS)[2] is not None
cv2.imencode(".png", u)[1]
cv2.imdecode(np.frombuffer(cv2.imencode(".png", u)[1], "u1"), 0)
cv2.imwrite(path + ".bmp", rgb), cv2.imread(path + ".bmp")
cv2.rectangle(u, (5, 5), (90, 60), 77, -1)              # writes u; some u
cv2.circle(rgb, (50, 50), 30, (1, 2, 3))                # writes rgb; some rgb
cv2.GaussianBlur(u, (3, 3), 1, dst=g)                   # writes g
"""

PANDAS = """
pd.DataFrame(a)
pd.DataFrame(a, copy=False).sum()
pd.DataFrame({"i": i, "v": v})
pd.DataFrame(r)
pd.DataFrame(X, columns=list("abcdefgh")).describe()
pd.Series(v)
pd.Series(v).describe()
pd.Series(v).rolling(5).sum()
pd.Series(v).rolling(9).median()
pd.Series(v).ewm(span=5).mean()
pd.Series(v).expanding().max()
pd.Series(i).value_counts()
pd.Series(t).str.upper()
pd.Series(t).astype("category").cat.codes
pd.Series(v[:4096], index=d).resample("D").mean()    # some v
pd.Series(v).rank()
pd.Series(v).quantile([0.1, 0.9])
pd.Series(v).sort_values()
pd.Series(v).cumsum()
pd.Series(v).shift(3)
pd.Series(v).autocorr(2)
pd.Series(n.ravel()).fillna(0)
pd.Series(n.ravel()).interpolate()
pd.Series(n.ravel()).isna()
pd.Series(i).isin(j)
pd.Series(i).map({1: 5})
pd.Series(v).where(i > 9)
pd.Series(v).clip(0, 1)
pd.DataFrame({"i": i, "v": v}).groupby("i").mean()
pd.DataFrame({"i": i, "v": v}).groupby("i")["v"].agg(["min", "max", "count"])
pd.DataFrame({"i": i, "v": v}).groupby("i")["v"].transform("cumsum")
pd.DataFrame({"i": i, "j": j, "v": v}).pivot_table("v", "i", "j")
pd.DataFrame({"i": i, "v": v}).merge(pd.DataFrame({"i": np.arange(50), "k": 1}), on="i")
pd.concat([pd.Series(v), pd.Series(w)])
pd.DataFrame(a).corr()
pd.DataFrame(a).T
pd.DataFrame(a).iloc[5:9]
pd.DataFrame(a).melt()
pd.DataFrame(a).stack()
pd.DataFrame(a).apply(np.sum, axis=1)
pd.DataFrame(a).eval("x = `0` + `1`")
pd.DataFrame({"i": i}).query("i > 30")
pd.DataFrame({"i": i, "v": v}).sort_values(["i", "v"])
pd.DataFrame(n).dropna()
pd.DataFrame({"i": i}).drop_duplicates()
pd.DataFrame(a).to_numpy()
pd.DataFrame(a).to_csv()
pd.DataFrame(a).to_json()
pd.cut(v, 5)
pd.qcut(v, 4)
pd.factorize(i)
pd.factorize(t)
pd.unique(i)
pd.get_dummies(i)
pd.crosstab(i, j)
pd.Index(i)
pd.Index(w).get_indexer(w[5:9])
pd.DatetimeIndex(d).month
pd.to_datetime(d)
pd.Categorical(t)
pd.arrays.IntervalArray.from_breaks(w).mid
pd.Series(pd.array(v)).mean()
pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(a.copy()))
"""

NUMBA = """
total(a)
total(a.T)
columns(b)
rows(a)
double(a)                                               # writes a
scatter(i, v)
smooth(v)
complain(v)                                             # raises ValueError
product(a, b)
fields(r)
scaled(v, w)
scaled(a, 2.0)
scaled(v, w, out=v)                                     # writes v
largest(a)
"""

NUMEXPR = """
ne.evaluate("a + 2 * b", {"a": a, "b": b})
ne.evaluate("sin(v) ** 2 + cos(v) ** 2", {"v": v})
ne.evaluate("sum(a)", {"a": a})
ne.evaluate("where(m, a, b)", {"m": m, "a": a, "b": b})
ne.evaluate("i % 7 == 3", {"i": i})
ne.evaluate("a * 2", {"a": a}, out=b)                   # writes b
ne.evaluate("abs(c)", {"c": c})
ne.evaluate("exp(f)", {"f": f})
"""

PYARROW = """
pa.array(v)                                             # none v
pa.array(v, mask=i > 25)                                # none v
pa.array(n.ravel(), from_pandas=True)
pa.array(d)
pa.array(t)
pa.array(m.ravel())
pc.sum(pa.array(v))
pc.mean(pa.array(v))
pc.sort_indices(pa.array(v))
pc.value_counts(pa.array(i))
pc.filter(pa.array(v), pa.array(i > 25))
pc.take(pa.array(v), pa.array([5, 8000]))               # some v
pc.add(pa.array(v), pa.array(w))
pc.cast(pa.array(i), pa.int16())
pc.quantile(pa.array(v), [0.1, 0.9])
pc.is_in(pa.array(i), pa.array([3, 4]))
pa.array(v).to_numpy()                                  # none v
pa.array(v).to_pylist()
pa.chunked_array([v, w])                                # none v w
pa.table({"i": i, "v": v})                              # none i v
pa.table({"i": i, "v": v}).group_by("i").aggregate([("v", "sum")])
pa.table({"i": i, "v": v}).sort_by("v")
pa.table({"i": i, "v": v}).join(pa.table({"i": np.arange(50), "k": np.arange(50)}), "i").sort_by([("v", "ascending")])
pa.table({"i": i, "v": v}).filter(pc.field("i") > 30)
pa.RecordBatch.from_arrays([v, w], ["v", "w"])          # none v w
pa.Tensor.from_numpy(a)                                 # none a
pa.py_buffer(a).hex()
pa.py_buffer(a).size                                    # none a
pa.compress(a, "zstd", asbytes=True)
pa.FixedSizeListArray.from_arrays(v, 8)                 # none v
pa.BufferReader(u).read(500)                            # some u
feather.write_feather(pa.table({"v": v}), bytes_io)
ipc.new_stream(bytes_io, pa.schema([("v", "f8")])).write_table(pa.table({"v": v}))
parquet.write_table(pa.table({"i": i, "v": v}), bytes_io)
csv.write_csv(pa.table({"i": i}), bytes_io)
feather.write_feather(pa.table({"v": v}), path, compression="uncompressed")    # kernel: both
pa.OSFile(path, "w").write(u)                           # kernel: both
"""

POLARS = """
pl.Series(v)                                            # none v
pl.Series("i", i)                                       # none i
pl.Series(t)
pl.Series(d.view("M8[ms]"))
pl.Series(v).sum()
pl.Series(v).rolling_mean(5)
pl.Series(v).sort()
pl.Series(v).quantile(0.3)
pl.Series(i).value_counts(sort=True)["count"]
pl.Series(i).unique().sort()
pl.Series(v).to_numpy()                                 # none v
pl.Series(i).is_in([3, 4])
pl.from_numpy(a)
pl.from_numpy(X, schema=list("abcdefgh")).describe()
pl.DataFrame({"i": i, "v": v})                          # none i v
pl.DataFrame({"i": i, "v": v}).group_by("i").agg(pl.col("v").sum(), pl.len()).sort("i")  # close: threads add in any order
pl.DataFrame({"i": i, "v": v}).lazy().filter(pl.col("i") > 30).select(pl.col("v").max()).collect()
pl.DataFrame({"i": i, "v": v}).join(pl.DataFrame({"i": np.arange(50), "k": 1}), on="i", maintain_order="left")
pl.DataFrame({"i": i, "v": v}).sort("i", "v")
pl.DataFrame({"i": i, "v": v}).with_columns(pl.col("v").cum_sum().over("i"))
pl.DataFrame({"d": d.view("M8[ms]"), "v": v[:4096]}).group_by_dynamic("d", every="1d").agg(pl.col("v").mean())    # some v
pl.DataFrame({"v": v}).write_csv()
pl.DataFrame({"v": v}).select(pl.corr("v", "v"))
pl.DataFrame({"v": v}).to_numpy()                       # none v
pl.DataFrame(a).transpose()
"""

XARRAY = """
xr.DataArray(a, dims=("x", "y"))                        # none a
xr.DataArray(a, dims=("x", "y")).mean("x")
xr.DataArray(a, dims=("x", "y")).isel(x=5)              # none a
xr.DataArray(v, coords={"d": w}, dims="d").sel(d=slice(10, 90))    # none v
xr.DataArray(v[:4096], coords={"d": d}, dims="d").resample(d="1D").mean()    # some v
xr.DataArray(a, dims=("x", "y")).rolling(x=5).mean()
xr.DataArray(v, coords={"i": ("k", i)}, dims="k").groupby("i").sum()
xr.DataArray(a, dims=("x", "y")).interp(x=[0.5, 1.5])
xr.DataArray(a, dims=("x", "y")).where(m)
xr.Dataset({"a": (("x", "y"), a), "b": (("x", "y"), b)}).std()
xr.concat([xr.DataArray(a, dims=("x", "y")), xr.DataArray(b, dims=("x", "y"))], "x")
xr.dot(xr.DataArray(a, dims=("x", "y")), xr.DataArray(b, dims=("y", "z")))
xr.DataArray(n, dims=("x", "y")).fillna(0)
xr.DataArray(a, dims=("x", "y")).quantile(0.3)
"""

DASK = """
da.from_array(a, chunks=50).sum().compute()
da.from_array(a, chunks=50).mean(axis=0).compute()
da.from_array(a, chunks=(50, 128)).T.compute()
da.from_array(v, chunks=1000).std().compute()
(da.from_array(a, chunks=64) @ da.from_array(b, chunks=64)).compute()
da.from_array(i, chunks=1000)[da.from_array(j, chunks=1000) > 50].compute()
da.from_array(a, chunks=50)[5:9, 100].compute()
da.unique(da.from_array(i, chunks=999)).compute()
da.histogram(da.from_array(v, chunks=999), bins=np.arange(-3, 4))[0].compute()
da.from_array(a, chunks=32).map_blocks(np.sort).compute()
da.from_array(a, chunks=32).map_overlap(lambda x: x * 2, depth=1).compute()
da.fft.fft(da.from_array(c, chunks=(16, 64))).compute()
da.linalg.svd(da.from_array(X, chunks=(256, 8)))[1].compute()
da.percentile(da.from_array(v, chunks=8192), [5, 50]).compute()
da.store(da.from_array(a, chunks=50) * 2, b)            # writes b
"""

# By library: the module that has its version, what its calls use besides `np` and the arrays, and its calls.
LIBRARIES = {
    "Python": (
        "sys",
        "import array, base64, binascii, bisect, bz2, collections, copy, csv, functools, hashlib, heapq, io, json, lzma,"
        " math, operator, os, pickle, random, re, statistics, struct, zlib; from call_kit import received, sent",
        PYTHON,
    ),
    "numpy": ("numpy", "from numpy import testing", NUMPY + NUMPY_TESTING.lstrip()),
    "scipy": (
        "scipy",
        "from scipy import cluster, fft, integrate, interpolate, io, linalg, ndimage, optimize, signal,"
        " sparse, spatial, special, stats; from scipy.sparse import csgraph;"
        " import scipy.sparse.linalg, scipy.cluster.hierarchy, scipy.cluster.vq",
        SCIPY,
    ),
    "scikit-learn": (
        "sklearn",
        "from sklearn import cluster, decomposition, discriminant_analysis, ensemble, feature_selection,"
        " gaussian_process, impute,"
        " kernel_approximation, linear_model, manifold, metrics, mixture, model_selection, naive_bayes,"
        " neighbors, neural_network,"
        " pipeline, preprocessing, random_projection, svm, tree, utils",
        SKLEARN,
    ),
    "scikit-image": (
        "skimage",
        "from skimage import color, exposure, feature, filters, io, measure, metrics, morphology, registration, restoration,"
        " segmentation, transform, util",
        SKIMAGE,
    ),
    "OpenCV": ("cv2", "import cv2", CV2),
    "pandas": ("pandas", "import pandas as pd", PANDAS),
    "numba": ("numba", "from numba_kit import *", NUMBA),
    "numexpr": (
        "numexpr",
        # Its own threads block every signal: where the touching thread is to be told by one, it must use none of them.
        "import numexpr as ne; prepare = lambda delivery: ne.set_num_threads(1 if delivery == 'inline' else 4)",
        NUMEXPR,
    ),
    "pyarrow": (
        "pyarrow",
        "import pyarrow as pa, pyarrow.compute as pc; from pyarrow import csv, feather, ipc, parquet",
        PYARROW,
    ),
    "polars": ("polars", "import polars as pl", POLARS),
    "xarray": ("xarray", "import xarray as xr", XARRAY),
    "dask": ("dask", "import dask.array as da", DASK),
}


class Call(NamedTuple):
    """One line: the expression, which inputs it names, and its marks, by their first word."""

    text: str
    names: tuple[str, ...]
    marks: dict[str, str]

    def marked(self, mark: str) -> list[str]:
        """The names that a mark gives."""
        return self.marks.get(mark, "").split()

    def is_refused(self, is_plain: bool) -> bool:
        """Does a system call that cannot wait for pages end it with EFAULT?"""
        return self.marks.get("kernel") == "both" or (is_plain and "kernel" in self.marks)

    def is_written(self, name: str) -> bool:
        """Must it be memory that can be written to?"""
        return name in self.marked("writes") + self.marked("writable")

    def has_to_ask(self) -> bool:
        """Does it raise where it may not write?"""
        return any(self.is_written(name) for name in self.names) and "unchecked" not in self.marks

    def reads(self) -> bool:
        """Does it read an element of any array? The others look at shapes, or make views."""
        return any(name not in self.marked("none") for name in self.names)


def calls_of(library: str) -> Iterator[Call]:
    """The calls of one library, in order."""
    for line in LIBRARIES[library][2].strip().splitlines():
        text, _, said = (part.strip() for part in line.partition(" # "))
        marks = dict(re.match(r"(\w+):? ?(.*)", mark).groups() for mark in said.split("; ") if mark)
        unknown = set(marks) - {"writes", "writable", "some", "none", "kernel", "copied", "raises", "close", "unchecked"}
        assert not unknown, f"{line}: {unknown}"
        used = [node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
        yield Call(text, tuple(name for name in INPUTS if name in used), marks)


def counts() -> dict[str, int]:
    """How many calls each library has."""
    return {library: len(list(calls_of(library))) for library in LIBRARIES}
