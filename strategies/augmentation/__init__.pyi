from .draws import Draws as Draws
from .levels import tta_views as tta_views
from .resizing import resize as resize
from .resizing import shown_size as shown_size
from .variation import mix_batch as mix_batch
from .variation import vary as vary
from .variation import vary_dense as vary_dense
from .views import View as View
