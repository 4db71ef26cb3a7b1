"""Workers on the nodes of a Ray cluster."""

import logging
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.config import MOST_RAY_WORKERS, ExecutorConfig, StudyConfig
from search.executors.executor import Share, for_worker
from search.executors.process import LocalProcess, WorkerProcess
from search.processes import drop_left_over, temporary_folder
from strategies import ConfigError, first_line

# How long a worker may take to be placed: a machine that an autoscaler asked for has to boot first.
_PLACED_SECONDS = 900.0
# Ray itself gives up on an address after half a minute, or after two, and may end the process then.
_ANSWER_SECONDS = 5.0
# Variables of the command that a worker needs: addresses and credentials of MLflow and the hub.
_PASSED_ON = ("MLFLOW_", "HF_")
# A socket's path has at most 103 bytes on macOS, 107 on Linux. Of those, Ray's names and our folder's take 86:
# /unfreeze-tmp-8letters/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store
_MOST_PATH_BYTES = 103 - 86

logger = logging.getLogger(__name__)


class _Host:
    """An actor: runs a worker on the node where Ray has placed it, and passes lines on.

    Args:
        environment: Variables that the worker needs.
        folder: The worker's working folder, if the node has it.
    """

    def __init__(self, environment: Mapping[str, str], folder: str) -> None:
        # Ray unpacks our packages into folders of its own.
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._worker = LocalProcess(paths | dict(environment), folder if Path(folder).is_dir() else None)
        self._lines = self._worker.lines()

    def ready(self) -> None:
        """Return as soon as the actor is placed."""

    def tell(self, line: str) -> None:
        self._worker.tell(line)

    def next_line(self) -> str:
        return next(self._lines, "")

    def stop(self) -> None:
        self._worker.stop()

    def kill(self) -> None:
        self._worker.kill()

    def wait(self) -> int:
        return self._worker.wait()


class RayProcess:
    """A worker on some node, beside an actor. A worker whose node is lost counts as killed.

    Args:
        ray: The module, connected.
        options: Options by which Ray places the actor.
        environment: Variables that the worker needs.
    """

    def __init__(self, ray: Any, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._ray = ray
        self._placed, self._lost = threading.Event(), False
        # Threads of the actor: one waits for lines, one for the end, the others answer further calls.
        host = ray.remote(_Host).options(**options, max_restarts=0, max_concurrency=4)
        self._actor = host.remote(dict(environment), str(Path.cwd()))

    def is_placed(self) -> bool:
        """Wait, with a time limit, until a node runs it; return whether one does."""
        if not self._placed.is_set() and not self._lost:
            try:
                self._ray.get(self._actor.ready.remote(), timeout=_PLACED_SECONDS)
                self._placed.set()
            except self._ray.exceptions.RayError as error:
                if not self._lost:
                    logger.warning("a worker cannot be placed: %s", first_line(error) or "no node has room for it")
                self._give_up()
        return not self._lost

    def tell(self, line: str) -> None:
        """Send a line; nothing is sent if it has ended."""
        self._call("tell", line)

    def lines(self) -> Iterator[str]:
        """Its output, line by line, until it has ended."""
        while line := self._call("next_line"):
            yield line

    def stop(self) -> None:
        """Ask it to queue its trials again and to end."""
        if self._placed.is_set():
            self._call("stop")
        else:
            self._give_up()

    def kill(self) -> None:
        """End it at once."""
        if self._placed.is_set():
            self._call("kill")
        else:
            self._give_up()

    def wait(self, seconds: float | None = None) -> int:
        """Its exit code, negative for a signal; its resources on the node are then free for others."""
        code = None if self._lost else self._call("wait", seconds=seconds)
        self._give_up()
        return -signal.SIGKILL if code is None else int(code)

    def _call(self, name: str, *values: Any, seconds: float | None = None) -> Any:
        """The result of a method of the actor; None where the actor is lost."""
        if self._lost:
            return None
        try:
            return self._ray.get(getattr(self._actor, name).remote(*values), timeout=seconds)
        except self._ray.exceptions.RayActorError as error:
            logger.info("a worker is lost: %s", error)
            # A worker that was unreachable only for a moment must not continue by itself.
            self._give_up()
            return None

    def _give_up(self) -> None:
        self._lost = True
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)


