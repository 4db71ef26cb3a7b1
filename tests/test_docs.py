from pathlib import Path

from strategies import CHOICES, Strategy

ROOT = Path(__file__).parent.parent


def test_the_table_of_strategies_says_what_the_code_says():
    defaults = Strategy().to_dict()
    rows = [f"| `{name}` | {defaults[name]} | {c.expected()} | {c.help} |" for name, c in CHOICES.items()]
    assert "\n".join(rows) in (ROOT / "docs" / "strategies.md").read_text()


def test_every_study_in_the_repo_is_named_in_the_changelog_or_readme():
    texts = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    for study in (ROOT / "studies").glob("*.yaml"):
        assert f"`{study.stem}`" in texts
