from .api import Study as Study
from .compose import compose_jobs as compose_jobs
from .compose import compose_study as compose_study
from .compose import find_study as find_study
from .compose import list_studies as list_studies
from .config import StudyConfig as StudyConfig
from .schema import build_config as build_config
from .study import run_study as run_study
