"""Processes that are copies of the command: they behave as those that Python starts, but for the time that takes."""

import json
import os
from pathlib import Path

from copies import REPOSITORY, copies

# What a process is asked to do, by its first line.
MODULE = """
import os, signal, sys, torch

def main():
    match input():
        case "tell":
            variables = os.environ["NEW"], os.environ["OLD"]
            print(os.getcwd(), *variables, os.getsid(0) == os.getpid(), torch.get_num_threads())
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ValueError("on purpose")
    return 7

if __name__ == "__main__":
    sys.exit(main())
"""
# A command with a forkserver; what it prints comes from the code in the middle.
COMMAND = """
import json, os, signal, sys, threading
sys.path.insert(0, os.getcwd())
os.environ["OLD"] = "old"
import search.study
from search.processes.forkserver import Copy, start_process, warm_forkserver

def ask(word, **environment):
    process = start_process("asked", {"NEW": "new", **environment})
    print(word, file=process.stdin, flush=True)
    return process

{before}
with warm_forkserver(is_wanted=True):
    {code}
"""


def printed(folder: Path, code: str, before: str = "") -> tuple[list, str]:
    """What a command prints as JSON, and what there is on its standard error."""
    (folder / "asked.py").write_text(MODULE)
    command = COMMAND.replace("{code}", code.replace("\n", "\n    ")).replace("{before}", before)
    process = copies().start(command, [], folder, {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}"})
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out), err


def test_a_copy_has_the_folder_the_variables_and_the_threads_that_it_was_given_and_a_session_of_its_own(tmp_path):
    code = """process = ask("tell", OMP_NUM_THREADS="3")
print(json.dumps([process.stdout.read().split(), process.wait(), type(process) is Copy]))"""
    (told, code, is_copy), _ = printed(tmp_path, code)
    assert told == [str(tmp_path), "new", "old", "True", "3"]
    assert (code, is_copy) == (7, True)


def test_exit_codes_are_those_of_any_process(tmp_path):
    code = """processes = [ask("kill"), ask("raise"), ask("end")]
codes = [process.wait(60) for process in processes]
processes.append(ask("tell"))
os.killpg(processes[-1].pid, signal.SIGTERM)
print(json.dumps([*codes, processes[-1].wait(60), processes[-1].poll()]))"""
    codes, err = printed(tmp_path, code)
    assert codes[:3] == [-9, 1, 7]
    assert codes[3] in (7, -15)
    assert codes[4] == codes[3]
    assert "ValueError: on purpose" in err


def test_the_number_of_a_copy_is_no_other_process_before_its_exit_code_was_taken(tmp_path):
    code = """process = ask("kill")
process.stdout.read()
before = os.path.exists(f"/proc/{process.pid}")
process.wait()
while os.path.exists(f"/proc/{process.pid}"):
    pass
print(json.dumps([before]))"""
    assert printed(tmp_path, code)[0] == [True]


def test_once_the_forkserver_was_killed_its_copies_are_ended_and_others_are_started_as_usual(tmp_path):
    code = """from search.processes.forkserver import _open
first = start_process("asked", {"NEW": "new"})
os.kill(_open[0].pid, signal.SIGKILL)
codes = [first.wait(60)]
process = ask("tell")
print(json.dumps([codes, process.stdout.read().split()[1:3], process.wait(60), type(process) is Copy]))"""
    assert printed(tmp_path, code)[0] == [[-9], ["new", "old"], 7, False]


def test_a_command_that_has_threads_is_not_copied(tmp_path):
    thread = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    code = """process = ask("tell")
print(json.dumps([process.stdout.read().split()[1:3], process.wait(60), type(process) is Copy]))"""
    assert printed(tmp_path, code, before=thread)[0] == [["new", "old"], 7, False]
