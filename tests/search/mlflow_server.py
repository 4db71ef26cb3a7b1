"""A real MLflow server in a process of its own, which can be killed, and a proxy in front of it that can fail."""

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from copies import Started, copies

# What `mlflow server` runs, less its supervisors; importing it takes seconds, a copy does not.
_SERVE = """
import logging, os, sys
# A line for each request would fill the pipe of standard error, which nobody reads.
logging.getLogger("werkzeug").setLevel(logging.ERROR)
uri, artifacts, port = sys.argv[1:]
log = os.open("server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
os.environ.update(
    _MLFLOW_SERVER_FILE_STORE=uri,
    _MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/",
    _MLFLOW_SERVER_ARTIFACT_DESTINATION=artifacts,
    _MLFLOW_SERVER_SERVE_ARTIFACTS="true",
)
from mlflow.server import app
from mlflow.server.handlers import initialize_backend_stores
from werkzeug.serving import make_server
initialize_backend_stores(uri, uri, "mlflow-artifacts:/")
if "MLFLOW_AUTH_CONFIG_PATH" in os.environ:
    from mlflow.server.auth import create_app
    app = create_app(app)
make_server("127.0.0.1", int(port), app, threaded=True).serve_forever()
"""


class MlflowServer:
    """An MLflow server on loopback that stores in a folder.

    Args:
        folder: Where ``mlflow.db`` lies, which has been through its migrations, and ``artifacts`` and ``server.log``
            will.
        auth: Configuration file of basic authentication; None for a server that anybody may use.
    """

    def __init__(self, folder: Path, auth: Path | None = None) -> None:
        self.folder = folder
        self._auth = auth
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Started | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        artifacts = self.folder / "artifacts"
        arguments = [f"sqlite:///{self.folder}/mlflow.db", str(artifacts), str(self.port)]
        environment = {"OMP_NUM_THREADS": "1"}
        if self._auth is not None:
            environment |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(self._auth),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
            }
        self._process = copies().start(_SERVE, arguments, self.folder, environment)
        end = time.monotonic() + 300
        while time.monotonic() < end:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=60).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Proxy:
    """An HTTP server that passes requests on.

    What it does with each is ``mode``: ``pass``; ``fail``, answer 500; ``cut``, end the connection without an answer;
    ``lose``, pass it on and end the connection without the answer. ``GET /mode/NAME`` sets it from other processes.
    """

    def __init__(self, port: int) -> None:
        self.mode = "pass"
        self._to = port
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def __getattr__(self, name):
                if name.startswith("do_"):
                    return lambda: proxy._handle(self)
                raise AttributeError(name)

            def log_message(self, *arguments) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/mode/"):
            self.mode = request.path.removeprefix("/mode/")
            request.send_response(200)
            request.end_headers()
            return
        mode = self.mode
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if mode == "cut":
            return
        if mode == "fail":
            request.send_response(500)
            request.end_headers()
            request.wfile.write(b"not now")
            return
        inner = http.client.HTTPConnection("127.0.0.1", self._to, timeout=300)
        inner.request(request.command, request.path, body, dict(request.headers))
        answer = inner.getresponse()
        content = answer.read()
        inner.close()
        if mode == "lose":
            return
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
