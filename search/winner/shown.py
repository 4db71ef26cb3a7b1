"""Which test images were there when a version became the champion: images that came later are fresh."""

from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray

from search.processes import temporary_folder

#: Folder among the files of a logged model.
FOLDER = "champion"


def keep_shown(
    client: MlflowClient, name: str, before: ModelVersion | None, version: ModelVersion, digests: NDArray[np.uint64]
) -> None:
    """Keep the test images that a version was promoted by, with those of the champion before, beside its model.

    Args:
        client: Of the registry.
        name: The registered model.
        before: The champion before; None if there was none.
        version: The version that becomes the champion.
        digests: (N,) of the present test images.
    """
    earlier = shown_before(client, name, before) if before is not None else None
    every = digests if earlier is None else np.union1d(earlier, digests)
    with temporary_folder() as folder:
        file = folder / f"{name}.npy"
        np.save(file, every)
        client.log_model_artifact(_model_id(version), str(file), FOLDER)


def shown_before(client: MlflowClient, name: str, version: ModelVersion) -> NDArray[np.uint64] | None:
    """Digests of the test images that were there when a version was promoted; None for one of an earlier release."""
    model = _model_id(version)
    if f"{name}.npy" not in {Path(file.path).name for file in client.list_logged_model_artifacts(model, FOLDER)}:
        return None
    with temporary_folder() as folder:
        # Not by models:/m-.../FOLDER, which MLflow (3.17) takes for the name of a registered model.
        place = client.get_logged_model(model).artifact_location
        found = mlflow.artifacts.download_artifacts(f"{place}/{FOLDER}/{name}.npy", dst_path=str(folder))
        digests: NDArray[np.uint64] = np.load(found)
    return digests


def _model_id(version: ModelVersion) -> str:
    return str(version.tags["unfreeze.model_uri"]).removeprefix("models:/")
