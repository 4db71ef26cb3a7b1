from .api import Study as Study
from .config import StudyConfig as StudyConfig
from .config import build_config as build_config
from .config import compose_jobs as compose_jobs
from .config import compose_study as compose_study
from .config import find_study as find_study
from .config import list_studies as list_studies
from .study import run_study as run_study
