"""Who owns a trial or a temporary folder, and whether that process still runs."""

import json
import os

from search.processes import drop_left_over, is_gone, owner, temporary_folder


def test_an_owner_of_an_earlier_boot_is_gone_whatever_runs_under_its_number_now():
    mine = json.loads(owner())
    assert not is_gone(json.dumps(mine))
    assert is_gone(json.dumps(mine | {"boot": "another"}))
    # As earlier versions wrote it.
    del mine["boot"]
    assert not is_gone(json.dumps(mine))
    assert is_gone(json.dumps(mine | {"started": mine["started"] + 3}))


def test_only_folders_of_ended_processes_of_this_host_are_removed(tmp_path):
    ended = json.loads(owner()) | {"boot": "another"}
    owners = {
        "ended": json.dumps(ended),
        "elsewhere": json.dumps(ended | {"host": "elsewhere"}),
        "cut-off": "",
        "nameless": None,
        "of-others": None,
        "just-made": None,
    }
    for name, text in owners.items():
        (tmp_path / f"unfreeze-tmp-{name}").mkdir()
        if text is not None:
            (tmp_path / f"unfreeze-tmp-{name}" / ".owner").write_text(text)
    (tmp_path / "unfreeze-tmp-of-others" / "file").touch()
    for name in ("nameless", "of-others"):
        os.utime(tmp_path / f"unfreeze-tmp-{name}", (0, 0))
    with temporary_folder(tmp_path) as mine:
        (mine / "file").touch()
        drop_left_over(tmp_path)
        left = {f"unfreeze-tmp-{name}" for name in ("elsewhere", "of-others", "just-made")}
        assert {path.name for path in tmp_path.iterdir()} == left | {mine.name}
        assert (mine / "file").exists()
    assert {path.name for path in tmp_path.iterdir()} == left
