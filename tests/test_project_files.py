"""Files for people and programs that come before the code: license, citation, container, pictures."""

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml

from search import compose_study

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_license_and_citation_agree_with_the_package():
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["abstract"]) == (PROJECT["version"], PROJECT["description"])
    assert cited["license"] == PROJECT["license"] == "Apache-2.0"


def test_the_container_runs_the_search_of_the_readme():
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]
    facts = dict(steps)
    words = [*yaml.safe_load(facts["ENTRYPOINT"]), *yaml.safe_load(facts["CMD"])]
    (command,) = re.findall(r"<!-- run: search -->\n```bash\n(.*)\n", (ROOT / "README.md").read_text())
    assert command.endswith(" ".join(words))
    assert "pip install -q -e . && " in command
    # All that pip needs is copied, to the folder in which it installs, whose programs are found.
    source, folder = facts["COPY"].split()
    assert source == "."
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in ("pyproject.toml", *PROJECT["license-files"], PROJECT["readme"], "search", "strategies", "trainers"):
        assert (ROOT / name).exists()
        assert not [pattern for pattern in ignored if fnmatch(name, pattern.removeprefix("**/"))], name
    *_, install = facts["RUN"].split(" && ")
    assert facts["RUN"].startswith(f"cd {folder} && python3 -m venv .venv && ")
    assert install == ".venv/bin/pip install --no-cache-dir -q -e ."
    variables = dict(value.split("=", 1) for step, value in steps if step == "ENV")
    assert variables == {"PATH": f"{folder}/.venv/bin:$PATH", "PYTHONSAFEPATH": "1"}
    # On a CPU and on a GPU it is the same Ubuntu, whose Python is new enough.
    bases = re.findall(r"BASE=(\S+)", "\n".join(lines))
    assert len(bases) == 2
    assert all(re.search(r"ubuntu:?24\.04$", base) for base in bases)
    # What its comment says to run can be composed.
    for line in re.findall(r"search\.run (study=.*)$", "\n".join(lines), re.MULTILINE):
        assert compose_study(shlex.split(line)).data.source == "folder"


def test_the_pictures_of_the_readme_are_there_and_small():
    pictures = re.findall(r"!\[[^]]{20,}\]\((docs/images/.*?)\)", (ROOT / "README.md").read_text())
    assert len(pictures) == 2
    for picture in pictures:
        assert 1_000 < (ROOT / picture).stat().st_size < 300_000
        # Nothing is loaded from elsewhere.
        assert b"@import" not in (content := (ROOT / picture).read_bytes())
        assert b"url(http" not in content


def test_extras_are_installed_from_the_checkout_while_no_index_has_the_package():
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("s*/**/*.py"), *ROOT.glob("trainers/**/*.py")):
        assert "pip install 'unfreeze[" not in path.read_text(encoding="utf-8"), path


def test_the_readme_explains_its_words():
    (glossary,) = re.findall(r"^\| word \| meaning \|\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.M | re.S)
    explained = re.findall(r"^\| (\w+) \| ", glossary, re.MULTILINE)
    assert {"block", "depth", "preset", "generation", "champion"} <= {*explained}
