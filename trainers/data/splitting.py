"""Seeded splits, folds and subsets: stratified, and of whole groups if there are groups."""

import logging
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from strategies import DataError
from trainers.data.found import SPLITS, listing

log = logging.getLogger(__name__)

Indices: TypeAlias = NDArray[np.int64]


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse fractions that leave a split empty.

    Raises:
        DataError: A fraction is not between 0 and 1, or nothing is left for train.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise DataError(f"data.{name}={fraction} must be above 0 and below 1")
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} leave nothing "
            "for train; their sum must be below 1"
        )


def split_indices(
    splits: Sequence[str],
    strata: NDArray[np.str_],
    groups: Sequence[str] | None,
    *,
    val_fraction: float,
    test_fraction: float,
    folds: int | None,
    fold: int,
    seed: int,
) -> dict[str, Indices]:
    """The indices of the images in train, val and test, each sorted.

    Splits that the source gives are kept. A missing split is cut from train, stratified and seeded, as a fraction of
    the original train. With ``groups`` whole groups are cut, so that no group is in two splits; fraction and strata are
    then met as nearly as groups allow (train is divided into 1 / fraction parts of about equal size, and one part is
    cut: 0.4 may give a half).

    With ``folds``, val is instead one of so many equal parts of train, stratified and grouped likewise. Over all
    values of ``fold`` every image of train is in val once, and test stays the same.

    Args:
        splits: (N,) split of each image as the source gives it.
        strata: (N,) names of groups of like images, to be kept in proportion.
        groups: (N,) group of each image, or None.
        val_fraction: Fraction of train to cut for val, if the source has no val; unused with ``folds``.
        test_fraction: Fraction of train to cut for test, if the source has no test.
        folds: In how many parts train is divided, 2 or more; None for a single val split.
        fold: Which of the parts is val, from 0.
        seed: Seed of the cuts.

    Raises:
        DataError: A stratum has too few images to be divided; a fraction is too small to hold every stratum; a group
            is in two splits that the source gives; there are too few groups, or images for the folds; ``fold`` is not
            one of the folds; or the source gives a val split that folds would replace.
    """
    _check_fold(folds, fold)
    given = np.asarray(splits)
    parts: dict[str, Indices] = {split: np.flatnonzero(given == split) for split in SPLITS}
    if folds is not None and len(parts["val"]):
        raise DataError(
            f"data.folds={folds} divides train into folds, one of which is val, but the data has a val split of its "
            f"own ({len(parts['val']):,} images): leave out that split or data.folds"
        )
    members = None if groups is None else np.asarray(groups)
    if members is not None:
        _check_groups(parts, members)
    fractions = {"test": test_fraction} if folds is not None else {"test": test_fraction, "val": val_fraction}
    whole, left = len(parts["train"]), 1.0
    for split, fraction in fractions.items():
        if len(parts[split]) == 0:
            train = parts["train"]
            _check_strata(strata[train], f"cut {split} from train")
            if members is None:
                taken = _cut(strata[train], max(1, round(whole * fraction)), seed, split)
            else:
                taken = _cut_groups(strata[train], members[train], fraction / left, seed, split)
            left -= fraction
            parts["train"], parts[split] = train[~taken], train[taken]
            log.info("%s: %d of %d train images, %s, seed %d", split, taken.sum(), whole, _how(groups), seed)
    if folds is not None:
        train = parts["train"]
        numbers = _folds(strata[train], None if members is None else members[train], folds, seed)
        parts["train"], parts["val"] = train[numbers != fold], train[numbers == fold]
        log.info(
            "val: fold %d of 0 to %d, %d of %d train images, %s, seed %d",
            *(fold, folds - 1, len(parts["val"]), len(train), _how(groups), seed),
        )
    return parts


def subset(indices: Indices, strata: NDArray[np.str_], limit: int | None, seed: int, split: str) -> Indices:
    """At most ``limit`` of ``indices``, every stratum in proportion and at least once; all of them for None.

    Args:
        indices: (n,) the members of a split.
        strata: (N,) names of groups of like images, of all images that were found.
        limit: How many to keep.
        seed: Seed of the choice.
        split: What an error calls the split.

    Raises:
        DataError: There are more strata than ``limit``.
    """
    if limit is None or limit >= len(indices):
        return indices
    names, kinds = np.unique(strata[indices], return_inverse=True)
    if limit < len(names):
        raise DataError(f"data.limit_{split}={limit} is less than the number of classes, {len(names)}")
    counts = np.bincount(kinds)
    wanted = counts * (limit / len(indices))
    kept = np.maximum(1, np.floor(wanted).astype(np.int64))
    while kept.sum() != limit:
        # Add to the stratum furthest below its share, or take from the stratum furthest above that keeps an image.
        if kept.sum() < limit:
            kept[np.argmax(np.where(kept < counts, wanted - kept, -np.inf))] += 1
        else:
            kept[np.argmax(np.where(kept > 1, kept - wanted, -np.inf))] -= 1
    order = np.random.default_rng(seed).permutation(len(indices))
    chosen = np.concatenate([order[kinds[order] == k][:many] for k, many in enumerate(kept)])
    return np.sort(indices[chosen])


