"""Linear probes trained together, as one batched head.

A probe that is trained alone is in :mod:`trainers.training`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
