"""Decoded images on disk, shared by trials, processes and nights.

The outputs of frozen blocks are cached in :mod:`trainers.reuse`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
