"""c3po-client as a user gets it: its wheel, built by pip from a copy of the clone, in a virtual environment of its own. Nothing is
downloaded: the compiler of the stubs and the dependencies are those of the interpreter that runs this."""

import pathlib
import shutil
import subprocess
import sys
import sysconfig

SOURCE = pathlib.Path(__file__).resolve().parents[3]
IGNORED = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "dist")


def copy_clone(folder: pathlib.Path) -> pathlib.Path:
    """What of the clone the wheel is made of, so that no build folder is left in the clone itself. The package's folder."""
    for part in ("client/python", "proto"):
        shutil.copytree(SOURCE / part, folder / part, ignore=IGNORED)
    return folder / "client" / "python"


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def build_wheel(folder: pathlib.Path) -> pathlib.Path:
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheels", copy_clone(folder / "clone"))
    (wheel,) = (folder / "wheels").glob("c3po_client-*.whl")
    return wheel


def fresh_environment(folder: pathlib.Path) -> pathlib.Path:
    """The interpreter of a virtual environment with the wheel."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip("--python", python, "install", "--no-index", "--no-deps", build_wheel(folder))
    (site,) = venv.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
