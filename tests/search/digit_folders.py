"""Folders of digits whose classes have other names, or are fewer or more."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(
    folder: Path, names: Mapping[str, str | None], noise: Sequence[str] = (), train: int = 6, test: int = 10
) -> str:
    """Write files of digits, and return their root.

    Args:
        folder: Where.
        names: The class of each digit's images, where it is not the digit; several may have one; None leaves them out.
        noise: Names of further classes, whose images are noise.
        train: Training images of each digit.
        test: Test images of each digit.
    """
    every, count = load_digits(), train + test
    images = {str(digit): every.images[every.target == digit][-count:] * (255 / 16) for digit in range(10)}
    images |= {name: np.random.default_rng(0).uniform(0, 255, (count, 8, 8)) for name in noise}
    for name, of_class in images.items():
        called = names.get(name, name)
        for place, pixels in enumerate(of_class if called is not None else ()):
            file = folder / ("test" if place < test else "train") / str(called) / f"{name}_{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(pixels).astype(np.uint8)).save(file)
    return str(folder)
