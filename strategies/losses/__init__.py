"""Losses of images and of pixels, distillation, and class weights and sampling against imbalance.

Penalties are in :mod:`strategies.penalties`; a detector's losses are in :mod:`trainers.decoders`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
