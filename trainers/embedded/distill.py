"""Makes the embedded ResNet-18: taught by the packaged EfficientNet-Lite0 on free pictures that Debian ships.

``python -m trainers.embedded.distill --help`` tells how; ``trainers/embedded/resnet18.md`` describes the result.
The student learns, on strongly augmented views, to give the teacher's pooled features and class probabilities for the
same pixels (Hinton et al. 2015; Beyer et al. 2022 on consistent views; Asano and Saeed 2021 on how few pictures do).
"""

import argparse
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from trainers.models import find_weights

# Debian packages (from main, so all under free licences). Which pictures are public domain or under GPL, CC-BY or
# CC-BY-SA is in each package's own /usr/share/doc/<package>/copyright.
PHOTOGRAPHS = (
    "gnome-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "ukui-wallpapers",
)
OBJECTS = ("tuxpaint-stamps-default", "openclipart-png")

_VIEW = 96
_STUDENT_SIZES = (32, 48, 64, 64, 64, 64, 80, 96)
_TEACHER = "tf_efficientnet_lite0"
_STUDENT = "resnet18"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures that views are cut from.

    Args:
        scenes: RGB photographs, at most 768 px a side.
        objects: RGBA pictures of single things with a transparent ground, at most 256 px a side.
    """

    scenes: list[Image.Image]
    objects: list[Image.Image]


def fetch(folder: Path) -> None:
    """Download the Debian packages that are not in ``folder`` yet and unpack them there; nothing is installed."""
    for package in (*PHOTOGRAPHS, *OBJECTS):
        target = folder / package
        if target.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", archive, target], check=True)


def load_pictures(folder: Path) -> Pictures:
    """Read everything below ``folder`` into memory, made small; files that cannot be read are left out."""
    from sklearn.datasets import load_sample_images

    scenes = [Image.fromarray(image) for image in load_sample_images().images]
    scenes += [small.convert("RGB") for small in _read(folder, PHOTOGRAPHS, 768)]
    objects = [small.convert("RGBA") for small in _read(folder, OBJECTS, 256)]
    return Pictures(scenes, objects)


def _read(folder: Path, packages: tuple[str, ...], longest: int) -> Iterator[Image.Image]:
    for package in packages:
        for path in sorted((folder / package).rglob("*")):
            # Screenshots are small copies of a wallpaper that is also in the package.
            if path.suffix.lower() not in _SUFFIXES or path.is_symlink() or "screenshot" in path.name:
                continue
            try:
                image: Image.Image = Image.open(path)
                image.draft("RGB", (longest, longest))
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                print(f"left out {path.name}: {error}")
                continue
            image.thumbnail((longest, longest))
            if min(image.size) >= 32:
                yield image


class Views(IterableDataset[Tensor]):
    """Endless batches of augmented views.

    Args:
        pictures: The pictures that views are cut from.
        batch_size: Views a batch, B.
        seed: Draws the views.

    Yields:
        (B, 3, 96, 96) uint8.
    """

    def __init__(self, pictures: Pictures, batch_size: int, seed: int) -> None:
        self._pictures = pictures
        self._batch_size = batch_size
        self._seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self._seed}/{worker.id if worker else 0}")
        while True:
            views = [np.asarray(_view(self._pictures, rng)) for _ in range(self._batch_size)]
            yield torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()


def _view(pictures: Pictures, rng: random.Random) -> Image.Image:
    kind = rng.random()
    if kind < 0.3:
        image = _crop(rng.choice(pictures.scenes), rng, 0.02)
    else:
        image = _ground(pictures, rng)
        for _ in range(1 if kind < 0.8 else 3):
            _paste(image, rng.choice(pictures.objects), rng)
    return _recolour(image, rng)


def _crop(image: Image.Image, rng: random.Random, smallest: float) -> Image.Image:
    """A random part of the picture, of at least that share of its area, as a square view."""
    area = image.width * image.height * rng.uniform(smallest**0.5, 1) ** 2
    ratio = rng.uniform(3 / 4, 4 / 3)
    width = min(image.width, max(16, (area * ratio) ** 0.5))
    height = min(image.height, max(16, (area / ratio) ** 0.5))
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    view = image.resize((_VIEW, _VIEW), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return ImageOps.mirror(view) if rng.random() < 0.5 else view


def _ground(pictures: Pictures, rng: random.Random) -> Image.Image:
    kind = rng.random()
    if kind < 0.45:
        return _crop(rng.choice(pictures.scenes), rng, 0.02)
    if kind < 0.7:
        return Image.new("RGB", (_VIEW, _VIEW), tuple(rng.randrange(256) for _ in range(3)))
    return Image.new("RGB", (_VIEW, _VIEW), rng.choice(("black", "white")))


def _paste(ground: Image.Image, thing: Image.Image, rng: random.Random) -> None:
    """Lay a thing on the ground, turned and scaled, at times beyond its edge."""
    longest = _VIEW * rng.uniform(0.45, 1.3)
    factor = longest / max(thing.size)
    size = max(8, round(thing.width * factor)), max(8, round(thing.height * factor))
    thing = thing.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if rng.random() < 0.5:
        thing = ImageOps.mirror(thing)
    if rng.random() < 0.5:
        thing = thing.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR, expand=True)
    slack = _VIEW - thing.width, _VIEW - thing.height
    place = tuple(round(s / 2 + rng.uniform(-0.5, 0.5) * (abs(s) + 16)) for s in slack)
    ground.paste(thing, place, thing)  # type: ignore[arg-type]


def _recolour(image: Image.Image, rng: random.Random) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.5:
            image = enhance(image).enhance(rng.uniform(0.5, 1.5))
    chance = rng.random()
    if chance < 0.25:
        image = ImageOps.grayscale(image).convert("RGB")
    elif chance < 0.35:
        image = ImageOps.invert(image)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2)))
    return image


class Teacher:
    """EfficientNet-Lite0 with its packaged ImageNet weights."""

    def __init__(self) -> None:
        weights = find_weights(_TEACHER, ["package:efficientnet-lite0"])
        overlay = {"state_dict": weights.state_dict}
        model: Any = timm.create_model(_TEACHER, pretrained=True, pretrained_cfg_overlay=overlay)
        self.width: int = model.num_features
        self._model = model.eval().to(memory_format=torch.channels_last)
        self._units: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features, standardised by the first batch, (N, 1280), and class scores, (N, 1000), of (N, 3, H, W)."""
        with torch.autocast("cpu", torch.bfloat16):
            pooled = self._model.forward_head(self._model.forward_features((pixels - 0.5) / 0.5), pre_logits=True)
            scores = self._model.get_classifier()(pooled).float()
        pooled = pooled.float()
        if self._units is None:
            self._units = pooled.mean(0), pooled.std(0) + 1e-3
        mean, std = self._units
        return ((pooled - mean) / std).clamp(-5, 5), scores


