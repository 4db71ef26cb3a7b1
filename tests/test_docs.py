import re
import shlex
import subprocess
import typing
from pathlib import Path

import pytest
import yaml

from search import compose_study
from search.config import ChampionConfig, Cost, DataConfig, ExecutorConfig, HousekeepingConfig, SamplerConfig
from search.config.defaults import TASK_METRICS
from search.config.executor import EXECUTOR_KEYS
from search.config.reference import PAGES, with_reference
from search.config.sections import ONE_OBJECTIVE_SAMPLERS, AfterConfig, ConfirmConfig
from strategies import CHOICES, TASK_LOSSES

ROOT = Path(__file__).parent.parent


def test_the_table_of_strategies_says_what_the_code_says():
    for name, what in PAGES.items():
        page = (ROOT / name).read_text()
        assert page == with_reference(page, what), "python -m search.config.reference makes the tables anew"
    page = (ROOT / "docs" / "strategies.md").read_text()
    for name, choices in CHOICES.items():
        assert f"| `strategy.{name}` |" in page
        assert choices.help in page


def test_every_study_in_the_repo_is_named_in_the_changelog_or_readme():
    texts = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    for study in (ROOT / "studies").glob("*.yaml"):
        assert f"`{study.stem}`" in texts


def test_every_source_task_and_key_of_the_data_is_explained():
    text = (ROOT / "docs" / "data.md").read_text()
    for source in typing.get_args(DataConfig.model_fields["source"].annotation):
        assert f"| `{source}` |" in text
    for task, metrics in TASK_METRICS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{task}` |")]
        assert f"| {', '.join(TASK_LOSSES[task])} | {', '.join(metrics)} |" in row
    for key in DataConfig.model_fields:
        assert key in text


def test_every_cost_and_every_sampler_that_takes_them_is_named():
    text = (ROOT / "docs" / "studies.md").read_text()
    for cost in typing.get_args(Cost):
        assert f"| `{cost}` |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("- Samplers: ")]
    able, unable = row.split("`. `", 1)
    for sampler in typing.get_args(SamplerConfig.model_fields["name"].annotation):
        assert f"{sampler}`" in (f"`{unable}" if sampler in ONE_OBJECTIVE_SAMPLERS else f"{able}`")


def test_every_key_of_what_comes_after_a_search_is_explained():
    text = (ROOT / "docs" / "after.md").read_text()
    for key, field in AfterConfig.model_fields.items():
        assert f"| `after.{key}` | {str(field.default).lower()} |" in text


@pytest.mark.parametrize(
    ("section", "keys", "page"),
    [
        ("confirm", ConfirmConfig, "after"),
        ("champion", ChampionConfig, "champion"),
        ("housekeeping", HousekeepingConfig, "champion"),
    ],
)
def test_every_key_of_a_section_is_explained(section: str, keys: type, page: str):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for key in keys.model_fields:
        assert f"{section}.{key}" in text


def test_every_executor_and_every_key_of_ray_is_explained():
    text = (ROOT / "docs" / "cluster.md").read_text()
    for name in typing.get_args(ExecutorConfig.model_fields["name"].annotation):
        assert name == "auto" or f"| `{name}` |" in text
    for key in EXECUTOR_KEYS["ray"]:
        default = ExecutorConfig.model_fields[key].get_default(call_default_factory=True)
        shown = "null" if default is None else default
        assert f"| `executor.{key}` | {shown} |" in text
    for key in EXECUTOR_KEYS["local"]:
        assert f"`executor.{key}`" in text


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "cluster").glob("*.yaml")), ids=lambda file: file.name)
def test_a_file_for_a_cluster_is_what_its_reader_takes(file: Path):
    documents = list(yaml.safe_load_all(file.read_text()))
    if file.name == "ray-up.yaml":
        # What `ray up` does first; there is no public name for it.
        from ray.autoscaler._private.util import prepare_config, validate_config

        validate_config(prepare_config(documents[0]))
        return
    for document in documents:
        assert {"apiVersion", "kind", "metadata", "spec"} == set(document)
    claims = {one["metadata"]["name"] for one in documents if one["kind"] == "PersistentVolumeClaim"}
    used = set(re.findall(r"claimName: ([\w-]+)", file.read_text()))
    assert used <= (claims or {"unfreeze-shared"})


@pytest.mark.parametrize("name", ["cluster.md", "cluster/rayjob.yaml", "cluster/slurm.sbatch"])
def test_a_command_for_a_cluster_can_be_composed(name: str):
    text = (ROOT / "docs" / name).read_text()
    if name.endswith(".yaml"):
        text = yaml.safe_load(text)["spec"]["entrypoint"]
    # As a shell would read them, with something for what it would fill in.
    text = text.replace("\\\n", " ").replace("$STORE_URL", "postgresql://db/optuna")
    text = re.sub(r"\$\(\(.*?\)\)", "4", text)
    commands = [line.split("#")[0] for line in re.findall(r"python -m search\.run (study=.*)", text)]
    assert commands
    for command in commands:
        words = [word for word in shlex.split(command) if word != "&"]
        assert compose_study(words).executor.name in ("local", "ray")


def test_the_batch_script_is_one():
    assert subprocess.run(["bash", "-n", ROOT / "docs" / "cluster" / "slurm.sbatch"], check=False).returncode == 0
