from .checks import shown as shown
from .folders import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from .table import SOURCES as SOURCES
