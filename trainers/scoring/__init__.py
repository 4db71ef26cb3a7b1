"""What a trained model says of images: predictions, calibration, soups of weights, images to show.

Which metric is computed is :mod:`trainers.tasks`'.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
