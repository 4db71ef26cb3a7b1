"""The documentation as pages, and the notebook in it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def test_the_pages_are_built_and_every_link_leads_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    for source in (ROOT / "docs").glob("*.md"):
        assert source.with_suffix(".html").name in pages
    text = (tmp_path / "site" / "python.html").read_text(encoding="utf-8")
    assert "search.api.Study.promote" in text


def test_the_notebook_runs(tmp_path):
    text = (ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
    trials = r"{\"trials\": 4}"
    assert trials in text
    # Its cells do the same with one trial.
    notebook = nbformat.reads(text.replace(trials, r"{\"trials\": 1}"), as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    said = json.dumps(notebook.cells, ensure_ascii=False)
    assert re.search(r"test accuracy 0\.\d{4} \(95% interval", said)
    assert (tmp_path / "digits-report.html").stat().st_size > 1_000_000
