"""Every command and every row of a table that README and docs show is taken from their text and composed.

``tests/search/test_documented_commands.py`` runs them.
"""

import importlib
import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from documented import ROOT, TABLES, asked_for, commands, completed, filled, rows_of
from PIL import Image

from search import compose_study
from search.commands import main
from search.config import compose_jobs
from trainers import open_data


@pytest.mark.parametrize("heading", TABLES)
def test_every_row_of_the_readmes_tables_is_a_command(heading, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("seed: 1\n")
    rows = rows_of(ROOT / "README.md", heading)
    tried = 0
    for _, how in rows:
        for words in asked_for(how):
            jobs = compose_jobs([filled(w) for w in completed(words, own) if w != "--multirun"], "--multirun" in words)
            assert all(job.space() for job in jobs), words
            tried += 1
    assert tried >= len(rows)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """A folder with each kind of data that the README names, by its name there."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    pictures = {}
    (folder / "images").mkdir()
    for k in range(24):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.save(folder / "images" / f"{k}.png")
        buffer = io.BytesIO()
        image.save(buffer, "png")
        pictures[k] = buffer.getvalue()
    rows = ["path,label,diagnosis,patient"]
    rows += [f"images/{k}.png,{k % 2},{k % 3},{k // 2}" for k in range(24)]
    (folder / "labels.csv").write_text("\n".join(rows))
    coco = {
        "images": [{"id": k, "file_name": f"{k}.png"} for k in range(24)],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": [{"id": k, "image_id": k, "category_id": k % 2} for k in range(24)],
    }
    (folder / "instances.json").write_text(json.dumps(coco))
    (folder / "shards").mkdir()
    for shard in range(13):
        with tarfile.open(folder / "shards" / f"train-{shard:03d}.tar", "w") as archive:
            for k in range(2):
                for name, content in ((f"{k}.png", pictures[k]), (f"{k}.cls", str(k).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    import datasets

    labels = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    columns = {"image": [{"bytes": pictures[k], "path": None} for k in range(24)], "label": [k % 2 for k in range(24)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "saved" / "set")
    return folder


# Those of the first table that need no download, and no file that only its own maker writes.
OPENED = {
    "data.manifest=labels.csv": "manifest",
    "data.columns.label=diagnosis": "manifest",
    "data.annotations=instances.json": "coco",
    "data.dataset=/saved/set": "huggingface",
    "data.shards='shards/train-{000..012}.tar'": "webdataset",
    "task=multilabel": "manifest",
    "task=regression": "manifest",
    "data.columns.group=patient": "manifest",
    "model.in_chans=1": "digits",
}


def test_the_data_of_the_readmes_rows_are_opened(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(sets)
    opened = {}
    for _, how in rows_of(ROOT / "README.md", "your data"):
        for words in asked_for(how):
            if words[0] not in OPENED:
                continue
            placed = [re.sub(r"=/(images|saved/set)", rf"={sets}/\1", word) for word in completed(words, tmp_path)]
            config = compose_study([*placed, f"data.cache={tmp_path}", "data.limit_train=16"])
            data = open_data(
                task=config.task, in_chans=config.model.in_chans, **config.data.model_dump() | {"image_size": 8}
            )
            assert len(data.classes) >= 1
            opened[words[0]] = config.data.source
    assert opened == OPENED


def test_every_command_of_the_pages_is_composed_and_has_the_options_that_it_is_given(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = dict.fromkeys(command for _, command in commands())
    assert len(found) > 30
    helps: dict[str, str] = {}
    for command in found:
        module, *words = shlex.split(filled(command))
        if module in ("search.config.reference", "search.rank", "search.worker"):
            continue  # take no words
        if module == "search.completion":
            assert main(["completion", *words]) == 0
            continue  # has no module of its own
        if module not in helps:
            with pytest.raises(SystemExit) as ended:
                raise SystemExit(importlib.import_module(module).main(["--help"]))
            assert not ended.value.code, module
            helps[module] = capsys.readouterr().out
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        assert all(re.search(rf"(^|[\s,]){re.escape(option)}\b", helps[module]) for option in options), command
        overrides = [word for word in words if "=" in word and not word.startswith("-")]
        is_search = module in ("search.run", "search.nightly") and "study=NAME" not in overrides
        if is_search and any(word.startswith("study=") for word in overrides):
            compose_jobs(overrides, module == "search.nightly" or "--multirun" in options)


def test_the_benchmarks_of_the_pages_have_the_options_that_they_are_given():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/*.md")]
    lines = [line for page in pages for line in page.read_text().splitlines()]
    asked = [found for line in lines for found in re.findall(r"python -m benchmarks\.(\w+)([^`]*)", line)]
    assert len(asked) > 30
    for module, words in asked:
        source = (ROOT / "benchmarks" / f"{module}.py").read_text()
        for option in re.findall(r"(?<!\S)--[a-z-]+", words):
            assert f'"{option}"' in source, (module, option)
