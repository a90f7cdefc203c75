"""How does what is tested of private memory run over shared memory? Every array that is made then lies in it."""

from __future__ import annotations

import importlib

import lazymem.making


def in_shared_memory(fill, module, name, *args):
    """Call a function of another test module, all of whose arrays are of memory="shared"."""
    settle = lazymem.making.settle

    def shared(options, nbytes):
        return settle(options._replace(memory="shared", fill=fill), nbytes)

    lazymem.making.settle = shared
    getattr(importlib.import_module(module), name)(*args)
