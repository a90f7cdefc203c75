"""What can the bytes of an array come from? One file each."""

from lazymem.providers.base import Provider
from lazymem.providers.checked import Checked, ChecksumError, checksums_of

__all__ = ["Checked", "ChecksumError", "Provider", "checksums_of"]
