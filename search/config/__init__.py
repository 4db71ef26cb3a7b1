"""The configuration of a study: typed sections with their checks, and how files and overrides become one.

This room imports neither torch nor optuna nor mlflow, so that help and configuration errors answer at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
