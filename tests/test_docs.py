import typing
from pathlib import Path

from search.config import ONE_OBJECTIVE_SAMPLERS, TASK_METRICS, AfterConfig, Cost, DataConfig, SamplerConfig
from search.reference import with_reference
from strategies import CHOICES, TASK_LOSSES

ROOT = Path(__file__).parent.parent


def test_the_table_of_strategies_says_what_the_code_says():
    page = (ROOT / "docs" / "strategies.md").read_text()
    assert page == with_reference(page), "python -m search.reference makes the table anew"
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
