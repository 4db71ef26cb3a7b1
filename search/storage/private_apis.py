"""Private names of Optuna and undocumented names of MLflow, each with its reason: any new version may drop them.

No other module of this package imports a private name of Optuna. MLflow's names are imported where they are used:
otherwise every process that opens Optuna's storage would wait for MLflow.
"""

from typing import Any

from optuna import Study
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session as transaction
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.engine import Engine

__all__ = [
    "NAMES",
    "BaseHeartbeat",
    "add_storage_service",
    "fill_mlflow",
    "id_in_storage",
    "live_trial",
    "mlflow_revision",
    "models",
    "queued_params",
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
