"""A study that is chosen for the user: what is there is looked at, measured, and written down as a study file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
