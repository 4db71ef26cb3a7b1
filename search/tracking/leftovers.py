"""Writes that ended processes have left on disk because MLflow was away."""

from search.storage import is_outage, reason_of
from search.tracking.background_writer import BackgroundWriter
from search.tracking.sink import Sink
from search.tracking.spool import Spool


def deliver_all(spool: Spool, sink: Sink, writer: BackgroundWriter) -> int:
    """Do all writes of a spool that this process has taken, set aside those that MLflow refuses, and remove the spool.

    Returns:
        How many writes there were.

    Raises:
        AwayError: MLflow cannot be reached; the remaining writes stay in the spool.
    """
    writes = spool.read()
    for place, write in enumerate(writes):
        try:
            sink(write, spool.folder, again=True)
        except Exception as error:
            if is_outage(error):
                raise writer.away(error, more=len(writes) - place) from error
            spool.set_aside(write, reason_of(error))
        spool.delivered()
    spool.remove()
    return len(writes)
