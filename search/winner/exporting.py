"""A logged model written for other programs: ONNX, torch.export, or a folder that timm loads."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from search.winner.model_loading import load
from strategies import ConfigError, TrialError, check_installed, first_line, has_effect

# The largest difference between a program's answers and the model's that rounding explains.
_TOLERANCE = 1e-4
# Random images that a program and the model are compared on.
_CHECKED = 8
# The packages that the extra "onnx" installs.
_ONNX = ("onnx", "onnxruntime", "onnxscript")


def deployed(served: Any) -> Any:
    """A module that does all that a served model does to a decoded image.

    Args:
        served: The model, as MLflow loads it.

    Raises:
        ConfigError: It is a detector, whose answers are no tensors.
    """
    import torch
    from torch import Tensor, nn

    from strategies import resize, tta_views

    if served.task.name == "detection":
        raise ConfigError("a detector's boxes are chosen by code, not by its tensors; serve it with MLflow")

    class Deployed(nn.Module):
        """Normalises images, runs the model, and turns its outputs into probabilities or numbers."""

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
    """Write an ONNX file, and return a function that runs it."""
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
    """Write a torch.export program, and return a function that runs it."""
    import torch

    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}}), str(path))
    return torch.export.load(str(path)).module()


_WRITERS: Mapping[str, Callable[[Any, Any, Path], Callable[[Any], Any]]] = {
    ".onnx": write_onnx,
    ".pt2": write_program,
}


def export_file(served: Any, path: Path) -> float:
    """Write a program and run it.

    Returns:
        The largest difference between its answers and the model's, on random images.

    Raises:
        ConfigError: The file cannot be written, or the model is a detector.
        TrialError: The program gives other answers than the model; it is removed.
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
            # With another batch size than it was traced with.
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
    """Write a folder that timm loads, and load it.

    Returns:
        The largest difference between its outputs and the model's, on random images.

    Raises:
        ConfigError: timm has no model for the task, the model is of another zoo, or the folder cannot be written.
        TrialError: The loaded model gives other outputs than the model.
    """
    import timm
    import torch
    from timm.models import save_for_hf

    if served.task.dense is not None:
        raise ConfigError(f"--out: timm knows no model for {served.task.name}; choose .onnx or .pt2")
    if ":" in served.card["model"]:
        raise ConfigError(f"--out: a folder is a timm model, and {served.card['model']} is none; choose .onnx or .pt2")
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
        arguments = _arguments(served)
        # Tensors alone: torch's own format is code that runs when it is loaded.
        save_for_hf(served.model.cpu(), str(folder), config, arguments, safe_serialization=True)
        # Of an export of an earlier version.
        (folder / "pytorch_model.bin").unlink(missing_ok=True)
        (folder / "README.md").write_text(model_card(served), encoding="utf-8")
        # safetensors writes a file that only its owner may read.
        (folder / "model.safetensors").chmod((folder / "README.md").stat().st_mode)
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
    """Arguments that timm needs to build the model, besides its name and number of classes."""
    import timm

    how = served.preprocessing
    found: dict[str, Any] = {"in_chans": how.in_chans}
    # A model with patch embeddings is built for one image size.
    if getattr(timm.create_model(served.card["model"]), "patch_embed", None) is not None:
        found["img_size"] = how.image_size
    return found


def model_card(served: Any) -> str:
    """A model card as Markdown, with the YAML header that the Hugging Face hub reads."""
    card, strategy = served.card, served.card["strategy"]
    classes = ", ".join(served.classes[:50]) + (", ..." if len(served.classes) > 50 else "")
    active = {name: value for name, value in strategy.items() if name == "depth" or _is_on(name, strategy)}
    trained = "\n".join(f"- {name}: {value}" for name, value in active.items())
    return f"""---
library_name: timm
tags: [image-classification, timm, unfreeze]
---
# {card["model"]}, fine-tuned

{served.task.name.capitalize()} of {len(served.classes)} classes: {classes}.

## Intended use

For images like those that it was trained on. It answers with its classes whatever an image shows, also for an image of
none of them. Compare it with other models on images of your own before you rely on it.

Images are {served.preprocessing.image_size} pixels wide and high.
{_scored(card)}
## Training

It started from {card["weights"]}. How it was fine-tuned was searched for with Unfreeze:

{trained}
"""


def _is_on(name: str, strategy: Mapping[str, Any]) -> bool:
    """Whether a field of a strategy has an effect, and is not off."""
    return strategy[name] not in (None, "none", 0, 0.0) and has_effect(name, strategy)


def _scored(card: Mapping[str, Any]) -> str:
    """The test score and the images, as Markdown; cards of earlier versions have none."""
    if "test" not in card:
        return ""
    test, images = card["test"], card["data"]["images"]
    interval = "" if math.isnan(test["low"]) else f" (95% interval {test['low']:.4f} to {test['high']:.4f})"
    return f"""
## Score

{test["metric"].replace("_", " ")} {test["score"]:.4f}{interval} on {test["images"]:,} test images that neither training
nor the search has used.

## Data

{images["train"]:,} images to train on, {images["val"]:,} to choose by, {images["test"]:,} to test on (source:
{card["data"]["source"]}, fingerprint {card["data"]["fingerprint"]}).
"""


def push(folder: Path, repository: str) -> str:
    """Upload a folder to the Hugging Face hub, and return its address.

    Raises:
        ConfigError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=str(folder)))
    except Exception as error:  # the hub's own, its HTTP library's and the socket's
        raise ConfigError(f"--push: {repository} cannot be written on the hub: {first_line(error)}") from error


def check_destination(out: Path) -> None:
    """Refuse a path that no model can be written to.

    Raises:
        ConfigError: Its folder does not exist, nothing is known by its ending, or a package is missing.
    """
    if out.suffix in _WRITERS:
        if not out.parent.is_dir():
            raise ConfigError(f"--out: {out} cannot be written: there is no folder {out.parent}")
    elif out.suffix:
        raise ConfigError(f"--out: {out} ends in none of {', '.join(_WRITERS)}, and a folder's name has no dot")
    if out.suffix == ".onnx":
        check_installed("--out: .onnx", "onnx", *_ONNX)


def export_model(model_uri: str, out: Path, tracking_uri: str) -> float:
    """Write a logged model as ``.onnx``, as ``.pt2`` or as a timm folder, then run it and compare.

    Args:
        model_uri: The model's address in MLflow.
        out: The file or folder to write.
        tracking_uri: MLflow's store.

    Returns:
        The largest difference between an answer of what was written and the model's.

    Raises:
        ConfigError: There is no such model, or it cannot be written in this form.
        TrialError: What was written gives other answers than the model.
    """
    check_destination(out)
    served = load(model_uri, tracking_uri).unwrap_python_model()
    return export_file(served, out) if out.suffix in _WRITERS else export_timm(served, out)
