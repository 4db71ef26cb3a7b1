"""Wrong values for every key, by file, by word and from Python: each is refused by name, and leaves nothing behind.

``UNFREEZE_WRONG_VALUES=1000 pytest tests/search/config/test_wrong_values.py`` draws as many as that.
"""

import io
import math
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.config import build_config, compose_study, configure, schema_keys
from search.run import main
from strategies import ConfigError

KEYS = sorted(key.name for key in schema_keys())
# Keys below mappings, which the schema does not list.
NESTED = [
    *(f"strategy.lr.{key}" for key in ("low", "high", "log", "step", "choices", "value", "when", "when.depth")),
    *(f"strategy.batch_size.choices.{key}" for key in ("low", "x")),
    *(f"presets.mine.{key}" for key in ("lr", "loss", "nonsense")),
    *(f"data.manifest.{key}" for key in ("train", "nonsense")),
    "data.columns.label",
    "executor.resources.disk",
    "budget.trials.low",
]
# No key of any kind takes these.
NEVER = [math.nan, math.inf, -math.inf, 10**19, -(10**400), "a\0b", "caf\udce9", "x" * 5000, [[["\0"]]]]
NEVER += [{"a": {"b\0": 1}}]
# As they stand in a file; they are no values of ours either.
RAW = ["7" * 6000, "0x" + "f" * 5000, "[" * 30 + "]" * 30, "&a [*a]", "*nobody", "!!python/name:os.system"]
RAW += ["${nobody}", "${seed", "${oc.env:NOBODY_SETS_THIS}", "{a: 1, a: 2}", "[1, 2", "!!int x", '"\\x00"', "!!set {a}"]

any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(NEVER),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


def nested(key: str, value: Any) -> dict[str, Any]:
    """A study with one key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def is_accepted(key: str, value: Any) -> bool:
    try:
        build_config(nested(key, value))
    except ConfigError:
        return False
    return True


def is_accepted_as_word(file: Path, word: str) -> bool:
    try:
        compose_study([f"study={file}", word])
    except ConfigError:
        return False
    return True


def said_of(*words: str) -> str:
    """What the command says of words that it must refuse."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(list(words)) == 2
    said = err.getvalue()
    assert said.startswith("error: ")
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert len(said) < 5000
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder that is the working folder."""
    place, before = tmp_path_factory.mktemp("wrong"), Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


@settings(
    max_examples=int(os.environ.get("UNFREEZE_WRONG_VALUES", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(
    st.sampled_from(KEYS) | st.sampled_from(NESTED),
    st.sampled_from(["file", "word", "python", "raw file", "raw word"]),
    any_value | st.sampled_from(NEVER),
    st.sampled_from(RAW),
)
def test_a_wrong_value_is_refused_by_name_and_nothing_is_left(folder, key, form, value, raw):
    file, name = folder / "mine.yaml", ".".join(key.split(".")[:2])
    if form == "raw file":
        *above, last = key.split(".")
        text = "".join("  " * depth + f"{part}:\n" for depth, part in enumerate(above))
        file.write_text(f"{text}{'  ' * len(above)}{last}: {raw}\n")
        said = said_of(f"study={file}")
    elif form in ("word", "raw word"):
        file.write_text("seed: 0\n")
        word = f"{key}={raw if form == 'raw word' else value}"
        if is_accepted_as_word(file, word):
            return
        said = said_of(f"study={file}", word)
    elif is_accepted(key, value):
        assert not any(value is never for never in NEVER)
        return
    elif form == "file":
        file.write_text(yaml.safe_dump(nested(key, value), allow_unicode=False))
        said = said_of(f"study={file}")
    else:
        with pytest.raises(ConfigError) as caught:
            configure({"name": "mine", **nested(key, value)}, [], {})
        said = str(caught.value)
    # Broken YAML has no keys to name, only lines.
    assert name in said or (form in ("raw file", "file") and str(file) in said), said
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]
