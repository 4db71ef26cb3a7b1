"""Predictions of a trained model, their calibration, soups of weights, images to show.

The metrics are in :mod:`trainers.tasks`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
