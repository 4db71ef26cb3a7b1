"""Messages to any address that apprise can send to: mail, chat, a phone."""

import logging
from collections.abc import Sequence

from search.config import without_password
from strategies import ConfigError

logger = logging.getLogger(__name__)


def check_addresses(urls: Sequence[str]) -> None:
    """Refuse addresses that apprise cannot send to, before the search begins.

    Raises:
        ConfigError: apprise does not know an address, or is not installed.
    """
    if not urls:
        return
    try:
        import apprise
    except ImportError as error:
        raise ConfigError("--notify: apprise is not installed; pip install -e '.[notify]'") from error
    for url in urls:
        if not apprise.Apprise().add(url):
            raise ConfigError(f"--notify: {without_password(url)!r} is not an address that apprise knows")


def send(urls: Sequence[str], title: str, text: str) -> None:
    """Send a message; a failure is only logged, since the night's work is done."""
    if not urls:
        return
    import apprise

    for url in urls:
        sender = apprise.Apprise()
        sender.add(url)
        if not sender.notify(title=title, body=text, body_format=apprise.NotifyFormat.MARKDOWN):
            logger.warning("the summary could not be sent to %s", without_password(url))
