"""A model of timm or another zoo with its weights: found, created, given a head or maps, and what can be applied to it.

What stands on feature maps is in :mod:`trainers.decoders`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
