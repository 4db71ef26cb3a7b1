"""Pages of the documentation that lie elsewhere in the repository, for mkdocs."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# From the name of a page to its file in the repository.
ELSEWHERE = {
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "resnet18.md": "trainers/embedded/resnet18.md",
}
ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere in the repository."""
    for page, path in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links to those files into links to their pages."""
    for name, path in ELSEWHERE.items():
        for link in (f"](../{path})", f"]({path})"):
            markdown = markdown.replace(link, f"]({name})")
    if page.file.src_uri in ELSEWHERE:
        markdown = (
            markdown.replace("](docs/", "](").replace("](../docs/", "](").replace("](../README.md)", "](index.md)")
        )
    return markdown
