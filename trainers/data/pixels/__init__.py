"""From files to arrays of pixels: decoding, bands, placing into a square.

Augmentation is in :mod:`strategies.augmentation`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
