"""Which version is this? The one place that says."""

__version__ = "0.1.0"
