"""The end of a search: best strategies confirmed, weights mixed, the winner scored, logged, and made champion.

Which trials were best is :mod:`search.scheduling`'s; what is printed of a winner :mod:`search.reporting`'s.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
