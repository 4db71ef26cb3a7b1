"""What a user can get wrong, by the command line: exit code 2, one message that names it, nothing left behind."""

import os
import pickle
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from lab import SMALL
from PIL import Image
from safetensors.torch import save_file


class Shell:
    """A pickle that runs a command where it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def draw(root: Path, *names: str) -> Path:
    """Small images, each of one colour, at these paths."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (20 * k % 256, 90, 10 * k % 256)).save(root / name)
    return root


PETS = [f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(8)]


@pytest.fixture
def refused(lab, capsys):
    """Run the lab's study, which must be refused; returns the message."""

    def run(*overrides: str) -> str:
        capsys.readouterr()
        assert lab.run(*overrides) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert said.err.count("error: ") == 1
        assert "Traceback" not in said.err + said.out
        return said.err.removeprefix("error: ").rstrip("\n")

    return run


def leftovers(lab) -> list[str]:
    """Whatever a study wrote to either store or to the artifacts; decoded images belong to no study."""
    cache = lab.folder / "mlruns" / "cache"
    # An open database has its log beside it.
    databases = (".db", ".db-wal", ".db-shm")
    files = [p for p in cache.parent.rglob("*") if p != cache and cache not in p.parents]
    found = [p.name for p in files if p.suffix not in databases]
    found += [run.info.run_id for run in lab.all_runs()]
    found += [e.name for e in lab.client.search_experiments() if e.name != "Default"]
    if (lab.folder / "mlruns" / "optuna.db").exists():
        found += optuna.get_all_study_names(lab.optuna_url)
    return found


def test_a_missing_data_folder(lab, refused, tmp_path):
    assert refused(f"data.root={tmp_path}/none") == f"data.root={tmp_path}/none does not exist"
    assert leftovers(lab) == []


def test_an_empty_class(lab, refused, tmp_path):
    draw(tmp_path, *PETS)
    (tmp_path / "horse").mkdir()
    assert refused(f"data.root={tmp_path}") == (
        f"class folder {tmp_path}/horse has no images; data.on_small_class=skip leaves out such classes"
    )
    assert leftovers(lab) == []


def test_one_class_only(lab, refused, tmp_path):
    draw(tmp_path, *PETS[:8])
    assert refused(f"data.root={tmp_path}") == "one class only ('cat'); classification needs at least two"
    assert leftovers(lab) == []


def test_what_compile_cannot_be_is_refused_before_anything_is_opened(lab, refused):
    assert refused("compile=reduce-overhead", "device=cpu") == (
        "compile: 'reduce-overhead' records CUDA graphs, and the device is cpu; choose default or off"
    )
    assert refused("compile=defualt").startswith("compile: 'defualt' is not one of off, default, reduce-overhead")
    assert leftovers(lab) == []


