from .decoding import Preprocessing as Preprocessing
from .decoding import decode as decode
from .opening import ImageData as ImageData
from .opening import open_data as open_data
from .split import Split as Split
