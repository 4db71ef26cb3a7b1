import shutil
import subprocess
import sys
import threading

import pytest

from search.tracking import WriteError
from search.tracking.background_writer import BackgroundWriter
from search.tracking.spool import Spool, left_in
from search.tracking.writes import Drop, Log, as_line, from_line


def deliver(write, folder, again):
    """Writes of these tests are functions; the writer looks into no write."""
    write()


@pytest.fixture
def writer() -> BackgroundWriter:
    return BackgroundWriter("the store", deliver, print)


def fail():
    raise OSError("no space left on device\nand more")


def test_writes_are_done_in_order_in_another_thread(writer):
    done = []
    for number in range(100):
        writer.put(lambda number=number: done.append((number, threading.current_thread())))
    writer.flush()
    assert [number for number, _ in done] == list(range(100))
    (thread,) = {thread for _, thread in done}
    assert thread is not threading.current_thread()


def test_it_is_idle_when_everything_is_written(writer):
    release = threading.Event()
    writer.put(release.wait)
    assert not writer.is_idle
    release.set()
    writer.flush()
    assert writer.is_idle


def test_the_first_failure_is_raised_at_the_flush_with_its_reason_and_what_follows_it_is_dropped(writer):
    done, release = [], threading.Event()
    writer.put(release.wait)
    writer.put(lambda: done.append("before"))
    writer.put(fail)
    writer.put(lambda: done.append("after"))
    release.set()
    with pytest.raises(WriteError, match=r"^the store cannot be written to: no space left on device$"):
        writer.flush()
    assert done == ["before"]


def test_the_reason_is_what_began_it(writer):
    def wrapped():
        try:
            fail()
        except OSError as error:
            raise RuntimeError("(Background on this error at: https://example.org)") from error

    writer.put(wrapped)
    with pytest.raises(WriteError, match="no space left on device"):
        writer.flush()


def test_a_failure_is_raised_at_the_next_write_and_the_one_after_is_done(writer):
    done = []
    failed = threading.Event()
    writer.put(lambda: failed.set() or fail())
    failed.wait()
    with pytest.raises(WriteError):
        while True:
            writer.put(lambda: done.append("refused"))
    done.clear()
    writer.put(lambda: done.append("taken"))
    writer.flush()
    assert done == ["taken"]


def test_everything_is_written_before_python_exits(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from search.tracking.background_writer import BackgroundWriter\n"
        "deliver, file = lambda write, folder, again: write(), Path(sys.argv[1])\n"
        "writer = BackgroundWriter('the store', deliver, print)\n"
        "writer.put(lambda: time.sleep(0.3))\n"
        "for n in range(3): writer.put(lambda n=n: file.open('a').write(str(n)))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=True)
    assert (tmp_path / "file").read_text() == "012"


def test_writes_wait_in_a_new_file_where_someone_removes_the_spool(tmp_path):
    is_away = threading.Event()
    is_away.set()

    def sink(write, folder, again):
        if is_away.is_set():
            raise ConnectionError("away")

    writer = BackgroundWriter("the store", sink, lambda text: None)
    writer.spool = Spool(tmp_path / "cache" / "spool")
    writes = [Drop(run=str(number)) for number in range(4)]
    writer.put(writes[0])
    writer.put(writes[1])
    writer.flush()
    shutil.rmtree(tmp_path / "cache")
    writer.put(writes[2])
    writer.flush()
    assert writer.spool.read() == writes[:3]
    shutil.rmtree(tmp_path / "cache")
    writer.flush()
    assert writer.spool.read() == writes[:3]
    (left,) = left_in(tmp_path / "cache" / "spool")
    assert not left.take(), "its process still holds the new lock"
    is_away.clear()
    writer.deliver()
    assert writer.close() == 0


def test_no_altered_line_of_a_waiting_write_is_read():
    line = as_line(Log(run="r", metrics=[("val_accuracy", 0.5, 1, 2)], tags=[("name", "ü")])).encode()
    assert from_line(line).metrics == [("val_accuracy", 0.5, 1, 2)]
    for at in range(len(line)):
        for bit in range(8):
            with pytest.raises(ValueError, match=r"."):
                from_line(line[:at] + bytes([line[at] ^ 1 << bit]) + line[at + 1 :])
    # As earlier versions wrote it.
    assert from_line(b'{"run":"r","kind":"end","status":"FINISHED","time":3}').status == "FINISHED"
