"""The commit of the code that a study runs."""

import subprocess


def git_commit() -> str:
    """The commit checked out in the working folder, with ``+`` where files differ; ``""`` outside of git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