@dataclass(frozen=True, slots=True)
class Fit:
    """How many workers there are, and how many CPU threads and what share of a GPU each has."""

    workers: int
    threads: int
    gpus: float


class RayExecutor:
    """Workers on the nodes of a Ray cluster, each with what it needs of one.

    Args:
        ray: The module, connected.
        fit: How many workers, and what each has. Ray chooses which GPU that is, and shows it to the worker alone.
        config: Other resources, and placement.
    """

    def __init__(self, ray: Any, fit: Fit, config: ExecutorConfig) -> None:
        self._ray, self._fit = ray, fit
        self._options = {
            # So many CPUs of its node.
            "num_cpus": fit.threads,
            "num_gpus": fit.gpus,
            "resources": config.resources,
            "scheduling_strategy": {"pack": "DEFAULT", "spread": "SPREAD"}[config.placement],
        }

    @property
    def devices(self) -> int:
        """How many workers there are: each has its device, or its share of one, to itself."""
        return self._fit.workers

    @property
    def description(self) -> str:
        """Such as ``" on Ray"``."""
        return " on Ray"

    def config_for_worker(self, config: StudyConfig) -> StudyConfig:
        """The study's configuration, as if the worker were alone on the resources that it sees."""
        # Without a GPU of its own, "auto" would choose a GPU that Ray gives to others.
        device = "cpu" if config.device == "auto" and not self._fit.gpus else config.device
        return config.model_copy(update={"device": device, "executor": for_worker(config.executor)})

    def share(self, place: int, beside: int) -> Share:
        """The same for each worker; Ray counts cores, and does not say which."""
        return Share(self._fit.threads)

    def start(self, place: int, share: Share) -> WorkerProcess:
        """Start a worker on a node that has room for it."""
        passed_on = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        return RayProcess(self._ray, self._options, passed_on | {"OMP_NUM_THREADS": str(share.threads)})


@contextmanager
def connected(config: StudyConfig) -> Iterator[RayExecutor]:
    """A cluster's executor, while the ``with`` block runs.

    Raises:
        ConfigError: Ray is not installed, the cluster does not answer or has no room, or its nodes could not reach the
            stores.
    """
    # Ray reads the same variable, and sets it for its jobs.
    address = config.executor.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        # A cluster of this command's own: all of its processes listen on the loopback address alone, as Ray's do on
        # macOS and Windows. Ray reads the variable when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("executor.name: ray needs Ray; pip install -e '.[ray]'") from error
    with ExitStack() as cleanup:
        place = short_place()
        drop_left_over(place)
        _connect(ray, config, address, cleanup.enter_context(temporary_folder(place)))
        cleanup.callback(ray.shutdown)
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # it has no types
        refuse_files(config, (node["NodeManagerHostname"] for node in nodes))
        yield RayExecutor(ray, fit(config, [node["Resources"] for node in nodes]), config.executor)


def short_place() -> Path:
    """The system's folder of temporary files, if Ray's sockets can be in it; ``data.cache`` may be on a network."""
    found = Path(tempfile.gettempdir())
    return found if len(os.fsencode(found)) <= _MOST_PATH_BYTES else Path("/tmp")


