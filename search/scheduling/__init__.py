"""What is tried next and how far: samplers, rungs, retries, the ledger of trials, termination.

It knows trials as Optuna has them, no training and no MLflow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
