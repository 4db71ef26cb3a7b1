"""The tour of a new user: every kind of data and every command, with images that people have.

Run by hand: ``python tests/tour.py [FOLDER]``. It takes some minutes on two cores and downloads nothing. Its files stay
in the folder, which must be empty; without one a temporary folder is removed at the end. It says what it does, and ends
with an error where an answer is not what a person would expect.
"""

import base64
import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}
SIDE = 120

STUDY = """\
# The tour's study: a model of seconds, and spaces as a user might write them
model: {name: test_resnet, weights: none}
strategy:
  depth: {low: 0.0, high: 1.0}
  lr: {low: 1e-3, high: 1e-2, log: true}
  epochs: 2
  batch_size: 8
probe_sweep: 0
presets: {}
budget: {trials: 1}
pruner: {name: none}
threads: 1
"""


class Tour:
    """A folder that the commands run in.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # PYTHONSAFEPATH is not set: users start Python as it is, in the folder of their images.
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment = {**os.environ, "PYTHONPATH": paths, "MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db"}
        (folder / "tour.yaml").write_text(STUDY)

    def ask(self, command: str, *words: str, code: int = 0) -> str:
        """Run a command of ``search`` and return what it prints; its exit code must be ``code``."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"search.{command}", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        print(f"  {time.monotonic() - began:5.1f} s  search.{command} {' '.join(words)}", flush=True)
        expect(done.returncode == code, f"exit code {done.returncode} instead of {code}", said)
        expect("Traceback" not in said, "a traceback", said)
        return said

    def search(self, name: str, *words: str, code: int = 0) -> str:
        """Search a study under this name."""
        said = self.ask("run", "study=tour.yaml", f"name={name}", *words, code=code)
        if code == 0:
            expect(re.search(r"^Winner: .*test \w+ -?\d", said, re.MULTILINE) is not None, "a winner", said)
        return said


def expect(holds: bool, what: str, said: str) -> None:
    """End the tour where an answer is not as it should be."""
    if not holds:
        raise SystemExit(f"expected {what} in:\n{said}")


def expect_all(said: str, *parts: str) -> None:
    """End the tour where an answer lacks one of these parts."""
    for part in parts:
        expect(part in said, repr(part), said)


