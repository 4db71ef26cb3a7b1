"""One strategy trained on one model: batches, losses, gradients, state, ranks.

Scores are :mod:`trainers.tasks`'; what frozen blocks give is :mod:`trainers.reuse`'s.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
