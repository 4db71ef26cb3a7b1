"""What is imported is declared, and what one feature alone needs is asked for by name where it is missing."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from search import compose_study
from search.config import list_spaces, list_studies
from search.config.extras import check_extras
from search.run import main
from search.winner.logged_model import _requirements
from strategies import ConfigError
from trainers.decoders import SEGMENTERS, SMP_SEGMENTERS, Segmenter

ROOT = Path(__file__).parent.parent
OURS = ("search", "strategies", "trainers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = packages_distributions()
# By the names they are imported by.
OPTIONAL = ("faster_coco_eval", "peft", "pycocotools", "segmentation_models_pytorch")


OWN = {"benchmarks", "studies", "tests", *OURS}
# Tests import modules beside them by their bare names.
OWN |= {path.stem for path in (ROOT / "tests").rglob("*.py")}


def names_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


EXTRAS = PROJECT["optional-dependencies"]
ALWAYS = names_of(PROJECT["dependencies"])
IN_EXTRAS = names_of([one for extra in EXTRAS.values() for one in extra])
OF_FEATURES = names_of([one for name, extra in EXTRAS.items() if name != "dev" for one in extra])


def imported(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def foreign(file: Path, at_import_only: bool = False) -> set[str]:
    """Third-party packages that a file imports; none of a script that declares its own environment (PEP 723)."""
    text = file.read_text(encoding="utf-8")
    if text.startswith("# /// script\n"):
        return set()
    tree = ast.parse(text)
    return set(imported(list(tree.body if at_import_only else ast.walk(tree)))) - OWN - sys.stdlib_module_names


def distributions_of(package: str) -> set[str]:
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(package, [package])}


@pytest.mark.parametrize("folder", ["benchmarks", "docs", *OURS, "tests"])
def test_every_package_that_is_imported_is_declared(folder):
    declared = ALWAYS | (OF_FEATURES if folder in OURS else IN_EXTRAS)
    undeclared = {
        f"{package} in {file.relative_to(ROOT)}"
        for file in (ROOT / folder).rglob("*.py")
        for package in foreign(file)
        if not distributions_of(package) & declared
    }
    assert not undeclared


def test_only_the_module_of_lora_imports_an_extra_when_it_is_imported():
    found = {
        (file.relative_to(ROOT).as_posix(), package)
        for folder in OURS
        for file in (ROOT / folder).rglob("*.py")
        for package in foreign(file, at_import_only=True)
        if not distributions_of(package) & ALWAYS
    }
    assert found == {("strategies/model/lora.py", "peft")}


@pytest.fixture
def without(monkeypatch):
    """Makes packages look as if they were not installed."""

    def forget(*packages: str) -> None:
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    return forget


@pytest.mark.parametrize(
    ("words", "missing", "message"),
    [
        (
            ["study=unet_seg"],
            OPTIONAL,
            "task: segmentation takes segmentation_models_pytorch, pycocotools; pip install -e '.[dense]'",
        ),
        (
            ["study=frcnn_det"],
            OPTIONAL,
            "task: detection takes faster_coco_eval; pip install -e '.[dense]'",
        ),
        (
            ["study=resnet_cls", "strategy=full"],
            ["peft"],
            "strategy.parameters: lora takes peft; pip install -e '.[lora]'",
        ),
        (
            ["study=resnet_cls", "+strategy.parameters=lora"],
            ["peft"],
            "strategy.parameters: lora takes peft; pip install -e '.[lora]'",
        ),
        (
            ["study=resnet_cls", "model.name=transformers:vit"],
            ["transformers"],
            "model.name: transformers: takes transformers; pip install -e '.[transformers]'",
        ),
    ],
)
def test_a_study_without_its_extra_is_refused_before_anything_is_opened(
    words, missing, message, without, tmp_path, monkeypatch, capsys
):
    without(*missing)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_studies_that_come_with_unfreeze_need_no_extra_but_the_dense_ones(without):
    without(*OPTIONAL)
    refused = set()
    for name in list_studies():
        try:
            check_extras(compose_study([f"study={name}"]))
        except ConfigError:
            refused.add(name)
    assert refused == {"unet_seg", "frcnn_det"}
    assert "full" in list_spaces()


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_a_decoder_says_which_extra_it_wants(kind, without):
    without("segmentation_models_pytorch")
    if kind not in SMP_SEGMENTERS:
        Segmenter(kind, (8, 16, 32, 64), (4, 8, 16, 32), 3, 64)
        return
    with pytest.raises(
        ConfigError,
        match=rf"model\.decoder: {kind} takes segmentation_models_pytorch; pip install -e '\.\[dense\]'",
    ):
        Segmenter(kind, (8, 16, 32, 64), (4, 8, 16, 32), 3, 64)


@pytest.mark.parametrize("decoder", [None, "faster_rcnn", *SEGMENTERS])
def test_a_logged_model_asks_for_the_packages_of_its_decoder_alone(decoder):
    asked = {re.split("==", line)[0] for line in _requirements(decoder)}
    assert ("segmentation_models_pytorch" in asked) == (decoder in SMP_SEGMENTERS)
    assert not asked & {"faster_coco_eval", "peft", "pycocotools"}


CLASSIFIES = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop().split(",")))
from importlib import metadata
version = metadata.version

def found(name):
    if name == "segmentation_models_pytorch":
        raise metadata.PackageNotFoundError(name)
    return version(name)

metadata.version = found
from search.run import main
sys.exit(main())
"""


@pytest.mark.slow
def test_a_classifier_is_searched_and_logged_without_any_extra(tmp_path):
    words = ["study=resnet_cls", "model.name=test_resnet", "model.weights=none", "data.limit_train=64", "device=cpu"]
    words += ["strategy.epochs=1", "strategy.warmup_epochs=0", "presets={}", "probe_sweep=0", "budget.trials=1"]
    command = [sys.executable, "-c", CLASSIFIES, *words, ",".join(OPTIONAL)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Model:" in done.stdout


def test_constraints_pin_what_is_asked_for_within_its_bounds():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    # Fastai is for one benchmark, and the gate's environment lacks it; freezing leaves setuptools out.
    asked = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    unmet = {
        one
        for one in map(Requirement, asked)
        if one.name not in ("fastai", "setuptools", "unfreeze")
        and not one.specifier.contains(versions.get(canonicalize_name(one.name), "0"), prereleases=True)
    }
    assert not unmet
