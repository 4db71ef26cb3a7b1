"""A logged model for other programs: ``python -m search.export MODEL --out model.onnx``."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.command_line import exit_code
from search.winner import load
from strategies import ConfigError, TrialError, check_installed, first_line

_USAGE = """\
MODEL is what a search prints (models:/m-...), a champion (models:/NAME@champion) or another version (models:/NAME/3).
What --out ends in says what is written:
  .onnx    for ONNX Runtime and others (pip install 'unfreeze[onnx]')
  .pt2     a torch.export program, which torch alone can run
  a folder a timm model: timm.create_model('local-dir:FOLDER') loads it, and --push uploads it to the Hugging Face hub

A file takes images (N, C, S, S) as floats between 0 and 1, any number of them, and gives probabilities, numbers, or a
score for each class and pixel; what its inputs and outputs mean stands in a JSON file beside it. What was written is
run and compared with the model before it counts."""

_STORE = "sqlite:///mlruns/mlflow.db"
# What a program may be off the model, by rounding.
_TOLERANCE = 1e-4
_CHECKED = 8
# What the extra "onnx" installs.
_ONNX = ("onnx", "onnxruntime", "onnxscript")


def deployed(served: Any) -> Any:
    """A module of all that a served model does to an image after it was decoded.

    Args:
        served: As MLflow loads it.

    Raises:
        ConfigError: Its answers are no tensors.
    """
    import torch
    from torch import Tensor, nn

    from strategies import resize, tta_views

    if served.task.name == "detection":
        raise ConfigError("a detector's boxes are chosen by code, not by its tensors; serve it with MLflow")

    class Deployed(nn.Module):
        """Normalises, asks the model, and makes probabilities or numbers of what it says."""

        mean: Tensor
        std: Tensor
        target_mean: Tensor
        target_std: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = served.model.to("cpu").eval()
            self.register_buffer("mean", served.mean.cpu())
            self.register_buffer("std", served.std.cpu())
            scale = served.scale
            self.register_buffer("target_mean", torch.zeros(1) if scale is None else scale.mean)
            self.register_buffer("target_std", torch.ones(1) if scale is None else scale.std)

        def forward(self, images: Tensor) -> Tensor:
            """Answers for images (N, C, S, S) between 0 and 1."""
            shown = (resize(images, served.shown_size) - self.mean) / self.std
            views = [self.model(view) for view in tta_views(shown, served.tta)]
            outputs = torch.stack(views).mean(0) if len(views) > 1 else views[0]
            if served.task.name == "regression":
                return outputs * self.target_std + self.target_mean
            outputs = outputs if served.temperature is None else outputs / served.temperature
            if served.task.name == "classification":
                return outputs.softmax(1)
            return outputs.sigmoid() if served.task.name == "multilabel" else outputs

    return Deployed().eval()


def write_onnx(module: Any, example: Any, path: Path) -> Callable[[Any], Any]:
    """Write an ONNX file, and return what runs it."""
    import onnxruntime
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        module,
        (example,),
        str(path),
        input_names=["images"],
        output_names=["answers"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_program(module: Any, example: Any, path: Path) -> Callable[[Any], Any]:
    """Write a torch.export program, and return what runs it."""
    import torch

    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}}), str(path))
    return torch.export.load(str(path)).module()


_WRITERS: Mapping[str, Callable[[Any, Any, Path], Callable[[Any], Any]]] = {
    ".onnx": write_onnx,
    ".pt2": write_program,
}


def export_file(served: Any, path: Path) -> float:
    """Write a program, run it, and return how far it is off the model at most.

    Raises:
        ConfigError: The model cannot be written so.
        TrialError: What was written says something else than the model; it is removed.
    """
    import torch

    module, how = deployed(served), served.preprocessing
    images = torch.rand(
        _CHECKED, how.in_chans, how.image_size, how.image_size, generator=torch.Generator().manual_seed(0)
    )
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        with torch.inference_mode():
            expected = module(images)
        with torch.no_grad():
            run = _WRITERS[path.suffix](module, images[:2], part)
            # Another number of images than the one it was made of.
            found = run(images)
        off = float((found - expected).abs().max())
        if not off <= _TOLERANCE or not found.argmax(1).equal(expected.argmax(1)):
            raise TrialError(f"{path}: what was written is off the model by {off:.2g}; nothing is kept")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    _write_card(served, path.with_name(f"{path.name}.json"))
    return off


def _write_card(served: Any, path: Path) -> None:
    outputs = {
        "classification": "probability of each class",
        "multilabel": "probability of each class by itself",
        "regression": "the numbers, in their own units",
        "segmentation": "a score for each class and pixel; the highest is the class",
    }
    card = {
        "task": served.task.name,
        "classes": served.classes,
        "images": {"size": served.preprocessing.image_size, "channels": served.preprocessing.in_chans}
        | {"values": "0 to 1", "fit": served.preprocessing.fit},
        "outputs": outputs[served.task.name],
        "model": served.card["model"],
        "strategy": served.card["strategy"],
    }
    path.write_text(json.dumps(card, indent=1), encoding="utf-8")


def export_timm(served: Any, folder: Path) -> float:
    """Write a folder that timm loads, load it, and return how far it is off the model.

    Raises:
        ConfigError: It is no classifier of timm's, or the folder cannot be written.
        TrialError: What was written says something else than the model.
    """
    import timm
    import torch
    from timm.models import save_for_hf

    if served.task.dense is not None:
        raise ConfigError(f"--out: timm knows no model for {served.task.name}; choose .onnx or .pt2")
    how, card = served.preprocessing, served.card
    config = {
        "num_classes": len(served.classes),
        "label_names": served.classes,
        "input_size": [how.in_chans, how.image_size, how.image_size],
        "fixed_input_size": True,
        "mean": card["mean"],
        "std": card["std"],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_for_hf(served.model.cpu(), str(folder), model_config=config, model_args=_arguments(served))
        (folder / "README.md").write_text(model_card(served), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, how.in_chans, served.shown_size, served.shown_size)
    with torch.inference_mode():
        off = float((loaded(images) - served.model.cpu().eval()(images)).abs().max())
    if not off <= _TOLERANCE:
        raise TrialError(f"{folder}: what was written is off the model by {off:.2g}")
    return off


def _arguments(served: Any) -> dict[str, Any]:
    """What timm has to be told besides to make the model."""
    import timm

    how = served.preprocessing
    found: dict[str, Any] = {"in_chans": how.in_chans}
    # A model of patches is made for one size of images.
    if getattr(timm.create_model(served.card["model"]), "patch_embed", None) is not None:
        found["img_size"] = how.image_size
    return found


def model_card(served: Any) -> str:
    """A card for the hub, as Markdown with the head that it reads."""
    card, strategy = served.card, served.card["strategy"]
    classes = ", ".join(served.classes[:50]) + (", ..." if len(served.classes) > 50 else "")
    trained = "\n".join(f"- {name}: {value}" for name, value in strategy.items() if value not in (None, "none", 0, 0.0))
    return f"""---
