"""What people read about a study: terminal, tables, report page, figures, MLflow's note, notifications.

The servers of MLflow's and Optuna's pages are here too. Nothing is decided here, and no later search depends on what is
written here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
