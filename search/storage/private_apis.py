"""Private names of Optuna and undocumented names of MLflow, each with its reason: any new version may drop them.

No other module of this package imports a private name of Optuna. MLflow's names are imported where they are used:
otherwise every process that opens Optuna's storage would wait for MLflow.
"""

from collections.abc import Container, Sequence
from copy import deepcopy as deep_copy
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import HyperbandPruner
from optuna.samplers import QMCSampler
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session as transaction
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import Engine

__all__ = [
    "NAMES",
    "BaseHeartbeat",
    "Hyperband",
    "PlacedQMC",
    "StudyOfTrials",
    "add_storage_service",
    "fill_mlflow",
    "id_in_storage",
    "live_trial",
    "mlflow_revision",
    "models",
    "queued_params",
    "storage_of",
    "take_queued",
    "transaction",
]

#: Name, as ``pkgutil.resolve_name`` takes it, to the reason why it is used or overridden.
NAMES = {
    "optuna.storages._heartbeat:BaseHeartbeat": "Optuna fails stale trials only of storages of this class",
    "optuna.storages._heartbeat:BaseHeartbeat._get_stale_trial_ids": "workers ask the proxy for stale trials",
    "optuna.storages._grpc.auto_generated.api_pb2_grpc:add_StorageServiceServicer_to_server": (
        "optuna.storages.run_grpc_proxy_server allows no second service beside Optuna's"
    ),
    "optuna.storages._grpc.servicer:OptunaStorageProxyService": "it is Optuna's service of the proxy",
    "optuna.storages:GrpcStorageProxy._setup": "the second service needs a channel too, after unpickling as well",
    "optuna.storages._rdb.models:TrialModel.find_or_raise_by_id": "a change of state locks its trial first",
    "optuna.storages._rdb.models:TrialSystemAttributeModel.find_by_trial_and_key": "a change of state reads its mark",
    "optuna.storages._rdb.storage:_create_scoped_session": "a mark is written in the transaction of its change",
    "optuna.study:Study._get_trials": "samplers read trials by it, in the order of an uninterrupted study",
    "optuna.pruners:HyperbandPruner._create_bracket_study": "it reads trials from the store, not from the given study",
    "optuna.pruners:HyperbandPruner._get_bracket_id": "it tells which trials a bracket has",
    "optuna.samplers:QMCSampler._find_sample_id": "a trial's point follows from its place, not from a count of draws",
    "optuna.storages:RDBStorage._create_new_trial": "a new trial gets a mark",
    "optuna.storages:RDBStorage._get_prepared_new_trial": "the transaction that makes a trial looks for its mark",
    "optuna.storages:RDBStorage._set_trial_value_without_commit": "one transaction writes values, mark and state",
    "optuna.storages:RDBStorage._set_trial_attr_without_commit": "one transaction writes values, mark and state",
    "optuna.storages:RDBStorage._get_stale_trial_ids": "no trial is failed because the server was down",
    "optuna.storages:RDBStorage._get_trials": "it is retried: Optuna's cache reads trials by it",
    "optuna.storages:RDBStorage._get_best_trial_id": "it is retried: Optuna's cache asks for the best trial by it",
    "optuna.storages:RDBStorage._set_trial_param": "it is retried: Optuna's cache writes parameters by it",
    "mlflow.protos.databricks_pb2:RESOURCE_DOES_NOT_EXIST": "it tells a missing run from an outage",
    "mlflow.protos.databricks_pb2:ErrorCode.Name": "MLflow's exceptions carry the name of their code",
    "mlflow.store.artifact.artifact_repo:ArtifactRepository.delete_artifacts": "MlflowClient deletes no artifacts",
    "mlflow.store.artifact.artifact_repository_registry:get_artifact_repository": "it opens the repository of a URI",
    "mlflow.store.artifact.local_artifact_repo:LocalArtifactRepository.artifact_dir": "a stored checkpoint is synced",
    "mlflow.store.db.utils:_get_latest_schema_revision": "it tells a database that was left between its migrations",
    "mlflow.store.db.utils:_initialize_tables": "it makes a database under a temporary name",
    "mlflow.store.db.db_types:DATABASE_ENGINES": "it tells a database from a server",
    "mlflow.system_metrics.metrics.cpu_monitor:CPUMonitor": "MLflow's thread would log past the background writer",
    "mlflow.system_metrics.metrics.gpu_monitor:GPUMonitor": "MLflow's thread would log past the background writer",
    "mlflow.utils.mlflow_tags:MLFLOW_DATASET_CONTEXT": "this tag says what a run used a data set for",
    "mlflow.utils.validation:MAX_ENTITIES_PER_BATCH": "log_batch refuses more in one call",
    "mlflow.utils.validation:MAX_PARAMS_TAGS_PER_BATCH": "log_batch refuses more in one call",
}


def id_in_storage(trial: Trial | FrozenTrial) -> int:
    """A trial's id in its storage, as the methods of storages take it; ``trial.number`` counts within a study."""
    return trial._trial_id


def live_trial(study: Study, trial: FrozenTrial) -> Trial:
    """A running trial, as ``study.tell`` takes it, whichever process asked for it."""
    return Trial(study, id_in_storage(trial))


def queued_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters with which ``study.enqueue_trial`` queued a trial; empty for a trial that was not queued."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def take_queued(study: Study, queued: FrozenTrial) -> Trial | None:
    """Begin a queued trial; None if another process has begun it.

    ``study.ask`` does this with the queued trial of the lowest number.
    """
    try:
        taken = study._storage.set_trial_state_values(id_in_storage(queued), state=TrialState.RUNNING)
    except UpdateFinishedTrialError:
        return None
    return live_trial(study, queued) if taken else None


def storage_of(study: Study) -> BaseStorage:
    """The storage of a study, for reading its other studies."""
    return study._storage


class StudyOfTrials(Study):
    """A study that has the given trials; whatever is written goes to the store of the real study.

    Args:
        study: The real study.
        trials: The trials, by number.
    """

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        self.__dict__.update(study.__dict__)
        self._given = trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = [trial for trial in self._given if states is None or trial.state in states]
        return deep_copy(found) if deepcopy else found


class Hyperband(HyperbandPruner):
    """Hyperband that reads trials from the study that it is given."""

    def _create_bracket_study(self, study: Study, bracket_id: int) -> Study:
        trials = study.get_trials(deepcopy=False)
        return StudyOfTrials(study, [one for one in trials if self._get_bracket_id(study, one) == bracket_id])


class PlacedQMC(QMCSampler):
    """Quasi-random draws for one trial, which takes the point of its place in the sequence.

    Args:
        seed: Seed of the sequence.
        place: The trial's place.
    """

    def __init__(self, seed: int, place: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False)
        self._place = place

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place


def add_storage_service(storage: BaseStorage, server: Any) -> None:
    """Add Optuna's service of a storage to a gRPC server."""
    from optuna.storages._grpc.auto_generated import api_pb2_grpc
    from optuna.storages._grpc.servicer import OptunaStorageProxyService

    service = OptunaStorageProxyService(storage)
    api_pb2_grpc.add_StorageServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]


def mlflow_revision() -> str:
    """The revision of MLflow's tables after all its migrations."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def fill_mlflow(engine: Engine) -> None:
    """Make MLflow's tables in an empty database."""
    from mlflow.store.db.utils import _initialize_tables

    _initialize_tables(engine)  # type: ignore[no-untyped-call]