def _check_fold(folds: int | None, fold: int) -> None:
    if folds is None:
        if fold != 0:
            raise DataError(f"data.fold={fold} is without meaning as data.folds is not given")
        return
    if folds < 2:
        raise DataError(f"data.folds={folds} must be at least 2")
    if not 0 <= fold < folds:
        raise DataError(f"data.fold={fold} is not one of data.folds={folds}, which are counted from 0 to {folds - 1}")


def _check_groups(parts: Mapping[str, Indices], groups: NDArray[np.str_]) -> None:
    """Refuse groups that are in more than one of the splits that the source gives."""
    present = {split: set(groups[part].tolist()) for split, part in parts.items()}
    shared = {
        group: [split for split in SPLITS if group in present[split]]
        for group in set().union(*present.values())
        if sum(group in there for there in present.values()) > 1
    }
    if shared:
        lines = [f"{group!r}: {', '.join(there)}" for group, there in sorted(shared.items())]
        raise DataError(
            f"{len(shared):,} groups (data.columns.group) are in more than one split of the data:{listing(lines)}\n"
            "Put each in one split, or leave the splits out, so that whole groups are cut from train"
        )


def _check_strata(strata: NDArray[np.str_], purpose: str) -> None:
    names, counts = np.unique(strata, return_counts=True)
    few = [f"'{name}' with {count}" for name, count in zip(names, counts, strict=True) if count < 2]
    if few:
        raise DataError(
            f"{len(few):,} classes have too few images left to {purpose}, at least 2 are needed:" + listing(few)
        )


def _cut(strata: NDArray[np.str_], size: int, seed: int, split: str) -> NDArray[np.bool_]:
    """Which images go to ``split``."""
    from sklearn.model_selection import train_test_split

    total, kinds = len(strata), len(np.unique(strata))
    if size < kinds or total - size < kinds:
        raise DataError(
            f"data.{split}_fraction puts {size:,} of {total:,} images in {split}; "
            f"train and {split} need at least one for each of the {kinds:,} classes"
        )
    _, taken = train_test_split(np.arange(total), test_size=size, random_state=seed, stratify=strata)
    return np.isin(np.arange(total), taken)


def _cut_groups(
    strata: NDArray[np.str_], groups: NDArray[np.str_], share: float, seed: int, split: str
) -> NDArray[np.bool_]:
    """Which images go to ``split``, about ``share`` of them."""
    count = len(np.unique(groups))
    if count < 2:
        raise DataError(
            f"train has {count} group (data.columns.group) left, at least 2 are needed to cut {split} from it"
        )
    number = min(round(1 / min(share, 1 - share)), count)
    numbers = _group_folds(strata, groups, number, seed)
    cuts = [(numbers == k) == (share <= 0.5) for k in range(number)]

    def misfit(taken: NDArray[np.bool_]) -> tuple[int, float]:
        # The first fold always has the largest group, so that it is often far from the share.
        lost = len(np.setdiff1d(strata[taken], strata[~taken]))
        return lost, abs(float(taken.mean()) - share)

    return min(cuts, key=misfit)


def _folds(strata: NDArray[np.str_], groups: NDArray[np.str_] | None, folds: int, seed: int) -> Indices:
    """The fold number of each image."""
    _check_strata(strata, f"divide train into data.folds={folds}")
    unit, count = ("images", len(strata)) if groups is None else ("groups (data.columns.group)", len(np.unique(groups)))
    if count < folds:
        raise DataError(f"data.folds={folds} is more than the {count:,} {unit} in train")
    if groups is not None:
        return _group_folds(strata, groups, folds, seed)
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    # Dealt out like cards, sorted by stratum: folds and strata in folds differ by one image at most.
    numbers = np.empty(len(strata), np.int64)
    numbers[order] = np.arange(len(strata)) % folds
    return numbers


def _group_folds(strata: NDArray[np.str_], groups: NDArray[np.str_], folds: int, seed: int) -> Indices:
    """The fold number of each image, the same for all images of a group; no fold is empty.

    From the largest group to the smallest, each goes to the fold that has least of the strata of the group.
    scikit-learn's StratifiedGroupKFold (1.9) works alike, but takes a minute for 20,000 groups, 100 strata and 50
    folds, for which this function takes a second, and it sometimes leaves a fold empty.
    """
    _, kinds, totals = np.unique(strata, return_inverse=True, return_counts=True)
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # Sparse, because a group has few of many strata.
    pairs, counts = np.unique(members * len(totals) + kinds, return_counts=True)
    owners, kind = np.divmod(pairs, len(totals))
    share = counts / totals[kind]
    starts = np.searchsorted(owners, np.arange(len(sizes) + 1))
    held = np.zeros((folds, len(totals)))
    filled = np.zeros(folds, np.int64)
    number = np.empty(len(sizes), np.int64)
    order = np.random.default_rng(seed).permutation(len(sizes))
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        own = slice(starts[group], starts[group + 1])
        # The growth of the sum of squares of all folds' shares; an empty fold costs nothing.
        cost = held[:, kind[own]] @ share[own]
        chosen = np.lexsort((filled, cost))[0]
        held[chosen, kind[own]] += share[own]
        filled[chosen] += sizes[group]
        number[group] = chosen
    return number[members]


def _how(groups: Sequence[str] | None) -> str:
    return "stratified" if groups is None else "whole groups, stratified"
