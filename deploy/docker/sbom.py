#!/usr/bin/env python3
"""Writes the bill of materials of an image, CycloneDX 1.5 as JSON: c3pod and c3po, every shared library staged beside them with its
SHA-256 and the package that it came from, what is compiled in from headers, and the packages of the base image.

    sbom.py --stage ROOT --sources FILE --output FILE [--compiled-in PATH ...] [--archive FILE ...] [--base-status FILE]

--sources: a line NAME<TAB>PATH per staged library, where stage.sh took it. --compiled-in: a file of a wheel whose code is in
libc3po_cuda.so, which is our own and in no package. --archive: a line NAME==VERSION --hash=sha256:DIGEST of a source archive of PyPI
whose code is in the programs. --base-status: /var/lib/dpkg/status of the base image;
without it the base is left out, and the bill says so. The same inputs give the same bytes. A library whose package is not known is
an error: a bill with holes is none. Standard library only; asks dpkg-query, and the metadata of wheels."""

import argparse
import csv
import email.parser
import hashlib
import json
import pathlib
import subprocess
import sys
import uuid

# Of deploy/install_deps.sh, without a library of their own: their code is compiled into the programs.
COMPILED_IN = ("libhnswlib-dev", "nlohmann-json3-dev", "libboost1.74-dev", "libcli11-dev")
OWN_LIBRARIES = ("libc3po_cuda.so",)
NAMESPACE = uuid.UUID("6f3b1c5e-2f0c-5a37-9d0e-0c3b0c3b0c3b")  # Ours, of serial numbers.


def sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def debian_owners(paths: list[pathlib.Path]) -> dict[pathlib.Path, str]:
    """The packages that have these files, each of which may be known below / or below /usr; a file of none is left out."""
    known_as: dict[str, pathlib.Path] = {}
    for path in paths:
        for name in (str(path), str(path.resolve())):
            bare = name.removeprefix("/usr")
            known_as |= {bare: path, "/usr" + bare: path}
    # It fails where it knows one of the names not, and tells of the others all the same.
    found = subprocess.run(["dpkg-query", "-S", *sorted(known_as)], capture_output=True, text=True, check=False).stdout
    owners = {}
    for line in found.splitlines():
        packages, _, name = line.rpartition(": ")
        if name in known_as:
            owners[known_as[name]] = packages.partition(",")[0]
    return owners


def deb(name: str, version: str, architecture: str, use: str) -> dict:
    return {"type": "library", "name": name, "version": version, "bom-ref": f"deb:{name}",
            "purl": f"pkg:deb/debian/{name}@{version.replace(':', '%3A').replace('+', '%2B')}?arch={architecture}&distro=debian-12",
            "properties": [{"name": "c3po:use", "value": use}]}


def installed(package: str, use: str) -> dict:
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}", package], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise SystemExit(f"sbom.py: package {package} is not installed, and its code is in the programs")
    return deb(*done.stdout.split("\t"), use)


def wheel_of(path: pathlib.Path, use: str = "shared library") -> dict | None:
    """The wheel that a file was installed with: its RECORD lists the file."""
    for site in path.parents:
        for record in sorted(site.glob("*.dist-info/RECORD")):
            relative = str(path.relative_to(site))
            with open(record, encoding="utf-8", newline="") as lines:
                if not any(row and row[0] == relative for row in csv.reader(lines)):
                    continue
            metadata = email.parser.Parser().parsestr((record.parent / "METADATA").read_text(encoding="utf-8"), headersonly=True)
            name, version = metadata["Name"], metadata["Version"]
            return {"type": "library", "name": name, "version": version, "bom-ref": f"pypi:{name}",
                    "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}",
                    "properties": [{"name": "c3po:use", "value": use}]}
    return None


def base_packages(status: str) -> list[dict]:
    packages = []
    for paragraph in status.split("\n\n"):
        fields = email.parser.Parser().parsestr(paragraph.strip() + "\n\n", headersonly=True)
        if fields["Package"] and (fields["Status"] or "").split()[-1:] == ["installed"]:
            packages.append(deb(fields["Package"], fields["Version"], fields["Architecture"], "base image"))
    return packages


