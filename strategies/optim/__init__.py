"""Optimizers, learning-rate schedules, SAM, averages of weights, relative gradients.

Parameter groups are made in :mod:`strategies.model`; the training loop is in :mod:`trainers.training`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