def test_a_corrupt_image_is_refused_by_name_and_count_or_left_out(lab, refused, tmp_path, capsys):
    draw(tmp_path, *PETS)
    (tmp_path / "cat" / "3.png").write_bytes((tmp_path / "cat" / "3.png").read_bytes()[:40])
    limits = ["data.limit_train=null", "data.limit_val=null", "data.limit_test=null"]
    message = refused(f"data.root={tmp_path}", *limits)
    assert message.startswith("1 of 16 images cannot be read; data.on_bad_image=skip leaves them out\n")
    assert f"{tmp_path}/cat/3.png: " in message
    assert leftovers(lab) == []
    skipping = [f"data.root={tmp_path}", *limits, "data.on_bad_image=skip", "strategy.batch_size=4", "budget.trials=1"]
    lab.train(*skipping)
    assert "1 bad images left out" in capsys.readouterr().out


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def half_a_jpeg(path: Path) -> None:
    Image.radial_gradient("L").save(path, "JPEG")
    os.truncate(path, path.stat().st_size // 2)


UNREADABLE = {
    "half.jpg": (half_a_jpeg, "damaged image: image file is truncated"),
    "zero.png": (Path.touch, "empty file (0 bytes)"),
    "bomb.png": (bomb, "refused as a possible decompression bomb"),
    "text.jpg": (lambda path: path.write_text("hello"), "not an image in a known format"),
    "loop": (lambda path: path.symlink_to(".."), "a folder, or a link that leads back to one"),
    "itself.png": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "gone.png": (lambda path: path.symlink_to("nowhere.png"), "No such file or directory"),
}


def test_every_kind_of_bad_image_is_named_in_one_message_and_none_ends_a_study_that_leaves_them_out(
    lab, refused, tmp_path, capsys
):
    root = draw(
        tmp_path / "Tiere 動物", *(f"{kind}/ünï 写真 {k}.png" for kind in ("Kätzchen", "犬") for k in range(20))
    )
    for name, (make, _) in UNREADABLE.items():
        make(root / "犬" / name)
    overrides = [f"data.root='{root}'", *(f"data.limit_{split}=null" for split in ("train", "val", "test"))]
    first, *lines = refused(*overrides).splitlines()
    assert first == "7 of 47 images cannot be read; data.on_bad_image=skip leaves them out"
    for name, (_, reason) in UNREADABLE.items():
        (line,) = [line for line in lines if line.startswith(f"  {root}/犬/{name}: ")]
        assert reason in line
    assert leftovers(lab) == []
    lab.train(*overrides, "data.on_bad_image=skip", "strategy.batch_size=4", "budget.trials=1")
    assert "7 bad images left out" in capsys.readouterr().out
    assert lab.outcomes() == ["complete"]


def test_a_missing_manifest(lab, refused, tmp_path):
    assert str(tmp_path / "labels.csv") in refused(f"data.manifest={tmp_path}/labels.csv")
    assert leftovers(lab) == []


def test_an_unknown_model(lab, refused):
    assert refused("model.name=resnt18") == "model.name: timm has no model 'resnt18'; did you mean 'resnet18'?"
    assert leftovers(lab) == []


def test_an_unknown_optimizer(lab, refused):
    message = refused("+strategy.optimizer={choices: [adamw, adamm]}")
    assert message.startswith("strategy.optimizer: 'adamm' is no optimizer of timm; did you mean 'adam")
    assert leftovers(lab) == []


def test_a_missing_weights_file(lab, refused, tmp_path):
    message = refused(f"model.weights={tmp_path}/w.safetensors")
    assert message == f"model.weights: none available for test_resnet: {tmp_path}/w.safetensors: no such file"
    assert leftovers(lab) == []


def test_a_pickle_with_code_is_refused_and_its_code_not_run(lab, refused, tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Shell(f"touch {tmp_path}/harm")}))
    message = refused(f"model.weights={tmp_path}/w.pth")
    assert message.startswith(f"model.weights: {tmp_path}/w.pth: ")
    torch.save({"state_dict": Shell(f"touch {tmp_path}/harm")}, tmp_path / "v.pth")
    message = refused(f"model.weights={tmp_path}/v.pth")
    assert f"{tmp_path}/v.pth: refused, it is a pickle that holds code" in message
    assert ".safetensors" in message
    assert not (tmp_path / "harm").exists()
    assert leftovers(lab) == []


def test_weights_of_another_model(lab, refused, tmp_path):
    save_file({"blocks.0.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    message = refused(f"model.weights={tmp_path}/w.safetensors")
    assert message.startswith(f"model.weights: file:{tmp_path}/w.safetensors does not fit test_resnet: ")
    assert leftovers(lab) == []


def test_weights_of_a_registry_that_has_none(lab, refused):
    message = refused("model.weights=models:/pets@champion")
    assert message.startswith("model.weights: none available for test_resnet: models:/pets@champion: ")
    assert "pets" in message.rpartition("@champion: ")[2]
    assert leftovers(lab) == []
    lab.train("model.weights=[models:/pets@champion, none]", "budget.trials=1")
    assert lab.parent().data.tags["unfreeze.weights"] == "none"


def test_more_blocks_than_the_model_has(lab, refused):
    message = refused("strategy.depth={low: 0, high: 99}")
    assert message == "strategy.depth.high: 99 blocks asked for, the model has 5"
    assert leftovers(lab) == []


def test_an_image_size_the_model_cannot_take(lab, refused):
    message = refused("model.name=test_vit", "data.image_size=40")
    assert message.startswith("data.image_size: test_vit cannot take images of 40 px with 3 channels: ")
    assert leftovers(lab) == []


def test_a_device_that_is_not_there(lab, refused):
    device = "cuda:99" if torch.cuda.is_available() else "cuda"
    assert refused(f"device={device}").startswith(f"device: {device!r} cannot be used: ")
    assert leftovers(lab) == []


@pytest.fixture(scope="module")
def tried(new_lab, tmp_path_factory):
    """A study with one trial, on images of a folder."""
    root = draw(tmp_path_factory.mktemp("pets"), *PETS)
    space = SMALL["strategy"] | {"batch_size": 4, "loss": {"choices": ["cross_entropy", "focal"]}}
    lab = new_lab(data={"root": str(root), "image_size": 32}, strategy=space)
    lab.train("budget.trials=1")
    return lab


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.name=test_resnet.r160_in1k"], "model.name: test_resnet -> test_resnet.r160_in1k"),
        (["metric=macro_f1"], "metric: accuracy -> macro_f1"),
        (["metric=loss"], "it was searched to maximize its metric"),
        (["data.image_size=24"], "data.image_size: 32 -> 24"),
        (["data.split_seed=1"], "data (fingerprint): "),
        (["data.limit_train=5"], "data (fingerprint): "),
        (["strategy.loss={choices: [cross_entropy, bce]}"], "strategy.loss: study 'lab' has trials that drew it from"),
    ],
)
def test_a_study_whose_scores_would_not_be_comparable(tried, capsys, overrides, expected):
    before = tried.trials(), [(run.info.run_id, run.info.status) for run in tried.all_runs()]
    capsys.readouterr()
    assert tried.run("budget.trials=2", *overrides) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert expected in said
    assert "name=lab-2" in said
    assert (tried.trials(), [(run.info.run_id, run.info.status) for run in tried.all_runs()]) == before


