from .decoding import Preprocessing as Preprocessing
from .decoding import decode as decode
from .decoding import placed as placed
from .opening import ImageData as ImageData
from .opening import open_data as open_data
from .placing import Placing as Placing
from .placing import centred as centred
from .split import Split as Split
