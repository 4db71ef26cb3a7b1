"""Values of a forward pass as rows, one for each image, for storing in the activation cache."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from strategies import UnfreezeError


class CutError(UnfreezeError):
    """A model cannot be cut at a block, so that nothing of its forward pass can be reused."""


#: The stored tensors, (B, ...) each: a row for each image.
Rows: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a tensor of a batch is laid out in rows, one for each image.

    A row keeps the order in memory, such as channels_last, so that later operations are as fast as on the original
    tensor, and round alike.

    Args:
        shape: The shape of one row.
        dtype: The type of the tensor.
        batch_dim: The tensor's dimension that grows with the batch.
        repeats: The size of that dimension for each image, such as the number of windows.
        order: The tensor's dimensions in their order in memory, images first; if an image has several ``repeats``,
            these are a dimension of their own behind ``batch_dim``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_dim: int
    repeats: int
    order: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape) * self.dtype.itemsize

    def pack(self, tensor: Tensor) -> Tensor:
        """The tensor as rows (B, *shape); a view if both have the same order in memory."""
        if self.repeats > 1:
            tensor = _split(tensor, self.batch_dim, self.repeats)
        return tensor.permute(self.order).contiguous()

    def unpack(self, rows: Tensor) -> Tensor:
        """The tensor that was packed into ``rows``, (B, *shape); a view if ``repeats`` is 1."""
        tensor = rows.permute([self.order.index(dim) for dim in range(len(self.order))])
        return tensor.flatten(self.batch_dim, self.batch_dim + 1) if self.repeats > 1 else tensor


@dataclass(frozen=True, slots=True)
class Count:
    """A number that grows with the batch."""

    per_image: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same for all images, such as a size or a table of positions."""

    value: Any


#: The structure of a value: the same nested tuples, lists and dicts, with layouts for tensors, counts and constants.
Description: TypeAlias = (
    RowLayout | Count | Constant | tuple["Description", ...] | list["Description"] | dict[Any, "Description"]
)


def describe(first: Any, second: Any, batch_sizes: tuple[int, int]) -> Description:
    """Find the structure of a value from its instances for two batches of different images and sizes.

    Args:
        first: The value for the first batch.
        second: The value for the second.
        batch_sizes: Number of images in each batch.

    Raises:
        CutError: The value is neither the same for all images nor made of a part for each image.
    """
    if isinstance(first, tuple | list) and isinstance(second, tuple | list) and len(first) == len(second):
        parts = [describe(a, b, batch_sizes) for a, b in zip(first, second, strict=True)]
        return parts if isinstance(first, list) else tuple(parts)
    # Outputs of Transformers are dicts with attributes, which are not made anew from their parts.
    if type(first) in (dict, OrderedDict) and first.keys() == second.keys():
        return {key: describe(value, second[key], batch_sizes) for key, value in first.items()}
    if same(first, second):
        return Constant(first)
    if isinstance(first, int) and isinstance(second, int) and first * batch_sizes[1] == second * batch_sizes[0]:
        return Count(first // batch_sizes[0])
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.ndim == second.ndim:
        return _layout(first, second, batch_sizes)
    raise CutError(f"a {type(first).__name__} depends on which images are in a batch")


def _layout(first: Tensor, second: Tensor, batch_sizes: tuple[int, int]) -> RowLayout:
    dims = [dim for dim in range(first.ndim) if first.shape[dim] != second.shape[dim]]
    sizes = {(first.shape[dim] / batch_sizes[0], second.shape[dim] / batch_sizes[1]) for dim in dims}
    if len(dims) != 1 or any(a != b or a != int(a) for a, b in sizes):
        shapes = f"{tuple(first.shape)} for {batch_sizes[0]} and {tuple(second.shape)} for {batch_sizes[1]} images"
        raise CutError(f"a tensor has no dimension of images: {shapes}")
    (dim,) = dims
    repeats = first.shape[dim] // batch_sizes[0]
    if repeats > 1:
        first = _split(first, dim, repeats)
    strides = first.stride()
    others = sorted((other for other in range(first.ndim) if other != dim), key=lambda other: -strides[other])
    return RowLayout(tuple(first.shape[other] for other in others), first.dtype, dim, repeats, (dim, *others))


def _split(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The tensor with a dimension of images times ``size`` split into two dimensions."""
    return tensor.reshape(*tensor.shape[:dim], -1, size, *tensor.shape[dim + 1 :])


def layouts_in(description: Description) -> Iterator[RowLayout]:
    """The layouts of a value's tensors, in the order in which they are stored."""
    if isinstance(description, RowLayout):
        yield description
    elif isinstance(description, tuple | list | dict):
        for part in description.values() if isinstance(description, dict) else description:
            yield from layouts_in(part)


def pack(description: Description, value: Any) -> Iterator[Tensor]:
    """The rows of a value's tensors, each (B, *shape)."""
    if isinstance(description, RowLayout):
        yield description.pack(value)
    elif isinstance(description, dict):
        for key, part in description.items():
            yield from pack(part, value[key])
    elif isinstance(description, tuple | list):
        for part, given in zip(description, value, strict=True):
            yield from pack(part, given)


def unpack(description: Description, rows: Sequence[Tensor]) -> Any:
    """The value whose tensors were packed into ``rows``, each (B, *shape)."""
    return _unpacked(description, iter(rows), len(rows[0]))


def _unpacked(description: Description, rows: Iterator[Tensor], batch_size: int) -> Any:
    if isinstance(description, RowLayout):
        return description.unpack(next(rows))
    if isinstance(description, Count):
        return description.per_image * batch_size
    if isinstance(description, Constant):
        return description.value
    if isinstance(description, dict):
        return {key: _unpacked(part, rows, batch_size) for key, part in description.items()}
    parts = [_unpacked(part, rows, batch_size) for part in description]
    return parts if isinstance(description, list) else tuple(parts)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    found: list[Tensor] = []

    def visit(part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
        return part

    fx.node.map_aggregate(value, visit)
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit and of the same type."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and bool(one == other)