library_name: timm
tags: [image-classification, timm, unfreeze]
---
# {card["model"]}, fine-tuned

{served.task.name.capitalize()} of {len(served.classes)} classes: {classes}.

Images are {served.preprocessing.image_size} pixels wide and high. It started from {card["weights"]}; how it was
fine-tuned was searched for with Unfreeze:

{trained}
"""


def push(folder: Path, repository: str) -> str:
    """Upload a folder to the Hugging Face hub, and return where it is.

    Raises:
        ConfigError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=str(folder)))
    except Exception as error:  # its own, those of its HTTP library and those of the socket
        raise ConfigError(f"--push: {repository} cannot be written on the hub: {first_line(error)}") from error


def _check(out: Path, repository: str | None) -> None:
    """Refuse what cannot be written, whatever the model.

    Raises:
        ConfigError: It cannot.
    """
    if out.suffix in _WRITERS:
        if repository is not None:
            raise ConfigError("--push: the hub takes a timm folder; let --out name one")
        if not out.parent.is_dir():
            raise ConfigError(f"--out: {out} cannot be written: there is no folder {out.parent}")
    elif out.suffix:
        raise ConfigError(f"--out: {out} ends in none of {', '.join(_WRITERS)}, and a folder's name has no dot")
    if out.suffix == ".onnx":
        check_installed("--out: .onnx", "onnx", *_ONNX)


def export(model: str, out: Path, tracking_uri: str, repository: str | None) -> int:
    """Write a logged model for other programs.

    Raises:
        ConfigError: There is no such model, or it cannot be written so.
        TrialError: What was written does not do what the model does.
    """
    _check(out, repository)
    served = load(model, tracking_uri).unwrap_python_model()
    off = export_file(served, out) if out.suffix in _WRITERS else export_timm(served, out)
    print(f"{out}: {'exactly' if off == 0 else f'to {off:.1e}'} what the model says")
    if repository is not None:
        print(push(out, repository))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.export",
        description="Write a logged model for other programs.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a model's address in MLflow")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="file.onnx, file.pt2, or a folder")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the Hugging Face hub")
    parser.add_argument("--tracking-uri", default=_STORE, metavar="URI", help=f"MLflow's store, {_STORE} by default")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(lambda: export(options.model, options.out, options.tracking_uri, options.push), "nothing is kept")


if __name__ == "__main__":
    sys.exit(main())
