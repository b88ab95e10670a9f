"""The notebooks run from top to bottom on a small store, and define nothing."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.parts import BuiltStore

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
LONG = ("03_robustness", "04_looks")


def in_time(path: Path) -> object:
    """Long ones are for `make check`."""
    return pytest.param(path, marks=pytest.mark.slow) if path.stem in LONG else path


@pytest.mark.parametrize("path", map(in_time, NOTEBOOKS), ids=lambda path: path.stem)
def test_runs(path: Path, built_store: BuiltStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VS_CONF", str(built_store.conf))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent.parent)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_defines_nothing_and_carries_no_output(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            defined = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            assert not defined and not cell.outputs
