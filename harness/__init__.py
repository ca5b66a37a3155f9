"""Compare deep-learning compiler backends on latency, drift and compile time."""

__version__ = "0.1.0"
