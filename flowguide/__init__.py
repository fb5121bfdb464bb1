"""flowguide: conditional flow matching and guided sampling in JAX."""

__version__ = "0.1.0"
