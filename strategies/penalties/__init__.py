"""Penalties that are added to a loss to keep weights, features or outputs near those of the start model.

Losses of targets are in :mod:`strategies.losses`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
