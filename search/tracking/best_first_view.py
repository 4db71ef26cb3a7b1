"""MLflow's page of a study: a view that lists the trials best first, with the parameters that were searched."""

import json
import time

from strategies import Fixed, Space

# Name of the view in the address of MLflow's page.
_VIEW = "best_first"
#: MLflow's tag of an experiment for a view of its runs; MLflow's button "Views" lists them.
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
# MLflow begins with its pages for language models.
_MODE = "workflowType=machine_learning"
# MLflow keeps 5,000 characters of a tag.
_MOST_COLUMNS = 40


def best_first(space: Space, chooses_model: bool, lower_is_better: bool, winner: str | None = None) -> str:
    """The value of ``VIEW_TAG``: columns for score, searched parameters and seconds of each run.

    Args:
        space: Space of the study.
        chooses_model: Whether the model is searched too.
        lower_is_better: Whether lower scores are better.
        winner: The winner's run, which is pinned above all others, also those of equal scores; None without one.
    """
    searched = [name for name, entry in space.items() if not isinstance(entry, Fixed)]
    # A depth in blocks says more than a share of all blocks.
    params = (["model"] if chooses_model else []) + ["depth_blocks" if name == "depth" else name for name in searched]
    columns = [_column("metrics", "score"), *(_column("params", name) for name in params[:_MOST_COLUMNS])]
    state = {
        "orderByKey": _column("metrics", "score"),
        "orderByAsc": lower_is_better,
        "selectedColumns": [*columns, _column("metrics", "seconds")],
        "runsPinned": [] if winner is None else [winner],
    }
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": "Best first", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def page_of(experiment_id: str) -> str:
    """Address of the view, relative to any page of MLflow."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}&{_MODE}"


def front_page() -> str:
    """Address of MLflow's list of experiments, relative to any page of MLflow."""
    return f"#/experiments?{_MODE}"


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
