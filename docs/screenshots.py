"""The README's pictures, made anew: ``python docs/screenshots.py`` runs its search in a temporary folder."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
STUDY = "resnet_cls"
# As little as can be read in a README.
_COLUMNS, _WIDTH, _HEIGHT = 118, 1180, 1000
# Without the web font that rich's own page loads.
_SVG = """\
<svg class="{unique_id}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
font-size: {char_height}px; line-height: {line_height}px; }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}</defs>
<rect fill="#1c1c1c" x="1" y="1" width="{terminal_width}" height="{height}" rx="8" />
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def python(folder: Path, *words: str) -> str:
    """Run a command in a folder, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout


def terminal(printed: str, path: Path) -> None:
    """Draw what a search prints as it ends."""
    console = Console(record=True, width=_COLUMNS, file=Path(os.devnull).open("w"), force_terminal=True)  # noqa: SIM115
    lines = printed.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("Best strategies"))
    console.print(f"$ python -m search.run study={STUDY}", style="bold", highlight=False)
    console.print("...", style="dim", highlight=False)
    for line in lines[start - 3 :]:
        console.print(re.sub(r"\s+$", "", line), highlight=False, markup=False)
    path.write_text(console.export_svg(code_format=_SVG, theme=DIMMED_MONOKAI, unique_id="terminal"), encoding="utf-8")


def report(page: Path, path: Path) -> None:
    """Photograph the beginning of a report."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
        opened.goto(page.as_uri())
        opened.locator("#plot-depth .main-svg").first.wait_for()
        opened.screenshot(path=path)
        browser.close()


def main() -> None:
    """Run the search and draw both pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        terminal(python(folder, "search.run", f"study={STUDY}"), IMAGES / "terminal.svg")
        python(folder, "search.report", STUDY)
        report(folder / f"{STUDY}-report.html", IMAGES / "report.png")


if __name__ == "__main__":
    main()
