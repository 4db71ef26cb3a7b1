"""Changes of training images and of their masks and boxes: levels, policies, mixing, views, sizes.

The trainer decides when they apply; decoding and storing images belongs to :mod:`trainers.data`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
