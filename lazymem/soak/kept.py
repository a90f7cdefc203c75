"""Where does what is written to an array have to arrive, and what is there now?"""

from __future__ import annotations

import contextlib
import os
import tempfile

import numpy as np

from lazymem.soak.content import Words


class Kept:
    """Memory that is written to.

    Parameters
    ----------
    values : numpy.ndarray of uint64
        What is there to begin with; not copied.
    """

    def __init__(self, values: Words) -> None:
        self._values = values

    def words(self) -> Words:
        """What is there now."""
        return self._values

    def close(self) -> None:
        """It is not needed any more."""


class KeptFile(Kept):
    """A file that is written to.

    Parameters
    ----------
    folder : str
        Where it is made.
    values : numpy.ndarray of uint64
        What is there to begin with.
    """

    def __init__(self, folder: str, values: Words) -> None:
        fd, self.path = tempfile.mkstemp(dir=folder)
        with open(fd, "wb") as file:
            values.tofile(file)

    def words(self) -> Words:
        """What is there now."""
        return np.fromfile(self.path, "u8")

    def close(self) -> None:
        """It is not needed any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
