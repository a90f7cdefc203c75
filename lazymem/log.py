"""Where do lazymem's log records go? To the logger "lazymem", and nowhere unless the program says so."""

import logging

logger = logging.getLogger("lazymem")


def quieten() -> None:
    """Give the logger its NullHandler, once: without one, logging would print for a program that never asked."""
    if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        logger.addHandler(logging.NullHandler())
