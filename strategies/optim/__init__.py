"""Optimizers and what surrounds them: parameter groups, schedules, SAM, averages, relative gradients.

The training loop is :mod:`trainers.training`'s.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
