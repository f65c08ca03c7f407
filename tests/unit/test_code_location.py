"""The code location loads fast, and the arrows run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = (
    "grizli",
    "jwst",
    "drizzlepac",
    "matplotlib",
    "astroquery",
    "crds",
    "stdatamodels",
    "poppy",
    "pysiaf",
    "photutils",
)
LAYERS = {"panoramic": 0, "resources": 1, "panoramic_assets": 2, "sensors": 3}


def test_no_heavy_package_is_imported_at_load() -> None:
    code = (
        "import sys, panoramic_assets.definitions as d\n"
        "d.defs.resolve_asset_graph()\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_arrows_run_one_way(layer: str) -> None:
    """sensors -> panoramic_assets -> resources -> panoramic; definitions.py and cli.py alone know the sensors."""
    for path in (PROJECT / layer).rglob("*.py"):
        above = {name for name, level in LAYERS.items() if level > LAYERS[layer]} & imports(path)
        if path.name in ("definitions.py", "cli.py"):
            above.discard("sensors")
        assert not above, f"{path} imports {above}"


def test_the_library_is_pure() -> None:
    """No Dagster, no database, no environment (a child process of foreign code may have one)."""
    for path in (PROJECT / "panoramic").rglob("*.py"):
        assert not imports(path) & {"dagster", "sqlalchemy", "alembic"}, path
        if path.name not in ("grizli_child.py", "crds_lookup.py"):  # foreign code that is told by nothing else
            assert "os.environ" not in path.read_text(), path


def test_all_jobs_and_checks_are_there() -> None:
    from panoramic_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    found: dict[str, set[str]] = {}
    for key in graph.asset_check_keys:
        found.setdefault(key.asset_key.to_user_string(), set()).add(key.name + "!" * bool(graph.get(key).blocking))
    assert found == {
        "observations": {"exposures_complete", "archive_count", "nothing_held_back"},
        "associations": {"associations_unique!", "nothing_held_back"},
        "astrometric_reference": {"relative_alignment!", "absolute_alignment!", "reference_source_count!", "nothing_held_back"},
        "preprocessed_visits": {
            "relative_alignment!", "absolute_alignment!", "exposures_accounted!", "no_degradation", "nothing_held_back",
        },
        "mosaics": {"mosaic_astrometry!", "mosaic_coverage!", "nothing_held_back"},
    }  # fmt: skip
    assert graph.get(__import__("dagster").AssetKey("mast_archive")).is_external
