"""Reads the manifests of deploy/ and the Dockerfile for the tests beside this file."""

import functools
import os
import pathlib
import re
import subprocess
import sys

import yaml

SOURCE = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = SOURCE / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
USER = 10001  # As whom every container of ours runs.
sys.path.insert(0, str(SOURCE / "tests" / "integration"))
import server_process


class UniqueKeyLoader(yaml.SafeLoader):
    """A key given twice is an error: the plain loader keeps the last one in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"{node.start_mark}: a key twice in {keys}")
        return super().construct_mapping(node, deep)


def read(path: pathlib.Path) -> list[dict]:
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader))


@functools.cache
def server_flags() -> frozenset[str]:
    text = subprocess.run([os.environ["C3POD"], "--help"], capture_output=True, text=True, check=True).stdout
    flags = frozenset(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert {"--listen", "--metrics-port"} <= flags
    return flags


def check_flags(arguments: list[str]) -> None:
    assert {argument.partition("=")[0] for argument in arguments} <= server_flags(), arguments


def accepted(*command: str | pathlib.Path) -> None:
    """By a program of the deploy tools."""
    python = max(server_process.cache_folder().glob("deploy-tools-*/bin/python"))
    done = subprocess.run([python, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest), continuation lines joined."""
    text = re.sub(r"\\\n", " ", (SOURCE / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """name -> (parent, instructions)"""
    found: dict[str, tuple[str, list]] = {}
    for instruction, rest in dockerfile():
        if instruction == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            assert name not in found
            found[name] = (parent, [])
            current = found[name][1]
        else:
            current.append((instruction, rest))
    return found


def lineage(name: str) -> list[tuple[str, str]]:
    """Instructions of a stage and of the stages it is made from."""
    parent, instructions = stages()[name]
    return (lineage(parent) if parent in stages() else []) + instructions


def objects() -> dict[tuple[str, str], dict]:
    found = {}
    for path in [*KUBERNETES.glob("*.yaml"), *(KUBERNETES / "monitoring").glob("*.yaml")]:
        for document in read(path):
            if "kind" in document and document["kind"] != "Kustomization":
                key = (document["kind"], document["metadata"]["name"])
                assert key not in found, key
                found[key] = document
    return found
