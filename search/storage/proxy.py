"""Optuna's gRPC proxy, with heartbeats, locks, and retries while the proxy restarts.

One process holds the connections to the database and a cache of its trials, for workers on any number of hosts.
Optuna's protocol (5.0) has neither heartbeats nor locks, so the server has a second service, our own.
"""

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.storage.private_apis import BaseHeartbeat, add_storage_service, id_in_storage
from search.storage.retrying import retried, retry_methods
from search.storage.server_lock import SharedLock
from strategies import ConfigError

DEFAULT_PORT = 13000
_SERVICE = "unfreeze.Store"
_READY_SECONDS = 10.0
# Each process that waits for a lock, or holds one, takes a thread of the server. Threads are made when needed.
_MOST_THREADS = 1000
# Client and server notice within a minute that the other is gone silently.
_KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000)]
_UNLIMITED = [("grpc.max_receive_message_length", -1)]
_OFTEN = [("grpc.http2.min_ping_interval_without_data_ms", 20_000), ("grpc.keepalive_permit_without_calls", 1)]

#: System attribute of a trial: a mark of the call that made it.
_MARK = "unfreeze:made_by"


def is_proxy(url: str) -> bool:
    """Whether a URL is that of a proxy: ``grpc://host:port``."""
    return url.startswith("grpc://")


def _address(url: str) -> tuple[str, int]:
    if find_spec("grpc") is None:
        raise ConfigError("a proxy needs gRPC, which comes with: pip install -e '.[grpc]'")
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or DEFAULT_PORT


def _open_channel(url: str) -> Any:
    import grpc

    host, port = _address(url)
    return grpc.insecure_channel(f"{host}:{port}", options=[*_KEEPALIVE, *_OFTEN, *_UNLIMITED])