def _connect(ray: Any, config: StudyConfig, address: str | None, folder: Path) -> None:
    """Join the cluster at an address, or start one, which has its files in an empty folder."""
    here = Path(__file__).resolve().parents[2]
    packages = [str(here / name) for name in ("search", "strategies", "studies", "trainers")]
    options: dict[str, Any] = {"runtime_env": {"py_modules": packages, "excludes": ["__pycache__"]}}
    if address is None:
        # Such a cluster sends no usage statistics either.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's default, 15, gives a worker only CPU time that no other process wants.
        os.environ.setdefault("RAY_worker_niceness", "0")
        workers = config.executor.workers or 1
        options |= {"include_dashboard": False, "num_cpus": max(workers * (config.threads or 1), _own_cores())}
        options["_temp_dir"] = str(folder)
        options["resources"] = {name: amount * workers for name, amount in config.executor.resources.items()}
    else:
        _probe(address)
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        # Workers look for modules in the folder of this call first, before they look into our packages: in that of the
        # user a file may have the name of one of them.
        with chdir(folder):
            ray.init(address or "local", logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises unrelated types of errors for a wrong address
        raise ConfigError(f"executor.address: {address or 'null'}: {first_line(error)}") from error
    finally:
        # Ray's own handler would end this process without queueing trials again.
        signal.signal(signal.SIGTERM, terminated)


def _own_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _probe(address: str) -> None:
    """Check that something listens at an address.

    Raises:
        ConfigError: Nothing answers.
    """
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)
    if found is None:
        if address != "auto":
            raise ConfigError(f"executor.address: {address!r} is neither auto nor HOST:PORT nor ray://HOST:PORT")
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"executor.address: nobody answers at {address}: {error}") from error


def fit(config: StudyConfig, nodes: Sequence[Mapping[str, float]]) -> Fit:
    """The number of workers of a study, and the resources of each.

    By default a worker has a GPU, or as many as train a trial, and its share of the node's CPUs; without GPUs, it has a
    whole node.

    Args:
        config: The study's configuration.
        nodes: Resources of each node, as Ray counts them.

    Raises:
        ConfigError: No node has room for a worker, and ``executor.workers`` is not set.
    """
    asked, gpus = config.executor, config.executor.gpus
    if gpus is None:
        whole = float(asked.gpus_per_trial)
        gpus = whole if config.device != "cpu" and any(node.get("GPU", 0) >= whole for node in nodes) else 0.0
    needs = {name: amount for name, amount in {"GPU": gpus, **asked.resources}.items() if amount > 0}
    most = math.inf if config.threads or needs else 1
    # CPUs of each node, and for how many workers its other resources suffice.
    rooms = [
        (int(node.get("CPU", 0)), min((node.get(name, 0) // amount for name, amount in needs.items()), default=most))
        for node in nodes
    ]
    able = [(cpus, room) for cpus, room in rooms if cpus > 0 and room > 0]
    threads = config.threads or _fair_threads(able, asked.workers)
    workers = asked.workers or sum(int(min(room, cpus // threads)) for cpus, room in able)
    if workers < 1:
        need = ", ".join(f"{name} {amount:g}" for name, amount in {"CPU": threads, **needs}.items())
        raise ConfigError(
            f"executor.workers: none of the cluster's {len(nodes)} nodes has room for a worker, which needs {need}; "
            "on a cluster that adds nodes on demand, set the number of workers"
        )
    return Fit(min(workers, MOST_RAY_WORKERS), threads, gpus)


def _fair_threads(able: Sequence[tuple[int, float]], workers: int | None) -> int:
    """CPUs for each worker by default: those of the node that has the fewest, divided among its workers."""
    if not able:
        return 1
    if workers is not None:
        everyone = [cpus for cpus, _ in able]
        return max(1, min(sum(everyone) // workers, *everyone))
    return max(1, min(int(cpus // room) for cpus, room in able))


def refuse_files(config: StudyConfig, hosts: Iterable[str]) -> None:
    """Refuse stores in files where workers may be on other hosts.

    Raises:
        ConfigError: Names the first such store.
    """
    others = sorted(set(hosts) - {socket.gethostname()})
    for key, url in (("store.url", config.store.url), ("tracking.uri", config.tracking.uri)):
        if others and url.startswith("sqlite"):
            raise ConfigError(
                f"{key}: {url} is a file of this host, which SQLite cannot share with {', '.join(others[:3])}; "
                "docs/cluster.md says what can be shared"
            )
