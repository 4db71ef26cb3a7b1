"""What people read of a study: terminal, tables, the report page, its figures, MLflow's note, notifications.

Nothing is decided here, and nothing is written that a later search depends on.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
