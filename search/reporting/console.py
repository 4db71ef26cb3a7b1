"""The console through which everything is printed that is more than a line."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from search.config import printable


class SafeConsole(Console):
    """A console whose texts cannot command the terminal; rich itself passes escape sequences on."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As in rich, but of control characters only rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
