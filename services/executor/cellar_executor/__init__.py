"""The executor: sessions of isolated Python kernels behind HTTP, their record in Redis."""

from importlib.metadata import version

__version__ = version("cellar")
