"""Files become arrays of pixels: decoding, bands, placing into a square.

Augmentation is :mod:`strategies.augmentation`'s.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
