"""URLs of stores: the passwords in them, which are shown nowhere, and what can be told without opening a store."""

import re
from urllib.parse import urlsplit


def without_password(url: str) -> str:
    """A URL, or a text with one in it, that may be shown and stored: its password is replaced by stars."""
    # Up to the last @: a password may hold an unescaped @, and it is better to hide the host than to show half of it.
    return re.sub(r"(?<=[?&]password=)[^&\s'\"]*", "***", re.sub(r"(://[^:/?@\s]*:).*@", r"\1***@", url))


def sqlite_file(url: str) -> str | None:
    """The path in the URL of a SQLite database, empty where there is none; None for any other URL."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?://(?:/([^?]*))?(?:\?.*)?", url, re.DOTALL)
    return None if found is None else found[1] or ""


def in_memory(url: str) -> bool:
    """Whether a SQLite database is in the memory of the process that opens it."""
    file = sqlite_file(url)
    return file is not None and (file in ("", ":memory:") or "file::memory:" in file or "mode=memory" in url)


def unreadable_address(url: str) -> str | None:
    """Why a server's address cannot be read; None if it can, and for databases, whose drivers read it."""
    if not url.startswith(("http://", "https://", "grpc://")):
        return None
    try:
        parts = urlsplit(url)
        # Read here, since a wrong port is an error only when it is asked for.
        is_named = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        return str(error)
    return None if is_named else "it names no host, or port 0"
