"""The one command beside the hand-made studies, on folders of images, in the same wall time.

Sets: scikit-learn's digits as a folder a class, 2,800 images of Fashion-MNIST as a folder a class, and composed scenes
with masks and with boxes. Every search begins with empty stores and an empty cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from benchmarks.machine import machine, write_json
from trainers.data.sources.idx import read_part
from trainers.data.sources.scenes import make_scenes

CLOTHES, SCENES = 2_800, 600


def main() -> None:
    options = _parser().parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        for name in options.sets:
            root = Path(home) / name
            SETS[name][0](root)
            for way, words in {"auto": ["study=auto"], SETS[name][1]: _by_hand(name, root)}.items():
                rows.append({"set": name, "way": way, **searched([*words, f"data.root={root}"], root, way, options)})
                print(json.dumps(rows[-1]), flush=True)
    _show(rows, options.minutes)
    write_json({"minutes": options.minutes, "rows": rows, "machine": machine()}, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every search")
    return parser


def searched(words: list[str], root: Path, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Search by the command, and return its wall time, its trials and its test score."""
    folder = root.with_name(f"{root.name}-{way}")
    folder.mkdir()
    store = f"sqlite:///{folder}/optuna.db"
    places = [f"store.url={store}", f"tracking.uri=sqlite:///{folder}/mlflow.db", f"data.cache={folder}/cache"]
    command = [sys.executable, "-m", "search.run", *_of_one_root(words), *places, "name=set"]
    command += [f"tracking.artifacts={folder}/artifacts", f"budget.minutes={options.minutes:g}", "budget.trials=null"]
    began = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        subprocess.run([*command, *options.overrides], check=True, stdout=log, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - began
    study = optuna.load_study(study_name="set", storage=store)
    winner = study.user_attrs["winner"]
    return {
        "seconds": round(seconds, 1),
        "trials": sum(trial.state.name == "COMPLETE" for trial in study.trials),
        **{key: winner[key] for key in ("metric", "test_score", "test_low", "test_high")},
    }


def _of_one_root(words: list[str]) -> list[str]:
    """The words without a second root: a hand-made study of masks names the folder of the images itself."""
    first = next(word for word in words if word.startswith("data.root="))
    return [word for word in words if not word.startswith("data.root=") or word is first]


def _digits(root: Path) -> None:
    digits = load_digits()
    for k, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        _save(np.rint(pixels * (255 / 16)).astype(np.uint8), root / str(label) / f"{k}.png")


def _clothes(root: Path) -> None:
    images, labels = read_part(Path("/usr/share/datasets/fashion-mnist"), "train")
    for k in range(CLOTHES):
        _save(images[k], root / str(labels[k]) / f"{k}.png")


def _masks(root: Path) -> None:
    scenes = make_scenes()
    for k in range(SCENES):
        _save(scenes.images[k], root / "images" / f"{k}.png")
        _save(scenes.masks[k], root / "masks" / f"{k}.png")


def _boxes(root: Path) -> None:
    scenes = make_scenes()
    images, annotations = [], []
    for k in range(SCENES):
        _save(scenes.images[k], root / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "width": 64, "height": 64})
        for left, top, right, bottom, digit in scenes.boxes[k]:
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": len(annotations), "image_id": k, "category_id": digit, "bbox": box})
    categories = [{"id": digit, "name": str(digit)} for digit in range(10)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))


def _save(pixels: np.ndarray[Any, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def _by_hand(name: str, root: Path) -> list[str]:
    """The words of the hand-made study."""
    placed = {
        "masks": [f"data.root={root}/images", f"data.masks={root}/masks"],
        "boxes": [f"data.root={root}/images", f"data.annotations={root}/instances.json", "metric=map"],
    }
    # The study of clothes reads another source; its images and its size are these.
    other = {"clothes": ["data.source=folder", "~data.dataset", "data.limit_train=null", "data.limit_val=null"]}
    return [f"study={SETS[name][1]}", *placed.get(name, []), *other.get(name, [])]


def _show(rows: list[dict[str, Any]], minutes: float) -> None:
    table = Table(title=f"In {minutes:g} minutes", title_justify="left")
    for heading in ("set", "way", "seconds", "trials", "metric", "test score", "95% interval over images"):
        table.add_column(heading)
    for row in rows:
        interval = f"{row['test_low']:.4f} to {row['test_high']:.4f}"
        cells = [row["set"], row["way"], f"{row['seconds']:.1f}", str(row["trials"]), row["metric"]]
        table.add_row(*cells, f"{row['test_score']:.4f}", interval)
    Console().print(table)


SETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "digits": (_digits, "quickstart"),
    "clothes": (_clothes, "fashion_mnist"),
    "masks": (_masks, "unet_seg"),
    "boxes": (_boxes, "frcnn_det"),
}


if __name__ == "__main__":
    main()
