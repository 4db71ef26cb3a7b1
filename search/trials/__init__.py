"""One trial: sampled, trained, paused or stopped, told.

Below this room nothing knows the whole configuration or the open study.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