def staged(stage: pathlib.Path, sources: str) -> list[dict]:
    """The packages of the staged libraries, each with the files that came from it."""
    came_from = dict(line.split("\t") for line in sources.splitlines())
    libraries = sorted(path for path in (stage / "opt/c3po/lib").iterdir() if path.name not in OWN_LIBRARIES)
    for library in libraries:
        if library.name not in came_from:
            raise SystemExit(f"sbom.py: {library.name} is staged, and nobody says where it was taken")
    owners = debian_owners([pathlib.Path(came_from[library.name]) for library in libraries])
    of_package = {owner: installed(owner, "shared library") for owner in set(owners.values())}
    packages: dict[str, dict] = {}
    for library in libraries:
        path = pathlib.Path(came_from[library.name])
        package = of_package[owners[path]] if path in owners else wheel_of(path.resolve())
        if package is None:
            raise SystemExit(f"sbom.py: {path} is of no package of Debian, and of no wheel")
        file = {"type": "file", "name": library.name, "hashes": [{"alg": "SHA-256", "content": sha256(library)}]}
        packages.setdefault(package["bom-ref"], package).setdefault("components", []).append(file)
    return list(packages.values())


def compiled_in_wheel(path: pathlib.Path) -> dict:
    wheel = wheel_of(path.resolve(), "compiled in")
    if wheel is None:
        raise SystemExit(f"sbom.py: {path} is of no wheel, and its code is in libc3po_cuda.so")
    return wheel


def compiled_archive(path: pathlib.Path) -> dict:
    requirement, _, digest = path.read_text(encoding="utf-8").strip().partition(" --hash=sha256:")
    name, _, version = requirement.partition("==")
    if not (name and version and digest):
        raise SystemExit(f"sbom.py: {path} is no line NAME==VERSION --hash=sha256:DIGEST")
    return {"type": "library", "name": name, "version": version, "bom-ref": f"pypi:{name}", "purl": f"pkg:pypi/{name}@{version}",
            "hashes": [{"alg": "SHA-256", "content": digest}], "properties": [{"name": "c3po:use", "value": "compiled in"}]}


def bill(stage: pathlib.Path, sources: str, static: list[pathlib.Path], archives: list[pathlib.Path], status: str | None) -> dict:
    own = [path for name in OWN_LIBRARIES if (path := stage / "opt/c3po/lib" / name).exists()]
    programs = [{"type": "application", "name": path.name, "bom-ref": path.name,
                 "hashes": [{"alg": "SHA-256", "content": sha256(path)}]} for path in sorted((stage / "opt/c3po/bin").iterdir()) + own]
    version = subprocess.run([stage / "opt/c3po/bin/c3pod", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    components = staged(stage, sources) + [installed(name, "compiled in") for name in COMPILED_IN] + list(map(compiled_archive, archives))
    # libtorch brings the shared library of a wheel whose static one is in ours.
    components += [wheel for wheel in map(compiled_in_wheel, static) if wheel["bom-ref"] not in {c["bom-ref"] for c in components}]
    known = {component["bom-ref"] for component in components}
    base = [package for package in base_packages(status or "")]
    for package in base:  # The image has both: the base's own copy, and the staged one.
        if package["bom-ref"] in known:
            package["bom-ref"] += ":base"
    components = sorted(programs + components + base, key=lambda component: component["bom-ref"])
    made = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "metadata": {"component": {"type": "container", "name": "c3po", "version": version, "bom-ref": "c3po"},
                         "properties": [{"name": "c3po:base", "value": "listed" if status is not None else "left out"},
                                        {"name": "c3po:inside-wheels", "value": "what wheels link statically is not told apart"}]},
            "components": components,
            "dependencies": [{"ref": "c3po", "dependsOn": sorted(component["bom-ref"] for component in components)}]}
    content = json.dumps(made, sort_keys=True)
    return made | {"serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, content)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=pathlib.Path, required=True)
    parser.add_argument("--sources", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--compiled-in", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--archive", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--base-status", type=pathlib.Path)
    arguments = parser.parse_args()
    status = arguments.base_status.read_text(encoding="utf-8") if arguments.base_status else None
    made = bill(arguments.stage, arguments.sources.read_text(encoding="utf-8"), arguments.compiled_in, arguments.archive, status)
    arguments.output.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {len(made['components'])} components", file=sys.stderr)


if __name__ == "__main__":
    main()
