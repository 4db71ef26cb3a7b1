"""Losses, of images and of pixels, and weights against imbalance.

Penalties on weights are in :mod:`strategies.penalties`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
