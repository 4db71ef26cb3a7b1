# Those of the studies next door are used here too.
from tests.search.conftest import empty_mlflow, new_lab  # noqa: F401
