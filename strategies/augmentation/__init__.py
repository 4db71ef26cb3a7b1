"""Changes of images, and of what goes with them: levels, policies, mixing, views, sizes.

When they apply is decided by the trainer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