class Proxy(GrpcStorageProxy, BaseHeartbeat):
    """The storage behind a proxy, which retries while the proxy is away.

    Args:
        url: URL of the proxy.
        interval: Seconds between heartbeats.
        on_stale: Is called with each trial whose heartbeats have stopped.

    Raises:
        ConnectionError: No proxy answers there.
    """

    def __init__(self, url: str, interval: int, on_stale: Callable[[Study, FrozenTrial], None] | None = None) -> None:
        self._url, self._interval, self._on_stale = url, interval, on_stale
        host, port = _address(url)
        super().__init__(host=host, port=port)
        self.wait_server_ready(_READY_SECONDS)

    def _setup(self) -> None:
        super()._setup()
        self._own = _open_channel(self._url)

    def _call(self, method: str, argument: int) -> Any:
        call = self._own.unary_unary(f"/{_SERVICE}/{method}")
        return json.loads(retried(lambda: call(json.dumps(argument).encode())))

    def record_heartbeat(self, trial_id: int) -> None:
        """Record that a trial is alive."""
        self._call("Beat", trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return list(self._call("Stale", study_id))

    def get_heartbeat_interval(self) -> int:
        """Seconds between heartbeats."""
        return self._interval

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None] | None:
        """The function that is called with each trial whose heartbeats have stopped."""
        return self._on_stale

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Make one trial, also where an answer got lost: a retry looks for the trial's mark before it makes another."""
        template = create_trial(state=TrialState.RUNNING) if template_trial is None else deepcopy(template_trial)
        mark, tries = uuid4().hex, 0
        template.system_attrs = template.system_attrs | {_MARK: mark}
        make = super().create_new_trial

        def once() -> int:
            nonlocal tries
            tries += 1
            if tries > 1:
                for trial in self.get_all_trials(study_id, deepcopy=False):
                    if trial.system_attrs.get(_MARK) == mark:
                        return id_in_storage(trial)
            return make(study_id, template)

        return retried(once)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As in Optuna; a retry that finds the trial told with these values takes them for those of an earlier try.

        Where the answer is lost that a queued trial was claimed, the trial has no owner, and is queued again as a trial
        of a dead process.

        Raises:
            UpdateFinishedTrialError: Another call has told the trial.
        """
        tries = 0
        change = super().set_trial_state_values

        def once() -> bool:
            nonlocal tries
            tries += 1
            try:
                return change(trial_id, state, values)
            except UpdateFinishedTrialError:
                told = self.get_trial(trial_id)
                if tries > 1 and told.state == state and (values is None or told.values == list(values)):
                    return True
                raise

        return retried(once)


# Idempotent calls, as in search.storage.postgres.
_REPEATABLE = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_all_trials",
    "get_trial_id_from_study_id_trial_number",
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
)


retry_methods(Proxy, _REPEATABLE)


class ProxyLock(SharedLock):
    """A lock of a proxy, for the processes of all hosts that use the proxy: a call that lasts as long as the lock.

    Args:
        url: URL of the proxy.
        name: Name of the lock.
    """

    def __init__(self, url: str, name: str) -> None:
        super().__init__()
        self._url, self._name = url, name
        self._channel = _open_channel(url)
        self._asked: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers: Iterator[bytes] = iter(())

    def connect(self) -> None:
        """Wait until the proxy answers.

        Raises:
            ConnectionError: No proxy answers.
        """
        host, port = _address(self._url)
        GrpcStorageProxy(host=host, port=port).wait_server_ready(_READY_SECONDS)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def _take(self, timeout: float | None) -> bool:
        def ask() -> bool:
            self._asked = SimpleQueue()
            self._asked.put(json.dumps([self._name, timeout]).encode())
            call = self._channel.stream_stream(f"/{_SERVICE}/Turn")
            self._answers = call(iter(self._asked.get, None))
            return next(self._answers, b"") == b"yours"

        return retried(ask)

    def _give_back(self) -> None:
        self._asked.put(None)
        # The call has ended once its answers end; before, another call of this process could find the lock taken.
        if self._is_whole():
            self._answers = iter(())

    def _is_held(self) -> bool:
        self._asked.put(b"")
        return self._is_whole()

    def _is_whole(self) -> bool:
        import grpc

        try:
            return next(self._answers, b"") == b"yours"
        except grpc.RpcError:
            return False


class _Extras:
    """Our own service, beside Optuna's."""

    def __init__(self, storage: BaseHeartbeat) -> None:
        self._storage = storage
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def beat(self, request: bytes, context: Any) -> bytes:
        self._storage.record_heartbeat(json.loads(request))
        return b"null"

    def stale(self, request: bytes, context: Any) -> bytes:
        return json.dumps(self._storage._get_stale_trial_ids(json.loads(request))).encode()

    def turn(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        name, seconds = json.loads(next(requests))
        lock, until = self._turns[name], None if seconds is None else time.monotonic() + seconds
        while not lock.acquire(timeout=0.5 if until is None else min(0.5, max(0.0, until - time.monotonic()))):
            if not context.is_active() or (until is not None and time.monotonic() >= until):
                return
        try:
            yield b"yours"
            # Answers each question whether the lock is still held; they end with the holder at the latest.
            for _ in requests:
                yield b"yours"
        finally:
            lock.release()


def check_address(host: str, port: int) -> None:
    """Refuse an address that no proxy can listen at, before its database is opened or made.

    Raises:
        ConfigError: gRPC is not installed, or the address is taken or none of this machine.
    """
    _address("")
    try:
        family, kind, number, _, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, ValueError) as error:
        raise _unusable(host, port, error) from error


def _unusable(host: str, port: int, error: Exception) -> ConfigError:
    return ConfigError(f"--port {port}: cannot be listened at on {host}: {error}")


def serve(storage: BaseStorage, host: str, port: int) -> tuple[Any, int]:
    """Start a proxy, and return its gRPC server and the port it listens at.

    Args:
        storage: The storage that it serves, with Optuna's cache and heartbeats.
        host: Address to listen at; there is neither encryption nor a password.
        port: Port to listen at; 0 for any free one.

    Raises:
        ConfigError: gRPC is not installed, or the address is taken.
    """
    _address("")
    import grpc

    assert isinstance(storage, BaseHeartbeat), "get_storage gives such a storage"
    extras = _Extras(storage)
    handlers = {
        "Beat": grpc.unary_unary_rpc_method_handler(extras.beat),
        "Stale": grpc.unary_unary_rpc_method_handler(extras.stale),
        "Turn": grpc.stream_stream_rpc_method_handler(extras.turn),
    }
    # Otherwise a second server could take the same port, and half of the calls.
    options = [*_KEEPALIVE, *_OFTEN, ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(_MOST_THREADS), options=options)
    add_storage_service(storage, server)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    try:
        port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise _unusable(host, port, error) from error
    server.start()
    return server, port
