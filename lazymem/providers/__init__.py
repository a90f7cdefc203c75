"""What can the bytes of an array come from? One file each."""

from lazymem.providers.base import Provider

__all__ = ["Provider"]
