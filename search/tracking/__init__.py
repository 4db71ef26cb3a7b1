"""MLflow runs of a study and its trials: written in batches by a background thread, on disk while MLflow is away.

Optuna's store is in :mod:`search.storage`, the logged model in :mod:`search.winner`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
