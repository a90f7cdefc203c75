"""Which provider opens a URL: http's, or one that an installed package names by an entry point?"""

import pytest
from support import check_child, each_user

import lazymem as lm

MODULE = '''
import io
import numpy as np
import lazymem.providers

class Count(lazymem.providers.Provider):
    def __init__(self, url, npy):
        array = np.arange(int(url.rpartition("/")[2].partition(".")[0].partition("?")[0]), dtype="i4")
        out = io.BytesIO()
        np.save(out, array)
        self.bytes = out.getvalue() if npy else array.tobytes()
        self.nbytes = len(self.bytes)

    def read_into(self, buffer, offset):
        buffer[:] = self.bytes[offset : offset + len(buffer)]

def open_url(url, storage_options=None):
    return Count(url, bool((storage_options or {}).get("npy")))
'''


@pytest.fixture
def package(folder):
    """A folder with an installed package that opens count://."""
    info = folder / "counting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lazymem.providers]\ncount = counting:open_url\n")
    (folder / "counting.py").write_text(MODULE)
    for path in (folder, info, *info.iterdir(), folder / "counting.py"):
        path.chmod(0o755)
    return folder


@each_user
def test_a_scheme_of_an_installed_package(package, user, delivery):
    check_child(
        f"""
        import sys
        sys.path.insert(0, {str(package)!r})
        import numpy as np
        import lazymem as lm
        raw = lm.memmap("count://host/1000?token=secret", "i4", delivery={delivery!r})
        assert np.array_equal(raw, np.arange(1000, dtype="i4"))
        assert "secret" not in raw.filename + repr(lm.region(raw))
        npy = lm.open("count://host/70000.npy", storage_options={{"npy": True}}, delivery={delivery!r})
        assert npy.shape == (70000,) and npy.dtype == "i4"
        assert int(npy[69999]) == 69999 and np.array_equal(npy, np.arange(70000))
        for url, said in (("count://host/1000", "cannot tell what it holds"), ("other://host/1000", "count, http, https")):
            try:
                lm.open(url)
                raise AssertionError(url)
            except ValueError as error:
                assert said in str(error), error
        """,
        user=user,
    )


@pytest.mark.parametrize("name", ["C:\\a.npy", "dir/x://y.npy", "://x"])
def test_paths_are_no_urls(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError):
        lm.open(name)
