"""Packages that only one feature needs: an extra of ``pyproject.toml`` installs them."""

from importlib.util import find_spec

from strategies.errors import ConfigError


def check_installed(feature: str, extra: str, *packages: str) -> None:
    """Refuse a feature whose packages are not installed. No package is imported.

    Args:
        feature: The key or option that asks for the packages, such as ``task: detection``; the message begins with it.
        extra: Installs the packages.
        packages: Names that they are imported by.

    Raises:
        ConfigError: A package is missing; the message names the command that installs it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{feature} takes {', '.join(missing)}; pip install -e '.[{extra}]'")
