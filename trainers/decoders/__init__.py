"""What stands on an encoder's feature maps: segmentation decoders and detectors.

Encoders are in :mod:`trainers.models`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
