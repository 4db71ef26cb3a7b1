"""A view saved with a study, in which MLflow lists its trials the best first, with what was searched."""

import json
import time

from strategies import Fixed, Space

# Names the view in the address of MLflow's page.
_VIEW = "best_first"
#: MLflow's tag of an experiment that holds a view of its runs, of which its button "Views" shows all.
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
# MLflow keeps 5,000 characters of a tag.
_MOST_COLUMNS = 40


def best_first(space: Space, chooses_model: bool, lower_is_better: bool) -> str:
    """The value of ``VIEW_TAG``: score and seconds of each run, and its parameters that are searched.

    Args:
        space: The study's.
        chooses_model: Whether the model is searched too.
        lower_is_better: Of scores.
    """
    searched = [name for name, entry in space.items() if not isinstance(entry, Fixed)]
    # Of depth, how many blocks that comes to says more than the share of all.
    params = (["model"] if chooses_model else []) + ["depth_blocks" if name == "depth" else name for name in searched]
    columns = [_column("metrics", "score"), *(_column("params", name) for name in params[:_MOST_COLUMNS])]
    state = {
        "orderByKey": _column("metrics", "score"),
        "orderByAsc": lower_is_better,
        "selectedColumns": [*columns, _column("metrics", "seconds")],
    }
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": "Best first", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def page_of(experiment_id: str) -> str:
    """Where MLflow shows the view, seen from any of its pages."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}"


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
