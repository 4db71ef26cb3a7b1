"""Where labelled images come from: one file a source; each source returns the images that it found.

Images are read in :mod:`trainers.data.pixels`, splits are made in :mod:`trainers.data`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
