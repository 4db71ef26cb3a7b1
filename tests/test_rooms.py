"""The rooms of the code: what is imported from another room comes through its front door, and no piece grows too long.

``lint-imports`` holds which room may import which; this holds how.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("search", "trainers", "strategies")
FILES = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
ROOMS = {
    ".".join(stub.parent.relative_to(ROOT).parts): stub
    for package in PACKAGES
    for stub in (ROOT / package).rglob("__init__.pyi")
}
# Lines of a file, lines of a function without its docstring, and methods of a class.
MOST_LINES, MOST_FUNCTION_LINES, MOST_METHODS = 450, 60, 20
# The one table of a strategy's fields, as its docstring says.
DEFENDED = {"strategies/strategy.py"}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def rooms_of(module: str) -> list[str]:
    """The rooms that a module is in, the outermost first; the packages themselves are none."""
    parts = module.split(".")
    return [room for end in range(2, len(parts)) if (room := ".".join(parts[:end])) in ROOMS]


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """The modules that a file imports names from, and the lines; imports in functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] in PACKAGES:
            yield node.module, node.lineno


def test_names_of_another_room_are_imported_from_its_front_door():
    found = []
    for file in FILES:
        inside = rooms_of(f"{name_of(file)}.x")
        for module, line in imports_of(file):
            if any(room not in inside for room in rooms_of(module)):
                found.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert not found


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_exported_name_is_that_of_a_module_beside_it(room):
    folder = ROOMS[room].parent
    modules = {file.stem for file in folder.glob("*.py")} | {one.name for one in folder.iterdir() if one.is_dir()}
    exported = {alias.asname for node in ast.parse(ROOMS[room].read_text()).body for alias in node.names}
    assert not exported & modules


def test_files_functions_and_classes_are_short_or_say_why_not():
    found = []
    for file in FILES:
        text, place = file.read_text(), str(file.relative_to(ROOT))
        if len(text.splitlines()) > MOST_LINES and place not in DEFENDED:
            found.append(place)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                length = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
                if length > MOST_FUNCTION_LINES:
                    found.append(f"{place}: {node.name}")
            if isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                found += [f"{place}: {node.name}"] * (len(methods) > MOST_METHODS)
    assert not found
