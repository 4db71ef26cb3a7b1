"""Weights from the hub, which stands here on loopback: a real server, the real library and a real model's file."""

import http.server
import json
import os
import pty
import re
import resource
import socket
import subprocess
import sys
import termios
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from copies import copies
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file

from strategies import WeightsError
from trainers.hub import hub_obstacle
from trainers.models import find_weights
from trainers.models.weights import digest

MODEL = "test_resnet"  # timm's own model for tests: half a million parameters, weights on the hub
REPO = "timm/test_resnet.r160_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[2]
# Seconds for which huggingface_hub tries again on a host that does not answer; a busy machine stays far below.
LIBRARY_GIVES_UP = 50

FIND = """
import json, logging, sys, time
logging.basicConfig(format="%(name)s: %(message)s")
logging.getLogger("trainers").setLevel(logging.INFO)
from trainers.models import find_weights
start = time.perf_counter()
try:
    progress = (lambda what, done, total: None) if "tell" in sys.argv else None
    weights = find_weights(sys.argv[1], ["hub"], progress=progress)
    answer = {"source": weights.source, "digest": weights.digest}
except Exception as error:
    answer = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps({**answer, "seconds": time.perf_counter() - start, "mlflow": "mlflow" in sys.modules}))
"""

# The same in a copy of a process that has read the hub's variables: the first argument is the terminal or file that it
# writes to, the next two are what the variables would say.
FIND_WARM = f"""
import os, sys
from huggingface_hub import constants
terminal = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_NOCTTY)
os.dup2(terminal, 2)
constants.ENDPOINT, constants.HF_HUB_CACHE = sys.argv.pop(1), sys.argv.pop(1)
constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{{repo_id}}/resolve/{{revision}}/{{filename}}"
constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
{FIND}
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs.

    Args:
        files: Contents by path below the root.
        refuse: Status and headers for every file, in place of the content.
        claim: The size that HEAD tells, where it is not the true one.
        broken: Bytes after which an answer breaks off, again and again.
        resumes: Whether a range may be asked for.
        asked: Filled with the requests: method, path, range.
        gate: Waited for in the middle of a body.
        statuses: Answers by path, before all else.
        commit: What every answer of a hub names; None as of another server.
    """

    protocol_version = "HTTP/1.1"

    def __init__(
        self,
        *arguments,
        files,
        asked,
        refuse=None,
        claim=None,
        broken=None,
        resumes=True,
        gate=None,
        statuses=None,
        commit=COMMIT,
    ):
        self.files, self.asked, self.refuse, self.claim, self.commit = files, asked, refuse, claim, commit
        self.broken, self.resumes, self.gate, self.statuses = broken, resumes, gate, statuses or {}
        super().__init__(*arguments)

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        self.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.path in self.statuses:
            return self.head(self.statuses[self.path], {})
        if self.path == "/":
            return self.head(200, {})
        if self.refuse:
            return self.head(*self.refuse)
        content = self.files.get(self.path)
        if content is None:
            return self.head(404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{len(content)}-etag"', "Accept-Ranges": "bytes"}
        first = self.resumes and int(re.sub(r"\D", "", self.headers.get("Range") or "") or 0)
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        size = len(content) - first if with_body or self.claim is None else self.claim
        self.head(206 if first else 200, headers, size)
        if with_body:
            self.send(content[first:])
        return None

    def head(self, status, headers, size=0):
        self.send_response(status)
        if self.commit:
            self.send_header("X-Repo-Commit", self.commit)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def send(self, content):
        if self.broken is not None and self.broken < len(content):
            self.wfile.write(content[: self.broken])
            self.close_connection = True
            return
        self.wfile.write(content[: len(content) // 2])
        if self.gate is not None:
            self.wfile.flush()
            self.gate.wait(30)
        self.wfile.write(content[len(content) // 2 :])

    def log_message(self, *arguments):
        pass


class Serving:
    """A hub that answers in a thread of its own."""

    def __init__(self, **how):
        self.asked = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, asked=self.asked, **how))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def address(name="model.safetensors"):
    return f"/{REPO}/resolve/main/{name}"


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture
def files(weights_file):
    return {address(): weights_file.read_bytes()}


@pytest.fixture
def point_to(monkeypatch, tmp_path):
    """A function that makes the library take a URL for the hub and ``tmp_path`` for its cache."""

    def point(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield point
    huggingface_hub.close_session()


@pytest.fixture
def find(point_to):
    """``find_weights`` at a hub that answers as is told, with ``none`` behind it."""

    def find(progress=None, **how):
        with Serving(**how) as hub:
            point_to(hub.url)
            weights = find_weights(MODEL, ["hub", "none"], progress=progress)
        return weights, hub.asked

    return find


def start_find(hub, home, *arguments, terminal=os.devnull):
    """Find weights in another process, which has imported everything."""
    given = [terminal, hub.url, str(home / "hub"), MODEL, *arguments]
    return copies().start(FIND_WARM, given, ROOT, environment(home, TERM="xterm"))


def environment(home, **variables):
    """Without what this machine says of the hub and its proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if "proxy" not in name.lower() and not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    return kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **variables}


def find_apart(home, **variables):
    """What ``find_weights`` answers and logs in a process of its own, where the hub's variables are read anew."""
    command = [sys.executable, "-c", FIND, MODEL]
    ran = subprocess.run(
        command, env=environment(home, **variables), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {**json.loads(ran.stdout.splitlines()[-1]), "log": ran.stderr}


def blobs(home):
    return list((home / "hub").glob("models--*/blobs/*"))


def bodies(asked):
    """The ranges of the weights that were asked for."""
    return [part for method, path, part in asked if method == "GET" and path.startswith(f"/{REPO}/")]


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_weights_are_downloaded_once_and_come_from_the_cache_afterwards(tmp_path, files, weights_file):
    with Serving(files=files) as hub:
        first = find_apart(tmp_path, HF_ENDPOINT=hub.url)
    assert first.get("source") == f"hub:{REPO}", first
    assert first["digest"] == digest(load_file(weights_file))
    size = f"{len(files[address()]) / 1e6:.1f} MB"
    assert first["log"] == f"trainers.hub: downloading {REPO} model.safetensors, {size}, into {tmp_path}/hub\n"
    later = find_apart(tmp_path, HF_HUB_OFFLINE="1")
    assert later["digest"] == first["digest"]
    assert later["log"] == ""
    assert later["seconds"] < LIBRARY_GIVES_UP
    assert not any(answer["mlflow"] for answer in (first, later))


def test_a_repository_without_safetensors_gives_its_pickle(find, tmp_path, weights_file, caplog):
    torch.save(load_file(weights_file), tmp_path / "saved.bin")
    caplog.set_level("INFO", logger="trainers.hub")
    weights, _ = find(files={address("pytorch_model.bin"): (tmp_path / "saved.bin").read_bytes()})
    assert weights.digest == digest(load_file(weights_file))
    assert f"downloading {REPO} pytorch_model.bin" in caplog.text


def test_progress_goes_to_the_caller_who_asks_for_it(find, files):
    told = []
    weights, _ = find(lambda *progress: told.append(progress), files=files)
    size = len(files[address()])
    assert weights.source == f"hub:{REPO}"
    assert told[-1] == (f"downloading {REPO}", size, size)
    assert all(0 < done <= total == size for _, done, total in told)


@pytest.mark.slow
@pytest.mark.parametrize("told", [False, True])
def test_on_a_terminal_the_library_shows_its_bar_unless_the_caller_shows_one(tmp_path, files, told):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with Serving(files=files) as hub:
        process = start_find(hub, tmp_path, *(["tell"] if told else []), terminal=os.ttyname(theirs))
        assert process.wait() == 0
    shown = os.read(ours, 100_000).decode()
    os.close(theirs)
    os.close(ours)
    assert "trainers.hub: downloading timm/" in shown
    assert ("100%|" in shown) is not told


LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
REPO_NOT_FOUND = {"X-Error-Code": "RepoNotFound"}
UNKNOWN_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ((404, REPO_NOT_FOUND), f"the hub has no repository {REPO} that you may read; if it is private, {LOG_IN}"),
        ((401, REPO_NOT_FOUND), f"the hub has no repository {REPO} that you may read; if it is private, {LOG_IN}"),
        ((404, {}), "the hub answered with status 404; download model.safetensors of"),
        ((404, {"X-Error-Code": "EntryNotFound"}), f"{REPO} on the hub has no model.safetensors or pytorch_model.bin"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), f"{REPO} on the hub has no revision main"),
        ((403, {"X-Error-Code": "GatedRepo"}), f"{REPO} is gated: accept its terms at http"),
        ((401, {"X-Error-Code": "GatedRepo"}), f"{REPO}, then {LOG_IN}"),
        ((403, {}), f"the hub refused {REPO} (status 403); {LOG_IN} with a token that may read it"),
        ((401, UNKNOWN_TOKEN), f"the hub refused {REPO} (status 401); {LOG_IN} with a token that may read it"),
        ((500, {}), "the hub answered with status 500; download model.safetensors of"),
        ((429, {}), "the hub answered with status 429; download model.safetensors of"),
    ],
)
def test_each_refusal_is_one_clear_reason_and_the_next_preference_is_tried(
    find, tmp_path, files, refusal, reason, caplog
):
    weights, asked = find(files=files, refuse=refusal)
    # Nothing is tried again.
    assert len(set(asked)) == len(asked)
    assert weights.source == "none"
    assert len(weights.refused) == 1
    assert weights.refused[0].startswith("hub: ")
    assert reason in weights.refused[0]
    assert f"model.weights: {weights.refused[0]}; trying none" in caplog.messages
    assert blobs(tmp_path) == []


def test_a_hub_that_is_ill_or_out_of_reach_is_told_at_once_with_which_file_to_pass(point_to, files):
    with Serving(files=files, statuses={"/": 503}) as hub:
        for url, obstacle in {
            f"http://127.0.0.1:{closed_port()}": "refused",
            hub.url: f"{hub.url} answered with status 503",
        }.items():
            point_to(url)
            start = time.perf_counter()
            with pytest.raises(WeightsError) as caught:
                find_weights(MODEL, ["hub"])
            assert time.perf_counter() - start < LIBRARY_GIVES_UP
            assert obstacle in str(caught.value)
            assert str(caught.value).startswith(
                f"model.weights: none available for {MODEL}: hub: could not reach the hub ({url}"
            )
            assert str(caught.value).endswith(
                f"; download model.safetensors of {REPO} on a machine with access and pass "
                "model.weights=/path/to/model.safetensors"
            )


def test_a_hub_that_never_answers_is_given_up_after_three_seconds(point_to):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(WeightsError, match="could not reach the hub"):
            find_weights(MODEL, ["hub"])
        assert time.perf_counter() - start < LIBRARY_GIVES_UP


def test_a_hub_that_answers_is_no_obstacle(point_to, files, monkeypatch):
    with Serving(files=files) as hub:
        point_to(hub.url)
        assert hub_obstacle() is None
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert hub_obstacle() == "HF_HUB_OFFLINE is set"


def test_a_host_that_is_no_hub_is_named_as_such(find, files):
    weights, _ = find(files=files, commit=None)
    assert re.fullmatch(r"hub: http://127.*? does not answer as a hub; is it HF_ENDPOINT, .*", weights.refused[0])


def test_a_connection_that_breaks_off_is_resumed_where_it_was(find, tmp_path, weights_file):
    tensors = load_file(weights_file) | {"padding": torch.zeros(3_000_000)}
    save_file(tensors, tmp_path / "large.safetensors")
    content = (tmp_path / "large.safetensors").read_bytes()
    weights, asked = find(files={address(): content}, broken=11_000_000)
    assert weights.digest == digest(tensors)
    # The library stores whole chunks of 10 MiB.
    assert bodies(asked) == [None, f"bytes={10 * 2**20}-"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000_000, 11_000_000])
def test_a_body_that_is_cut_again_and_again_is_given_up(find, tmp_path, size, monkeypatch):
    # The library waits a second before it asks for the rest.
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    weights, _ = find(files={address(): bytes(size + 100_000)}, broken=size, resumes=False)
    assert "hub: could not download from the hub (" in weights.refused[0]
    assert blobs(tmp_path) == [], "no part of it is left, to be taken for the whole"


def test_a_file_of_another_size_than_announced_is_refused(find, tmp_path, files):
    weights, _ = find(files=files, claim=len(files[address()]) + 7)
    assert "file should be of size" in weights.refused[0]
    assert blobs(tmp_path) == []


@pytest.mark.slow
def test_a_download_that_was_killed_starts_anew(point_to, tmp_path, files, weights_file, monkeypatch):
    gate = threading.Event()
    with Serving(files=files, gate=gate) as hub:
        killed = start_find(hub, tmp_path)
        deadline = time.monotonic() + 300
        while not bodies(hub.asked) and time.monotonic() < deadline:
            time.sleep(0.05)
        killed.kill()
        killed.wait()
        gate.set()
        assert blobs(tmp_path), "it was killed in the middle"
        point_to(hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        offline = find_weights(MODEL, ["hub", "none"])
        assert offline.source == "none", "half a file is no file"
        reason = "hub: could not reach the hub (HF_HUB_OFFLINE is set); download model.safetensors of"
        assert offline.refused[0].startswith(reason)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert find_weights(MODEL, ["hub"]).digest == digest(load_file(weights_file))


def test_a_file_larger_than_the_free_disk_is_not_begun(find, tmp_path, files, caplog):
    caplog.set_level("INFO", logger="trainers.hub")
    weights, asked = find(files=files, claim=10**18)
    message = (
        rf"hub: the file takes 1,000,000,000,000\.0 MB, {tmp_path}/hub has [\d,.]+ MB free; set HF_HOME to a folder"
    )
    assert re.match(message, weights.refused[0])
    assert bodies(asked) == []
    assert "downloading" not in caplog.text


def test_a_disk_that_takes_no_more_is_told_by_the_name_of_the_cache(find, tmp_path, files):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        weights, _ = find(files=files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert weights.refused == (
        f"hub: could not write to {tmp_path}/hub: File too large; set HF_HOME to another folder",
    )
    assert blobs(tmp_path) == []


def test_a_model_without_weights_on_the_hub_says_so():
    with pytest.raises(WeightsError, match="hub: timm names no pretrained weights of test_vit4 on the hub"):
        find_weights("test_vit4", ["hub"])
