"""The end of a search: best strategies confirmed, weights mixed, the winner scored, logged and made champion.

Logged models are loaded, run and exported here too. Trials are ranked in :mod:`search.scheduling`; a winner is printed
by :mod:`search.reporting`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
