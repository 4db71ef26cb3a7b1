"""Changes of a model by a strategy: blocks, parameters trained in each epoch, LoRA, stochastic normalisation.

Models are made in :mod:`trainers.models`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
