"""The version of c3po that this package is part of."""

__version__ = "0.1.0"
