"""Writes that ended processes have left on disk because MLflow was away."""

from search.storage import is_no_room, is_outage, reason_of
from search.tracking.background_writer import BackgroundWriter
from search.tracking.sink import Sink
from search.tracking.spool import Spool


def deliver_all(spool: Spool, sink: Sink, writer: BackgroundWriter) -> int:
    """Do all writes of a spool that this process has taken, set aside those that MLflow refuses, and remove the spool.

    Returns:
        How many writes there were.

    Raises:
        AwayError: MLflow cannot be reached, or has no room; the remaining writes stay in the spool.
    """
    writes = spool.read()
    for place, write in enumerate(writes):
        try:
            if write is not None:
                sink(write, spool.folder, again=True)
        except Exception as error:
            if is_outage(error) or is_no_room(error):
                raise writer.away(error, more=len(writes) - place) from error
            assert write is not None, "nothing else fails"
            spool.set_aside(write, reason_of(error))
        spool.delivered()
    spool.remove()
    return len(writes) - writes.count(None)
