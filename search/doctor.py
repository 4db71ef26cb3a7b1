"""What of this machine and this installation works: ``python -m search.doctor``."""

import argparse
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

from packaging.requirements import Requirement

from search.command_line import FAILED, HelpFormatter, exit_code, read_words, set_up_logging
from search.config import DataConfig, TrackingConfig, spelled, without_password
from search.processes import importing
from strategies import ConfigError, first_line

_USAGE = """\
A study, named as for search.run, says where its stores are, or store.url=... and tracking.uri=... do; without them, the
stores of the working folder are looked at. Nothing is changed.

The exit code is 1 where something fails that a search needs, else 0. A note is for your information: Unfreeze works
without a hub, a GPU and all extras."""

_PACKAGE = "unfreeze"
# What each extra is for; those of developers are not listed.
_EXTRAS = {
    "auth": "log-in to MLflow's pages",
    "dense": "masks and boxes",
    "grpc": "a proxy for many workers",
    "heic": "HEIC photographs",
    "huggingface": "data sets of the Hugging Face hub",
    "lora": "low-rank adapters",
    "notify": "messages after a night",
    "onnx": "ONNX files",
    "packages": "more ImageNet weights without a hub",
    "postgres": "PostgreSQL",
    "ray": "clusters",
    "transformers": "classifiers of Hugging Face's Transformers",
}
# Seconds until a store counts as away, and the free bytes below which a search fails or may fail.
_PATIENCE, _FULL, _TIGHT = 10.0, 2**30, 10 * 2**30

State = Literal["ok", "note", "fails"]
_STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "fails": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: Its name.
        state: ``fails`` where a search cannot do without, ``note`` where it can.
        found: What was found.
        remedy: What can be done; empty where nothing has to be.
    """

    what: str
    state: State
    found: str
    remedy: str = ""


def examine(words: Sequence[str]) -> Iterator[Finding]:
    """Look at everything, what answers for sure first.

    Args:
        words: A study, or keys, that say where the stores are.

    Raises:
        ConfigError: The words name no study.
    """
    with importing():
        from search.storage import stores_of

    url, uri, _ = stores_of(words)
    yield Finding("Python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    yield from of_installation()
    yield from of_folder(Path.cwd())
    yield from of_disk()
    yield from of_devices()
    yield in_time("hub", of_hub)
    yield in_time("store.url", lambda: of_optuna(url))
    yield in_time("tracking.uri", lambda: of_mlflow(uri))


def of_installation() -> Iterator[Finding]:
    """Whether all packages are installed in versions that fit, and which extras are."""
    root = Path(__file__).resolve().parents[1]
    try:
        asked = [Requirement(line) for line in requires(_PACKAGE) or ()]
        found = f"{distribution(_PACKAGE).version}, {root}"
    except PackageNotFoundError:
        yield Finding("Unfreeze", "note", f"{root}, not installed: its packages are not known", "pip install -e .")
        return
    missing = [line for one in asked if is_asked(one, "") for line in unmet(one)]
    state: State = "fails" if missing else "ok"
    remedy = "pip install -e ." if missing else ""
    yield Finding("Unfreeze", state, "; ".join([found, *missing]), remedy)
    yield from _of_extras(asked)
    yield from _of_constraints(root / "constraints.txt")


def _of_extras(asked: Sequence[Requirement]) -> Iterator[Finding]:
    lacking = {}
    for extra in _EXTRAS:
        own = [one for one in asked if is_asked(one, extra) and not is_asked(one, "")]
        lacking[extra] = [line for one in own for line in unmet(one)]
    there = [extra for extra, lines in lacking.items() if not lines]
    yield Finding("extras", "ok", ", ".join(there) or "none")
    for extra, lines in lacking.items():
        if lines:
            found = f"not installed, for {_EXTRAS[extra]}: {', '.join(lines)}"
            yield Finding(f"extra {extra}", "note", found, f"pip install -e '.[{extra}]'")


def is_asked(requirement: Requirement, extra: str) -> bool:
    """Whether an installation with an extra, or with none, asks for a package on this machine."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def unmet(requirement: Requirement) -> list[str]:
    """What of a requirement is not installed, its own extras included; empty if all is."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return [str(requirement.name)]
    if not requirement.specifier.contains(found, prereleases=True):
        return [f"{requirement.name} is {found}, not {requirement.specifier}"]
    below = [Requirement(line) for line in requires(requirement.name) or ()] if requirement.extras else []
    return [
        line
        for one in below
        if one.marker is not None and any(is_asked(one, extra) for extra in requirement.extras)
        for line in unmet(one)
    ]


def _of_constraints(file: Path) -> Iterator[Finding]:
    """Which packages have other versions than those with which the tests passed; a wheel does not say."""
    if not file.is_file():
        return
    pinned = dict(line.split("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line)
    others = []
    for name, tested in pinned.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if found.partition("+")[0] != tested:
            others.append(f"{name} {found} (tested: {tested})")
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        yield Finding("versions", "note", shown, f"pip install -c {file} -e .")
    else:
        yield Finding("versions", "ok", "those with which the tests passed")


def of_folder(folder: Path) -> Iterator[Finding]:
    """Files of a folder that ``python -m`` would take for Unfreeze's own packages."""
    if folder == Path(__file__).resolve().parents[1]:
        return
    packages = ("search", "strategies", "trainers")
    found = [name for package in packages for name in (f"{package}.py", package) if (folder / name).exists()]
    if found:
        said = f"{', '.join(found)} in this folder: python -m search.run takes it for Unfreeze's own package"
        yield Finding("folder", "note", said, "call unfreeze, which does not look here, or rename")


