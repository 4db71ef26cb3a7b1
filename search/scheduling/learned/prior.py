"""The numbers that are shipped: what fine-tunings of other models and data sets have taught."""

from functools import cache


class Prior:
    """A fitted predictor of scores and seconds. It is read from one safetensors file, and holds arrays alone."""


@cache
def shipped_prior() -> Prior:
    """The prior that comes with Unfreeze; read at the first call."""
    return Prior()
