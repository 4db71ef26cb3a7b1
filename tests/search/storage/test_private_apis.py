import ast
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

import optuna
import pytest

ROOT = Path(__file__).parents[3] / "search"
OURS = ROOT / "storage" / "private_apis.py"
# Read, not imported: the import itself fails where Optuna has dropped a name.
(NAMES,) = (
    ast.literal_eval(node.value)
    for node in ast.parse(OURS.read_text()).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES"
)


def lacks(name: str, reason: str) -> str:
    package = name.split(".", maxsplit=1)[0]
    return f"{package} {version(package)} lacks {name}, which search/ needs: {reason}"


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_version_has_each_private_name(name):
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(lacks(name, NAMES[name]))


def test_the_message_names_the_api_and_the_version():
    assert lacks("optuna.storages:_gone", "a reason").startswith(f"optuna {optuna.__version__} lacks optuna.storages:_")


def test_a_trial_has_an_id_in_its_storage_and_the_parameters_that_were_queued():
    from search.storage import id_in_storage, live_trial, queued_params

    study = optuna.create_study()
    study.enqueue_trial({"lr": 0.1})
    trial = study.ask()
    (frozen,) = study.get_trials()
    assert hasattr(frozen, "_trial_id"), lacks("optuna.trial:FrozenTrial._trial_id", "storages ask for it")
    assert id_in_storage(frozen) == id_in_storage(trial) == id_in_storage(live_trial(study, frozen))
    assert queued_params(frozen) == {"lr": 0.1}, lacks("optuna.trial:FrozenTrial.system_attrs.fixed_params", "retries")
    study.ask()
    assert queued_params(study.get_trials()[1]) == {}


def private_names(tree: ast.AST) -> set[str]:
    """Private names of Optuna and MLflow that a module imports, and those of a trial that it reads."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("optuna", "mlflow"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in ("optuna", "mlflow")}
        elif isinstance(node, ast.Attribute) and node.attr in ("_trial_id", "_study_id"):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and node.value == "fixed_params":
            found.add(node.value)
    return {name for name in found if name == "fixed_params" or any(part.startswith("_") for part in name.split("."))}


def test_no_other_module_uses_a_private_name():
    modules = [path for path in ROOT.rglob("*.py") if path != OURS]
    assert {path: names for path in modules if (names := private_names(ast.parse(path.read_text())))} == {}
    assert private_names(ast.parse(OURS.read_text())) >= {"optuna.storages._heartbeat.BaseHeartbeat", "_trial_id"}
