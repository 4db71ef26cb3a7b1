"""Addresses of stores, and the passwords in them, which are shown nowhere."""

import os
import re
from urllib.parse import unquote, urlsplit


def without_password(url: str) -> str:
    """A URL, or a text with one in it, that may be shown and stored: its password is replaced by stars."""
    # Up to the last @: where a password holds one that nobody escaped, rather the host is hidden than half of it shown.
    return re.sub(r"(?<=[?&]password=)[^&\s'\"]*", "***", re.sub(r"(://[^:/?@\s]*:).*@", r"\1***@", url))


def without_login(uri: str) -> str:
    """The URI of an MLflow server without user and password, which are put where MLflow's client looks for them.

    So they are in no message and no file of MLflow's; processes that are started inherit them.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