def test_images_changed_in_place_are_noticed(tried, capsys, tmp_path):
    root = shutil.copytree(tried.config().data.root, tmp_path / "copy")
    tried.train("budget.trials=1", f"data.root={root}")
    Image.new("RGB", (12, 12), "red").save(root / "cat" / "0.png")
    assert tried.run("budget.trials=1", f"data.root={root}") == 2
    assert "data (fingerprint): " in capsys.readouterr().err


def not_a_database(folder: Path) -> Path:
    (folder / "notes.db").write_text("no database, but text that is long enough to be read as a header\n" * 40)
    return folder / "notes.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////proc/none/optuna.db",
        "sqlite:///{folder}",
        "sqlite:///{notes}",
        "oracle://x/y",
        "nosuch+driver://x/y",
    ],
)
def test_a_store_that_cannot_be_opened(lab, refused, tmp_path, url):
    url = url.format(folder=tmp_path, notes=not_a_database(tmp_path))
    assert refused(f"store.url={url}").startswith(f"store.url: {url!r} cannot be opened: ")
    assert leftovers(lab) == []


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////proc/none/mlflow.db",
        "sqlite:///{folder}",
        "sqlite:///{notes}",
        "nosuch://x/y",
        "postgresql://127.0.0.1:1/x",
    ],
)
def test_a_tracking_store_that_cannot_be_opened(lab, refused, tmp_path, uri):
    uri = uri.format(folder=tmp_path, notes=not_a_database(tmp_path))
    assert refused(f"tracking.uri={uri}").startswith(f"tracking.uri: {uri!r} cannot be used: ")
    assert leftovers(lab) == []


@pytest.mark.slow
def test_an_mlflow_server_that_does_not_answer_is_given_up_on_in_seconds(lab, refused):
    uri = "http://127.0.0.1:9"
    assert refused(f"tracking.uri={uri}").startswith(f"tracking.uri: {uri!r} cannot be used: ")
    assert leftovers(lab) == []


def test_a_store_of_another_program_is_refused(lab, refused, tmp_path):
    with sqlite3.connect(tmp_path / "theirs.db") as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('of-theirs')")
    database.close()
    assert refused(f"tracking.uri=sqlite:///{tmp_path}/theirs.db").startswith("tracking.uri: ")
    assert leftovers(lab) == []


# As with HF_HUB_OFFLINE and HF_HOME, which the hub's library reads when it is imported.
OFFLINE = """
import sys
from huggingface_hub import constants
constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = True, sys.argv.pop(1)
from search.run import main
sys.exit(main())
"""


@pytest.mark.slow
def test_a_hub_out_of_reach_says_which_file_to_pass_and_the_process_ends_with_2(lab, tmp_path):
    settings = yaml.safe_load(lab.file.read_text())
    lab.file.write_text(yaml.safe_dump(settings | {"model": {"name": "test_resnet", "weights": "hub"}}))
    process = lab.start_code(OFFLINE, str(tmp_path), f"study={lab.file}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.startswith("error: model.weights: none available for test_resnet: hub: could not reach the hub")
    assert "pass model.weights=/path/to/model.safetensors" in err
    assert err.count("\n") == 1
    assert out == ""
    assert leftovers(lab) == []


def test_a_refused_start_leaves_decoded_images_only_where_decoding_took_long(lab, tmp_path, capsys, monkeypatch):
    draw(tmp_path, *PETS)
    (tmp_path / "cat" / "3.png").write_bytes(b"no image")
    words = [f"data.root={tmp_path}", *(f"data.limit_{split}=null" for split in ("train", "val", "test"))]
    assert lab.run(*words) == 2
    assert "1 of 16 images cannot be read" in capsys.readouterr().err
    assert not (lab.folder / "mlruns" / "cache").exists()
    monkeypatch.setattr("search.study.opening._KEPT_FROM", 0.0)
    for stays in (True, False):
        assert lab.run(*words) == 2
        # Lines may be broken where the terminal is narrow.
        said = "".join(capsys.readouterr().out.split())
        assert ("Imagesthatweredecodedstayin" in said) == stays
    decoded = {path for path in (lab.folder / "mlruns" / "cache" / "images").rglob("*") if path.is_file()}
    # Those of another image set stay.
    monkeypatch.setattr("search.study.opening._KEPT_FROM", 60.0)
    assert lab.run(*words, "data.image_size=48") == 2
    assert {path for path in (lab.folder / "mlruns" / "cache" / "images").rglob("*") if path.is_file()} == decoded
