import typing
from pathlib import Path

from search.config import TASK_METRICS, DataConfig
from strategies import CHOICES, TASK_LOSSES, Strategy

ROOT = Path(__file__).parent.parent


def test_the_table_of_strategies_says_what_the_code_says():
    defaults = Strategy().to_dict()
    rows = [f"| `{name}` | {defaults[name]} | {c.expected()} | {c.help} |" for name, c in CHOICES.items()]
    assert "\n".join(rows) in (ROOT / "docs" / "strategies.md").read_text()


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
