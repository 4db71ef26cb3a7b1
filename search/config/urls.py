"""Addresses of stores, and the passwords in them, which are shown nowhere."""

import re


def without_password(url: str) -> str:
    """A URL, or a text with one in it, that may be shown and stored: its password is replaced by stars."""
    # Up to the last @: where a password holds one that nobody escaped, rather the host is hidden than half of it shown.
    return re.sub(r"(?<=[?&]password=)[^&\s'\"]*", "***", re.sub(r"(://[^:/?@\s]*:).*@", r"\1***@", url))
