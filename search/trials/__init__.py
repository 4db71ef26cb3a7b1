"""One trial: asked for, sampled, trained, paused or resumed, committed.

Which trial comes next is decided in :mod:`search.study` and :mod:`search.scheduling`. Rooms below this one know neither
the open study nor, but for :mod:`search.processes`, the whole configuration.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