def of_disk() -> Iterator[Finding]:
    """Free space where a search writes; a place on the same disk as another is not listed again."""
    places = {
        "cache": Path(DataConfig().cache),
        "artifacts": Path(TrackingConfig().artifacts),
        "temporary files": Path(tempfile.gettempdir()),
    }
    seen = set()
    for what, place in places.items():
        there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
        if (device := there.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        state: State = "fails" if free < _FULL else "note" if free < _TIGHT else "ok"
        remedy = "" if state == "ok" else f"make room; {spelled('housekeeping')} --days 7 removes old caches"
        yield Finding("disk", state, f"{free / 2**30:,.1f} GiB free for {what} ({place})", remedy)


def of_devices() -> Iterator[Finding]:
    """CPU and GPUs, each with what torch makes of it."""
    with importing():
        import psutil
        import torch

        from trainers import choose_device
    cores = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else psutil.cpu_count() or 1
    memory = psutil.virtual_memory().available / 2**30
    threads = torch.get_num_threads()
    yield Finding("CPU", "ok", f"{cores} cores, {threads} threads, {memory:,.1f} GiB of memory free")
    drivers = _gpus_of_driver()
    if not torch.cuda.is_available():
        if drivers:
            found = f"the driver has {', '.join(drivers)}, which torch {torch.__version__} cannot use"
            yield Finding("GPU", "fails", found, "install a torch for this driver: pytorch.org/get-started")
        else:
            is_mps = torch.backends.mps.is_available()
            yield Finding("GPU", "ok" if is_mps else "note", "Apple's, by MPS" if is_mps else "none: the CPU trains")
        return
    for index in range(torch.cuda.device_count()):
        try:
            device = choose_device(f"cuda:{index}")
            # A product, since a card that can be named may still not compute.
            torch.ones(64, 64, device=device.torch).mm(torch.ones(64, 64, device=device.torch)).sum().item()
            yield Finding("GPU", "ok", f"{device.description}, {device.free_bytes / 2**30:,.1f} GiB of memory free")
        except (ConfigError, RuntimeError) as error:
            yield Finding("GPU", "fails", f"cuda:{index}: {first_line(error)}", "nvidia-smi says what is wrong")


def _gpus_of_driver() -> list[str]:
    """The GPUs that NVIDIA's driver knows, whether torch can use them or not."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []


def of_hub() -> Finding:
    """Whether the hub answers."""
    from trainers.hub import hub_obstacle

    obstacle = hub_obstacle()
    if obstacle is None:
        return Finding("hub", "ok", "answers")
    return Finding("hub", "note", f"{obstacle}: weights come from packages and files", "model.weights=embedded, =/file")


def of_optuna(url: str) -> Finding:
    """Whether Optuna's store can be opened, or made."""
    import optuna
    from optuna.storages import RDBStorage

    from search.storage import OPTUNA_TABLE, absolute_sqlite, check_begun, check_store, open_storage

    check_store("store.url", url, OPTUNA_TABLE, "opened", lambda: None)
    shown = without_password(url)
    try:
        check_begun("store.url", url, OPTUNA_TABLE)
    except ConfigError:
        return Finding("store.url", "ok", f"{shown} is not there yet; a search makes it")
    storage = open_storage(absolute_sqlite(url))
    found = f"{shown}: {len(optuna.get_all_study_names(storage)):,} studies"
    if isinstance(storage, RDBStorage):
        found += f", tables of version {storage.get_current_version()}"
    return Finding("store.url", "ok", found)


def of_mlflow(uri: str) -> Finding:
    """Whether MLflow's store can be read, or made."""
    from search.storage import MLFLOW_TABLE, check_begun, check_store, reachable, reading_mlflow

    shown, server = without_password(uri), ""
    if uri.startswith(("http://", "https://")):
        # Asked here, since MLflow itself would wait for minutes.
        with urlopen(f"{reachable(uri).rstrip('/')}/version", timeout=_PATIENCE / 2) as answer:
            server = f", a server of MLflow {answer.read(20).decode(errors='replace')}"
    check_store("tracking.uri", uri, MLFLOW_TABLE, "opened", lambda: None)
    try:
        check_begun("tracking.uri", uri, MLFLOW_TABLE)
    except ConfigError:
        return Finding("tracking.uri", "ok", f"{shown} is not there yet; a search makes it")
    with reading_mlflow(uri, "the list of studies") as client:
        count = len(client.search_experiments())
    return Finding("tracking.uri", "ok", f"{shown}: {count:,} experiments{server}")


def in_time(what: str, look: Callable[[], Finding]) -> Finding:
    """What a look at something finds that may not answer; an error is a finding too."""
    found = [Finding(what, "fails", f"no answer within {_PATIENCE:.0f} s", "is its server there?")]

    def try_it() -> None:
        try:
            found[0] = look()
        except Exception as error:  # each library has errors of its own
            found[0] = Finding(what, "fails", without_password(first_line(error)))

    # A daemon: the command ends without it.
    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return found[0]


def doctor(words: Sequence[str]) -> int:
    """Print what was found, and return the exit code.

    Raises:
        ConfigError: The words name no study.
    """
    from rich.text import Text

    from search.reporting import SafeConsole, widened

    console, broken = widened(SafeConsole(highlight=False)), []
    # Each line as it is found: some wait for a server.
    for one in examine(words):
        line = Text.assemble((f"{one.state:<6}", _STYLES[one.state]), f"{one.what:<17}", one.found)
        console.print(line, soft_wrap=True)
        if one.remedy:
            console.print(Text(f"{'':23}-> {one.remedy}", "dim"), soft_wrap=True)
        broken += [one.what] if one.state == "fails" else []
    console.print(Text(f"Does not work: {', '.join(broken)}" if broken else "A search can begin"), soft_wrap=True)
    return FAILED if broken else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("doctor"),
        description="Check what of this machine and this installation works.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="STUDY or key=value", help="a study, or where the stores are")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: doctor(options.words), "nothing was changed")


if __name__ == "__main__":
    sys.exit(main())
