"""Fine-tuning strategies: their fields, the space that they are sampled from, and their effect on a model.

Training a model with a strategy is the work of :mod:`trainers`; choosing strategies is that of :mod:`search`.
"""

import lazy_loader

# Lazy, so that reading a configuration does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
