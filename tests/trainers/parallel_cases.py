"""Trainings that two processes do together, and one does alone: ``python parallel_cases.py FOLDER RANK`` is one of two.

Run so, it trains every case as one of the ranks, and writes what each came to.
"""

import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from strategies import Strategy
from trainers import (
    ALONE,
    ActivationStore,
    ImageData,
    ModelSource,
    Preprocessing,
    Ranks,
    Reuse,
    Trainer,
    Weights,
    choose_device,
    join,
    open_data,
    top_of,
)
from trainers.data.split import ResidentSplit

DEVICE = choose_device("cpu")

SGD = "sgd"
CLASSES, PIXELS = "classification", "segmentation"
FROZEN = {"batch_norm": "frozen_stats"}

#: By case: the model, the task, and what of the strategy matters.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("test_resnet", CLASSES, {"optimizer": SGD, "epochs": 2}),
    # 13 images: 7 for one rank and 6 for the other.
    "uneven batches": ("test_resnet", CLASSES, {"batch_size": 13, "optimizer": SGD}),
    "gradual unfreezing": ("test_resnet", CLASSES, {"depth": 2, "unfreeze_epochs": 1, "epochs": 2, **FROZEN}),
    "ema, layer decay": ("test_resnet", CLASSES, {"ema": 0.9, "layer_decay": 0.8, "clip_grad": 0.5, "optimizer": SGD}),
    "swa": ("test_resnet", CLASSES, {"swa_epochs": 2, "optimizer": SGD, "epochs": 2}),
    "sam": ("test_resnet", CLASSES, {"sam_rho": 0.05, "optimizer": SGD}),
    "lora": ("test_vit", CLASSES, {"parameters": "lora", "depth": 2}),
    "mixup, augmentation": (
        "test_resnet",
        CLASSES,
        {"mixup": 0.4, "cutmix": 0.4, "augment": "strong", "optimizer": SGD},
    ),
    "relative gradients": ("test_resnet", CLASSES, {"lr_by": "gradient", "depth": 2, "optimizer": SGD}),
    "bss, l2-sp": ("test_resnet", CLASSES, {"bss": 1e-3, "l2_sp": 1e-2, "optimizer": SGD}),
    "whole set": ("test_resnet", CLASSES, {"batch_size": 64, "optimizer": SGD}),
    "probe, reuse": ("test_resnet", CLASSES, {"depth": 1, **FROZEN}),
    "numbers": ("test_efficientnet", "regression", {"loss": "huber", "optimizer": SGD}),
    "pixels": ("test_resnet", PIXELS, {"loss": "focal", "batch_size": 6, "augment": "light", "optimizer": SGD}),
    "regions": ("test_resnet", PIXELS, {"loss": "cross_entropy+dice", "batch_size": 6, "optimizer": SGD}),
    "boxes": ("test_resnet", "detection", {"loss": "detector", "batch_size": 6, "optimizer": SGD, **FROZEN}),
}


def _halves(task: str) -> ImageData:
    """Noise, bright in the upper half for class 0 and in the lower for class 1."""
    splits = {}
    for seed, (name, count) in enumerate((("train", 26), ("val", 11), ("test", 11))):
        generator = torch.Generator().manual_seed(seed)
        half = torch.arange(count) % 2
        pixels = torch.randint(0, 100, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for row, target in enumerate(half):
            pixels[row, :, 16 * target : 16 * target + 16] += 100
        targets = half if task == "classification" else torch.stack([half, 5 - half], 1).float()
        names = [str(k) for k in range(count)]
        splits[name] = ResidentSplit(targets, names, pixels.numpy(), torch.arange(count).numpy())
    return ImageData(
        task=task,
        classes=("up", "down"),
        **splits,
        fingerprint="0" * 16,
        contents=dict.fromkeys(splits, "0" * 32),
        skipped=(),
        duplicates=(),
        source="halves",
        preprocessing=Preprocessing(32),
    )


def _scenes(task: str, cache: Path) -> ImageData:
    from search.config import DataConfig

    limits = {"limit_train": 12, "limit_val": 7, "limit_test": 7}
    config = DataConfig(source="scenes", image_size=64, cache=str(cache), workers=0, **limits)
    return open_data(task=task, in_chans=3, **config.model_dump())


def data_of(task: str, cache: Path) -> ImageData:
    return _halves(task) if task in ("classification", "regression") else _scenes(task, cache)


def trainer_of(case: str, data: ImageData, cache: Path, ranks: Ranks = ALONE) -> Trainer:
    model, task, fields = CASES[case]
    classes, size = len(data.classes), data.preprocessing.image_size
    # The other decoders of masks drop some of their maps, each rank others.
    decoder = {"segmentation": "unet", "detection": "retinanet"}.get(task)
    top = None if decoder is None else top_of(task, decoder, classes, size)
    source = ModelSource(model, Weights("none", "random", None), classes, size, top=top)
    strategy = Strategy(**{"epochs": 1, "batch_size": 16, "lr": 1e-3, "depth": 1.0} | fields)
    reuse = Reuse(ActivationStore(cache, 2**30), always=True) if "reuse" in case else None
    return Trainer(source, data, strategy, 0, DEVICE, reuse=reuse, ranks=ranks)


def train(trainer: Trainer) -> dict[str, Any]:
    return {"metrics": [result.metrics for result in trainer], "weights": trainer.weights()}


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    ranks = join(folder / "meeting", rank, 2, DEVICE.torch, timedelta(seconds=300))
    sets = {task: data_of(task, folder / "cache") for task in {task for _, task, _ in CASES.values()}}
    for case, (_, task, _) in CASES.items():
        trainer = trainer_of(case, sets[task], folder / "cache", ranks)
        found = train(trainer)
        found["reuse"] = trainer.reused.reason
        torch.save(found, folder / f"{case} {rank}.pt")
    # Taken up by both after an epoch, of what one of them has saved.
    first = trainer_of("plain", sets["classification"], folder, ranks)
    next(first)
    second = trainer_of("plain", sets["classification"], folder, ranks)
    if rank == 0:
        torch.save(first.state_dict(), folder / "state.pt")
    ranks.any([False])
    second.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    torch.save(train(second), folder / f"taken up {rank}.pt")
    # Also after memory was freed, one rank cannot hold a batch: the other goes along in parts.
    third = trainer_of("probe, reuse", sets["classification"], folder / "other", ranks)
    lacking = [rank == 1] * 2
    forward = third.forward

    def short_once(*values: Any) -> Any:
        if lacking.pop() if lacking else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*values)

    third._gradients._forward = short_once  # type: ignore[assignment]
    found = train(third)
    torch.save(found | {"parts": third.micro_batches}, folder / f"short {rank}.pt")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
