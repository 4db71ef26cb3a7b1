"""How sure a challenger has to be: a champion's test images are looked at many times, and each look may err.

Each champion has an account of ``champion.alpha``. The k-th different challenger is tested at a share of it that falls
with k; all shares together are one. So the chance that a champion is ever replaced by a model that is no better is at
most alpha, however many challengers come and however alike they are (the union bound asks for no independence). A new
champion begins with a full account, as in alpha-investing (Foster and Stine, JRSS B 2008): of all promotions, and one
more, at most a share alpha is expected to be wrong.
"""

import json
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray

#: Tag of a champion: how many looks challengers had at it.
LOOKS = "unfreeze.looks"
#: Tag of a challenger: its look, by champion and images.
LOOK = "unfreeze.look"

# Shares fall as 1 / k**1.5. Half of alpha would be spent with two looks by 1 / k**2, and by 1 / k there is no end.
_POWER = 1.5


@dataclass(frozen=True, slots=True)
class Look:
    """A challenger's look at the champion's test images.

    Args:
        number: The how many-th look at this champion, from 1.
        alpha: The part of ``champion.alpha`` that this look may spend.
        left: The part that is left for later looks.
    """

    number: int
    alpha: float
    left: float


def look_of(number: int, alpha: float) -> Look:
    """The look of a number, from 1, where all looks may spend ``alpha`` together."""
    # Only here: the import takes a second.
    from scipy.special import zeta

    # zeta(s, k) is the sum of all shares from the k-th on.
    whole = float(zeta(_POWER, 1))
    return Look(number, alpha * number**-_POWER / whole, alpha * float(zeta(_POWER, number + 1)) / whole)


def count_look(
    client: MlflowClient,
    name: str,
    champion: ModelVersion,
    challenger: ModelVersion,
    images: NDArray[np.uint64],
    alpha: float,
) -> Look:
    """Count a challenger's look at a champion, and keep it in the tags of both versions.

    The same challenger on the same images is the same look again.

    Args:
        client: Of the registry.
        name: The registered model.
        champion: Its present champion.
        challenger: The challenger.
        images: (N,) digests of the images that both are compared on.
        alpha: What all looks may spend together.
    """
    key = f"{champion.version} on {blake2b(np.sort(images).tobytes(), digest_size=8).hexdigest()}"
    seen = json.loads(challenger.tags.get(LOOK, "{}"))
    so_far = int(champion.tags.get(LOOKS, "0"))
    number = seen["number"] if seen.get("champion") == key else so_far + 1
    # Before the comparison: what is cut off has had its look.
    client.set_model_version_tag(name, str(challenger.version), LOOK, json.dumps({"champion": key, "number": number}))
    client.set_model_version_tag(name, str(champion.version), LOOKS, str(max(number, so_far)))
    return look_of(number, alpha)
