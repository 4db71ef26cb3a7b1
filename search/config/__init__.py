"""What a study file and the command line may say, as typed sections, and how files become a configuration.

It imports neither torch nor optuna nor mlflow, so that help and errors answer at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