def picture(name: str, seed: int, side: int = SIDE) -> Image.Image:
    """A disc of the class's colour on noise."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 90, (side, side + 40, 3), dtype=np.uint8))
    left, top = (int(k) for k in rng.integers(5, side // 2, 2))
    ImageDraw.Draw(image).ellipse((left, top, left + side // 2, top + side // 2), fill=COLOURS[name])
    return image


def messy_photographs(root: Path) -> None:
    """Class folders with photographs of every kind, and some that cannot be used."""
    for c, name in enumerate(COLOURS):
        (root / name / "2024" / "été à la mer").mkdir(parents=True)
        for k in range(14):
            place = root / name / ("2024/été à la mer" if k % 3 == 0 else ".")
            picture(name, 100 * c + k).save(place / f"IMG {k:03} ünï.jpg")
        one = picture(name, 100 * c + 50)
        turned = Image.Exif()
        turned[0x0112] = 6
        one.transpose(Image.Transpose.ROTATE_90).save(root / name / "turned.jpg", exif=turned)
        one.convert("L").save(root / name / "grey.png")
        one.convert("CMYK").save(root / name / "print.jpg")
        one.convert("RGBA").save(root / name / "alpha.png")
        one.save(root / name / "moving.gif", save_all=True, append_images=[one.rotate(90)], duration=100)
        if find_spec("pillow_heif") is not None:
            import pillow_heif

            pillow_heif.register_heif_opener()
            one.save(root / name / "phone.HEIC")
    buffer = io.BytesIO()
    picture("red", 7).save(buffer, "jpeg")
    (root / "red" / "truncated.jpg").write_bytes(buffer.getvalue()[:900])
    (root / "red" / "film.MOV").write_bytes(b"no picture")
    (root / "only one").mkdir()
    picture("blue", 8).save(root / "only one" / "a.png")
    (root / "nothing yet").mkdir()


def folders(tour: Tour) -> None:
    """A messy folder: all its problems at once, then a search with a size that follows from the images."""
    messy_photographs(tour.folder / "photos")
    said = tour.search("photos", "data.root=photos", code=2)
    expect_all(
        said,
        "the data set has ",
        "class folder photos/nothing yet has no images",
        "class 'only one' has 1 image, but 3 are needed",
        "truncated.jpg: damaged image",
        "passed over 1 .MOV file",
        "data.on_small_class=skip",
        "data.on_bad_image=skip",
    )
    expect(not (tour.folder / "mlruns" / "optuna.db").exists(), "no store after a refusal", said)
    # Bash leaves ~ as it is in key=~/folder.
    tour.environment["HOME"] = str(tour.folder)
    skips = ["data.on_small_class=skip", "data.on_bad_image=skip"]
    said = tour.search("photos", "data.root=~/photos", *skips, "budget.trials=2")
    expect_all(said, "Size    data.image_size=96: the weights were trained at 160 px", "of 2 classes at 96 px")
    expect_all(said, "bad image", "Updates ", "Trials: 2 complete")
    said = tour.search("photos", "data.root=photos", *skips, "budget.trials=2")
    expect_all(said, "photos: 2 trials so far")
    expect("Size " not in said, "a study that keeps its size without a word", said)


def stop_and_resume(tour: Tour) -> None:
    """Ctrl-C in the middle, and the same command again."""
    words = ["study=tour.yaml", "name=stopped", "budget.trials=60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "search.run", *words],
        cwd=tour.folder,
        env=tour.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(r"trial +2 +complete", line):
            process.send_signal(signal.SIGINT)
            break
    lines += process.stdout.readlines()
    said = "".join(lines)
    expect(process.wait() == 130, "exit code 130", said)
    expect_all(said, "interrupted; the same command resumes the study")
    done = len(re.findall(r"^trial +\d+ +complete", said, re.MULTILINE))
    said = tour.ask("run", *words[:2], f"budget.trials={done + 1}")
    expect_all(said, f"stopped: {done} trials so far", f"Trials: {done + 1} complete", "Winner: ")


def flat_images(folder: Path, count: int = 24) -> list[tuple[Path, str]]:
    """Images of both classes in one folder."""
    folder.mkdir()
    names = list(COLOURS)
    found = []
    for k in range(count):
        path = folder / f"{k}.png"
        picture(names[k % 2], k, side=64).save(path)
        found.append((path, names[k % 2]))
    return found


def tables(tour: Tour) -> None:
    """CSV files with semicolons: one class, several labels, numbers; and mistakes in them."""
    images = flat_images(tour.folder / "flat")
    with (tour.folder / "labels.csv").open("w", newline="", encoding="utf-8-sig") as lines:
        rows = csv.writer(lines, delimiter=";")
        rows.writerow(["path", "label", "labels", "brightness", "patient"])
        for k, (path, name) in enumerate(images):
            brightness = float(np.asarray(Image.open(path)).mean())
            labels = "|".join(filter(None, [name, "odd" if k % 3 else ""]))
            rows.writerow([f"flat/{path.name}", name, labels, brightness, f"patient {k // 2}"])
    said = tour.search("semicolons", "data.manifest=labels.csv")
    expect_all(said, "of 2 classes at 64 px", "labels.csv: columns are separated by semicolons")
    words = ["data.manifest=labels.csv", "data.columns.label=labels", "task=multilabel"]
    expect_all(tour.search("several", *words), "mean_average_precision")
    words = ["data.manifest=labels.csv", "data.columns.label=brightness", "task=regression"]
    expect_all(tour.search("numbers", *words, "data.columns.group=patient"), "rmse")
    (tour.folder / "elsewhere").mkdir()
    shutil.copy(tour.folder / "labels.csv", tour.folder / "elsewhere" / "labels.csv")
    said = tour.search("lost", "data.manifest=elsewhere/labels.csv", code=2)
    expect_all(said, "24 of 24 images cannot be read", f"in {tour.folder / 'elsewhere'}; data.root names another")
    said = tour.search("twice", "data.shards=a.tar", "data.shards=b.tar", code=2)
    expect_all(said, "data.shards is given 2 times")


def annotations(tour: Tour) -> None:
    """COCO json as several labels, as boxes and as masks; masks in a folder."""
    images = sorted((tour.folder / "flat").glob("*.png"), key=lambda path: int(path.stem))
    shapes = [[10, 10, 30, 20], [20, 15, 25, 30]]
    content = {
        "images": [{"id": k, "file_name": path.name, "width": 104, "height": 64} for k, path in enumerate(images)],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "annotations": [
            {
                "id": k,
                "image_id": k,
                "category_id": 1 + k % 2,
                "bbox": shapes[k % 2],
                "area": shapes[k % 2][2] * shapes[k % 2][3],
                "iscrowd": 0,
                "segmentation": [corners(*shapes[k % 2])],
            }
            for k in range(len(images))
        ],
    }
    (tour.folder / "instances.json").write_text(json.dumps(content))
    where = ["data.annotations=instances.json", "data.root=flat"]
    expect_all(tour.search("coco", *where, "task=multilabel"), "of 2 classes")
    if find_spec("pycocotools") is None or find_spec("faster_coco_eval") is None:
        print("  left out, as the extra dense is not installed: masks and boxes")
        return
    small = ["data.image_size=64", "strategy.epochs=1"]
    said = tour.search("boxes", *where, "task=detection", "model.decoder=fcos", *small)
    expect_all(said, "of 2 classes of boxes")
    (tour.folder / "masks").mkdir()
    for k, path in enumerate(images):
        mask = Image.new("L", (104, 64))
        left, top, width, height = shapes[k % 2]
        ImageDraw.Draw(mask).rectangle((left, top, left + width, top + height), fill=1 + k % 2)
        mask.save(tour.folder / "masks" / path.name)
    said = tour.search("masks", "data.root=flat", "data.masks=masks", "task=segmentation", "model.decoder=fcn", *small)
    expect_all(said, "of 3 classes of pixels")


def corners(left: int, top: int, width: int, height: int) -> list[int]:
    """A box as a polygon."""
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def archives(tour: Tour) -> None:
    """WebDataset shards and a saved Hugging Face set."""
    images = sorted((tour.folder / "flat").glob("*.png"), key=lambda path: int(path.stem))
    for shard in range(3):
        with tarfile.open(tour.folder / f"train-{shard:02}.tar", "w") as archive:
            for k, path in list(enumerate(images))[shard::3]:
                archive.add(path, f"{k:04}.png")
                label = str(k % 2).encode()
                info = tarfile.TarInfo(f"{k:04}.cls")
                info.size = len(label)
                archive.addfile(info, io.BytesIO(label))
    expect_all(tour.search("shards", "data.shards='train-{00..02}.tar'"), "of 2 classes")
    if find_spec("datasets") is None:
        print("  left out, as the extra huggingface is not installed: a Hugging Face set")
        return
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))})
    columns = {"image": list(map(str, images)), "label": [k % 2 for k in range(len(images))]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tour.folder / "saved")
    expect_all(tour.search("hugging", "data.dataset=saved"), "of 2 classes")


def decide(tour: Tour) -> str:
    """Compare, report, promote; returns the champion's address."""
    said = tour.ask("compare", "photos", "semicolons")
    expect_all(said, "test_accuracy", "test_resnet", "the column data tells the sets apart")
    tour.ask("compare", "photos", "--out", "photos.csv")
    with (tour.folder / "photos.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    expect(len(rows) == 2 and all(row["model"] == "test_resnet" for row in rows), "two trials of the model", str(rows))
    tour.ask("report", "photos", "--out", "photos.html")
    page = (tour.folder / "photos.html").read_text()
    expect_all(page, "<html", "photos", "accuracy")
    said = tour.ask("promote", "photos")
    expect_all(said, "photos")
    return "models:/photos@champion"


def use(tour: Tour, champion: str) -> None:
    """Predict, export, serve."""
    said = tour.ask("predict", champion, "photos", "--out", "answers.csv", code=2)
    expect_all(said, "truncated.jpg")
    said = tour.ask("predict", champion, "photos", "--skip-bad", "--out", "answers.csv", code=1)
    expect_all(said, "truncated.jpg")
    with (tour.folder / "answers.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    expect(len(rows) >= 38, "a row an image", str(len(rows)))
    expect({row["label"] for row in rows} <= set(COLOURS), "labels of both classes", str(rows))
    form = "photos.onnx" if find_spec("onnxruntime") and find_spec("onnxscript") else "photos.pt2"
    tour.ask("export", champion, "--out", form)
    expect((tour.folder / form).is_file(), "an exported file", form)
    image = tour.folder / "photos" / "red" / "grey.png"
    with served(tour, champion) as answer:
        content = base64.b64encode(image.read_bytes()).decode()
        label = answer({"inputs": [content]})["predictions"][0]["label"]
        expect(label in COLOURS, "a label over HTTP", str(label))
        try:
            answer({"inputs": ["bm8gcGljdHVyZQ=="]})
        except urllib.error.HTTPError as error:
            expect("not an image" in error.read().decode(), "why the image was refused", "the HTTP body")
        else:
            raise SystemExit("a broken image was answered")
    expect_all(tour.ask("housekeeping", "--days", "30", "--dry-run"), "")


@contextmanager
def served(tour: Tour, model: str) -> Iterator[Callable[[object], dict[str, list[dict[str, str]]]]]:
    """Serve a model over HTTP, and give the function that asks it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["models", "serve", "-m", model, "--env-manager", "local", "--port", port]
    with (tour.folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            cwd=tour.folder,
            env=tour.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answer(question: object) -> dict[str, list[dict[str, str]]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return dict(json.load(response))

    try:
        end = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit((tour.folder / "serve.log").read_text()) from None
                time.sleep(0.5)
        yield answer
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def main() -> None:
    """Take the tour."""
    began = time.monotonic()
    given = [Path(word).resolve() for word in sys.argv[1:]]
    folder = given[0] if given else Path(tempfile.mkdtemp(prefix="unfreeze-tour-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty")
    tour = Tour(folder)
    for stage in (folders, stop_and_resume, tables, annotations, archives):
        print(stage.__doc__, flush=True)
        stage(tour)
    print(decide.__doc__, flush=True)
    champion = decide(tour)
    print(use.__doc__, flush=True)
    use(tour, champion)
    print(f"The tour took {time.monotonic() - began:.0f} s; everything was as it should be")
    if not given:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
