"""The built wheel has all that the checkout has, and works away from it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from search.config import list_spaces, list_studies

ROOT = Path(__file__).parent.parent
PACKAGES = ("search", "strategies", "studies", "trainers")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the checkout, built of a copy: setuptools leaves a folder beside what it builds, and builds on it."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (found,) = folder.glob("unfreeze-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel's packages."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def pip(*words: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def away(installed: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with the wheel's packages in a folder outside the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == files
    for kind in (".pyi", ".html", ".yaml", ".safetensors", "py.typed"):
        assert any(name.endswith(kind) for name in packed)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, ["usage: python -m search.run", "strategy.lr"]),
        (["--list"], 0, [*list_studies(), *list_spaces()]),
        (["study=resnet_cls", "--cfg", "job"], 0, ["name: resnet_cls"]),
        (["study=resnet_cls", "strategy.lr.hihg=0.1"], 2, ["error: strategy.lr"]),
    ],
)
def test_the_installed_wheel_answers_away_from_the_checkout(words, code, said, installed, tmp_path):
    done = away(installed, tmp_path, "-m", "search.run", *words)
    assert done.returncode == code, done.stderr
    for part in said:
        assert part in done.stdout + done.stderr


def test_nothing_of_the_checkout_is_imported_there(installed, tmp_path):
    code = "import search, strategies, trainers; print(search.__file__, strategies.__file__, trainers.__file__)"
    done = away(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(installed / name / "__init__.py") for name in ("search", "strategies", "trainers")
    ]


def test_the_console_script_needs_no_checkout_and_minds_no_file_of_the_working_folder(installed, tmp_path):
    for name in ("search", "strategies", "trainers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    done = away(installed, tmp_path, str(installed / "bin" / "unfreeze"), "run", "study=resnet_cls", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "name: resnet_cls" in done.stdout
