"""Boosted regression trees as arrays: fitted by scikit-learn, evaluated by numpy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trees:
    """The nodes of all trees one after another.

    A node compares a column of the rows, or the column with its sign changed: a missing value compares as not smaller,
    and so goes to the second child. Columns with changed signs are numbered after all others.

    Args:
        base: What is predicted before the first tree.
        roots: (trees,) int, the first node of each tree.
        column: (nodes,) int, the column that a node compares.
        threshold: (nodes,) float, a row goes to the first child if its value is not larger.
        child: (nodes, 2) int, the second and the first child; a leaf is its own child.
        value: (nodes,) float, what a leaf adds.
        depth: The most comparisons on the way to a leaf.
    """

    base: float
    roots: NDArray[np.int32]
    column: NDArray[np.int32]
    threshold: NDArray[np.float32]
    child: NDArray[np.int32]
    value: NDArray[np.float32]
    depth: int

    @classmethod
    def of(cls, model: Any) -> "Trees":
        """The trees of scikit-learn's fitted ``HistGradientBoostingRegressor`` without categorical columns."""
        columns, begin, depth = model.n_features_in_, 0, 0
        roots, parts = [], []
        for (predictor,) in model._predictors:
            nodes = predictor.nodes
            places = np.arange(len(nodes)) + begin
            leaf = nodes["is_leaf"].astype(bool)
            turned = nodes["missing_go_to_left"].astype(bool) & ~leaf
            threshold = np.where(leaf, 0, nodes["num_threshold"]).astype(np.float32)
            # x > t is -x <= the largest number below -t.
            threshold = np.where(turned, np.nextafter(-threshold, np.float32(-np.inf)), threshold)
            left = np.where(leaf, places, nodes["left"] + begin)
            right = np.where(leaf, places, nodes["right"] + begin)
            first, second = np.where(turned, right, left), np.where(turned, left, right)
            column = np.where(leaf, 0, nodes["feature_idx"]) + columns * turned
            parts.append((column, threshold, np.stack([second, first], 1), np.where(leaf, nodes["value"], 0)))
            roots.append(begin)
            begin += len(nodes)
            depth = max(depth, int(nodes["depth"].max()))
        column, threshold, child, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        base = float(np.ravel(model._baseline_prediction)[0])
        whole = (np.array(roots, np.int32), column.astype(np.int32), threshold.astype(np.float32))
        return cls(base, *whole, child.astype(np.int32), value.astype(np.float32), depth)

    def predict(self, rows: Floats) -> Floats:
        """Predictions.

        Args:
            rows: (rows, columns) float, NaN where a value is missing.

        Returns:
            (rows,) float.
        """
        both = np.concatenate([rows, -rows], 1).astype(np.float32)
        flat, begins = both.ravel(), np.arange(len(rows), dtype=np.int32)[:, None] * np.int32(both.shape[1])
        child = self.child.ravel()
        node = np.repeat(self.roots[None], len(rows), 0)
        for _ in range(self.depth):
            first = flat.take(begins + self.column.take(node)) <= self.threshold.take(node)
            node = child.take(2 * node + first)
        return np.asarray(self.base + self.value.take(node).sum(1, dtype=np.float64), np.float64)

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The trees as small arrays under names that begin with ``name``."""
        return {
            f"{name}.base": np.array([self.base], np.float32),
            f"{name}.roots": self.roots.astype(np.uint16),
            f"{name}.column": self.column.astype(np.uint8),
            f"{name}.threshold": self.threshold,
            f"{name}.child": self.child.astype(np.uint16),
            f"{name}.value": self.value,
            f"{name}.depth": np.array([self.depth], np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> "Trees":
        """The trees whose arrays have names that begin with ``name``."""

        def part(of: str, kind: Any) -> NDArray[Any]:
            return arrays[f"{name}.{of}"].astype(kind)

        whole = (part("roots", np.int32), part("column", np.int32), part("threshold", np.float32))
        depth = int(arrays[f"{name}.depth"][0])
        return cls(float(arrays[f"{name}.base"][0]), *whole, part("child", np.int32), part("value", np.float32), depth)
