from .detectors import DETECTORS as DETECTORS
from .detectors import Detector as Detector
from .segmenters import SEGMENTERS as SEGMENTERS
from .segmenters import SMP_SEGMENTERS as SMP_SEGMENTERS
from .segmenters import Segmenter as Segmenter
