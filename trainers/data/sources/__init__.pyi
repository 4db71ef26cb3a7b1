from .checks import checked_root as checked_root
from .checks import shown as shown
from .folders import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from .folders import subfolders as subfolders
from .table import SOURCES as SOURCES
from .tables import read_columns as read_columns
from .tables import read_header as read_header
