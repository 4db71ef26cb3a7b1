"""URLs of stores without the passwords in them, which are shown nowhere."""

import re


def without_password(url: str) -> str:
    """A URL, or a text with one in it, that may be shown and stored: its password is replaced by stars."""
    # Up to the last @: a password may hold an unescaped @, and it is better to hide the host than to show half of it.
    return re.sub(r"(?<=[?&]password=)[^&\s'\"]*", "***", re.sub(r"(://[^:/?@\s]*:).*@", r"\1***@", url))