class Pupil(nn.Module):
    """The student with two linear readouts: the teacher's pooled features and its class scores."""

    mean: Tensor
    std: Tensor

    def __init__(self, teacher_width: int) -> None:
        super().__init__()
        student: Any = timm.create_model(_STUDENT, num_classes=0)
        self.student = student
        self.to_features = nn.Linear(student.num_features, teacher_width)
        self.to_classes = nn.Linear(student.num_features, 1000)
        mean, std = (torch.tensor(student.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Its estimates of the teacher's answers, for (N, 3, H, W) in [0, 1]."""
        normalised = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            features = self.student(normalised)
            return self.to_features(features), self.to_classes(features)


def _loss(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    """Squared error of the features, and cross entropy with the teacher's probabilities at temperature 2."""
    features, logits = (part.float() for part in found)
    return F.mse_loss(features, wanted[0]) + 0.5 * F.cross_entropy(logits / 2, (wanted[1] / 2).softmax(1))


def _make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr)


def distill(
    pictures: Pictures, teacher: Teacher, *, views: int, batch_size: int, lr: float, seed: int, out: Path
) -> None:
    """Teach the student on ``views`` views and store it, without its readouts, in half precision at ``out``."""
    pupil = Pupil(teacher.width).to(memory_format=torch.channels_last)
    optimizer = _make_optimizer(pupil, lr)
    steps = views // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    loader = DataLoader(Views(pictures, batch_size, seed), batch_size=None, num_workers=1, prefetch_factor=4)
    sizes = random.Random(seed)
    started, running = time.monotonic(), 0.0
    for step, batch in zip(range(1, steps + 1), loader, strict=False):
        pixels = batch.float().div_(255).contiguous(memory_format=torch.channels_last)
        wanted = teacher(pixels)
        size = sizes.choice(_STUDENT_SIZES)
        if size != _VIEW:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        loss = _loss(pupil(pixels), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(pupil.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        running += (loss.item() - running) / min(step, 50)
        if step % 50 == 0 or step == steps:
            rate = step * batch_size / (time.monotonic() - started)
            print(f"step {step} of {steps}, loss {running:.4f}, {rate:.0f} views a second", flush=True)
        if step % 500 == 0 or step == steps:
            _store(pupil.student, out)


def _store(student: nn.Module, out: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in student.state_dict().items()}
    partial = out.with_suffix(".partial")
    save_file({name: t.contiguous() for name, t in half.items()}, partial, metadata={"format": "pt"})
    partial.replace(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("mlruns/pictures"), help="where packages are unpacked")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("resnet18.safetensors"))
    parser.add_argument("--views", type=int, default=400_000, help="augmented views in all")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # Its weights may be missing: before all pictures are fetched and read.
    torch.manual_seed(arguments.seed)
    teacher = Teacher()
    fetch(arguments.pictures)
    pictures = load_pictures(arguments.pictures)
    print(f"{len(pictures.scenes)} photographs, {len(pictures.objects)} objects", flush=True)
    distill(
        pictures,
        teacher,
        views=arguments.views,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        seed=arguments.seed,
        out=arguments.out,
    )


if __name__ == "__main__":
    main()
