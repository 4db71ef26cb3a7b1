"""MLflow: what is logged of a study and its trials, in batches from a thread of its own; on disk while MLflow is away.

Optuna's store is :mod:`search.storage`'s; the logged model is :mod:`search.winner`'s.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
