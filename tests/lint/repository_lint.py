#!/usr/bin/env python3
"""Checks the rules of the house over the files that git tracks: who may include whom, where third parties may be seen, names, one
type per name, header guards, machine paths, lengths of files and functions. Prints one line per violation, `path:line: [rule] what`, and exits 1 if
there are any.

    repository_lint.py [--root DIR]

Exceptions stand in exceptions.txt beside this file, one a line: `rule path reason...`. An exception that nothing needs any more
is itself a violation. Only the standard library is used.
"""

import argparse
import os
import re
import subprocess
import sys
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

import device_questions
import kernel_rules
import lengths
from rooms import EVERY_SERVER_ROOM, EVERY_SERVER_ROOM_HEADERS, INDEX_ROOMS, KERNELS_DOOR_TO_TESTS, SERVER_ROOMS

CPP_SUFFIXES = (".h", ".cc", ".cu", ".cuh")
HEADER_SUFFIXES = (".h", ".cuh")
SKIPPED_FOLDERS = {".git", "build", ".cache", "__pycache__"}  # Where there is no git to ask.

TOP_FOLDERS = ("index", "server", "client", "tests", "proto")
STAND_INS = ("tests/server/sixteen_lanes/",)  # Headers in place of a third party's, under its own paths.
GENERATED_PROTO = re.compile(r"\.(grpc\.)?pb\.h$")  # Counts as the room `proto`.

# --- Third parties: a regular expression over the included name. ---
# In at most one .cc of index/ and server/; tests may use them too.
ONE_FILE_PARTIES = {
    "hnswlib": re.compile(r"^hnswlib/"),
    "sqlite": re.compile(r"^sqlite3(ext)?\.h$"),
    "libpq": re.compile(r"^(postgresql/|libpq-(fe|events)\.h$)"),
    "prometheus-cpp": re.compile(r"^prometheus/"),
    "spdlog": re.compile(r"^spdlog/"),
    "xgrammar": re.compile(r"^(xgrammar|dlpack)/"),
}
# Only below these prefixes.
PLACED_PARTIES = {
    "gRPC and protobuf": (re.compile(r"^(grpcpp|grpc|google/protobuf|google/rpc)/"),
                          ("server/rpc/", "server/main.cc", "client/", "tests/")),
    "libtorch": (re.compile(r"^(torch|ATen|c10)/"), ("server/compute/aten/", "server/embed/", "server/compute/device_queue.h", "server/compute/cpu/cpu_queue.", "tests/")),
    "Boost.Asio": (re.compile(r"^boost/(asio|beast)[/.]"), ("server/metrics/http_server.cc", "server/rpc/doors/http/", "tests/")),
    "cpp-httplib": (re.compile(r"^httplib\.h$"), ("tests/",)),
}
SOURCE_ONLY_PARTIES = {"nlohmann": re.compile(r"^nlohmann/")}

BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "manager"}
# A folder of one machine at the start of a path, also right after a compiler's -I or -L.
MACHINE_PATH = re.compile(r"(?:(?<![\w./~})*])|(?<=-[IL]))/(?:work|root|home(?=/))(?![\w-])")
WALL_CLOCK = re.compile(r"absl::Now\b|GetCurrentTimeNanos|system_clock::now|\b\w*[Ww]ait\w*With(?:Timeout|Deadline)\b")
# Stamps that people read, certificates' ends, a date in a chat template, and what gRPC tells by that clock.
WALL_CLOCK_FILES = {"server/metrics/logging.cc", "server/metrics/prometheus_exporter.cc", "server/pipeline/offset_tuner.cc",
                    "server/pipeline/reference_importer.cc", "server/rpc/tls_files.cc", "server/text/chat_format.h",
                    "server/text/chat_renderer.h", "server/rpc/call_context.cc", "server/trace/tracer.cc",
                    "server/rpc/doors/vllm_service.cc", "server/rpc/doors/http/completion_call.cc",
                    "server/rpc/doors/http/model_call.cc"}
FILE_STREAM = re.compile(r"\bstd::i?fstream\b|\bfopen\(")
# Files of the kernel's, and a file that the server has just made itself.
STREAM_FILES = {"index/base/cgroup_limits.cc", "server/process/process_usage.cc", "server/rpc/backup_reactor.cc"}
# In a namespace, which is not indented.
TYPE_DEFINITION = re.compile(r"^(?:struct|class|enum class) (\w+)(?: final)?(?: :[^{;]*)? ?\{", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


class Violation(NamedTuple):
    rule: str
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.rule}] {self.message}"


class Include(NamedTuple):
    path: str
    line: int
    name: str
    quoted: bool


class Exemption(NamedTuple):
    line: int
    rule: str
    path: str


def tracked_files(root: str) -> List[str]:
    """Paths below root, with forward slashes, sorted. Without git (a source archive, a container): all but build folders."""
    command = ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z"]
    try:
        listing = subprocess.run(command, check=True, capture_output=True).stdout.decode()
        paths = [path for path in listing.split("\0") if path]
    except (OSError, subprocess.CalledProcessError):
        paths = []
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
            paths += [os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/") for name in names]
    return sorted(path for path in paths if os.path.isfile(os.path.join(root, path)))


def read_text(root: str, path: str) -> Optional[str]:
    """None for a file that is not UTF-8 text."""
    with open(os.path.join(root, path), "rb") as file:
        content = file.read()
    if b"\0" in content[:8192]:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def includes_of(path: str, text: str) -> List[Include]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            found.append(Include(path, number, match.group(2), match.group(1) == '"'))
    return found


def room_of(path: str) -> str:
    """index/store/a.cc and index/store/deep/a.cc are of index/store, unless index/store/deep is a room itself; server/main.cc is of
    itself; client/... of client."""
    parts = path.split("/")
    if parts[0] in ("index", "server"):
        inner = "/".join(parts[:3])
        return inner if inner in SERVER_ROOMS or inner in INDEX_ROOMS else "/".join(parts[:2])
    return parts[0]


def allowed_target(path: str, name: str) -> bool:
    """Whether the file `path` of this repository may include `name`, also of this repository."""
    room, target = room_of(path), room_of(name)
    if GENERATED_PROTO.search(name):
        target = "proto"
    if path == "server/main.cc":
        return target.startswith(("server/", "index/")) or target == "proto"
    if room == "client":
        return target in ("client", "proto", "index/base", "index/types")
    if (path, name) == KERNELS_DOOR_TO_TESTS:
        return True
    if room == "tests":
        return not path.startswith(("tests/index/", "tests/host_cuda/")) or not name.startswith(("server/", "client/"))
    if target == room:
        return True
    if room in INDEX_ROOMS:
        return target in INDEX_ROOMS[room]
    if room in SERVER_ROOMS:
        if room == "server/types":
            return target in ("index/base", "index/types")
        return target in SERVER_ROOMS[room] | EVERY_SERVER_ROOM or name in EVERY_SERVER_ROOM_HEADERS
    return False


def check_rooms(includes: Iterable[Include], files: Set[str]) -> List[Violation]:
    found = []
    for include in includes:
        if not include.path.startswith(("index/", "server/", "client/", "tests/")):
            continue
        of_repository = include.name.split("/")[0] in TOP_FOLDERS or GENERATED_PROTO.search(include.name)
        if not of_repository:
            relative = include.name.startswith(".") or any(
                path.endswith("/" + include.name) and not path.startswith(STAND_INS) for path in files)
            if include.quoted and relative:
                found.append(Violation("include-path", include.path, include.line,
                                       f'"{include.name}": give the path from the root of the repository'))
            continue
        if not GENERATED_PROTO.search(include.name) and include.name not in files:
            found.append(Violation("include-path", include.path, include.line, f'"{include.name}" is not a tracked file'))
        elif not allowed_target(include.path, include.name):
            found.append(Violation("room", include.path, include.line,
                                   f"{room_of(include.path)} may not include {include.name}"))
    return found


def check_known_rooms(files: Iterable[str]) -> List[Violation]:
    """A new folder under index/ or server/ has to be entered in the tables of rooms.py before it may hold code."""
    found, seen = [], set()
    for path in files:
        room = room_of(path)
        if not path.endswith(CPP_SUFFIXES) or room in seen or not room.startswith(("index/", "server/")):
            continue
        seen.add(room)
        if room not in INDEX_ROOMS and room not in SERVER_ROOMS and room != "server/main.cc":
            found.append(Violation("room", path, 1, f"{room} is in no table of the lint: say what it may include"))
    return found


def check_third_parties(includes: Iterable[Include]) -> List[Violation]:
    found = []
    users: Dict[str, Dict[str, Include]] = {party: {} for party in ONE_FILE_PARTIES}
    for include in includes:
        path, name = include.path, include.name
        for party, pattern in ONE_FILE_PARTIES.items():
            if not pattern.search(name) or path.startswith("tests/"):
                continue
            if not path.startswith(("index/", "server/")) or not path.endswith(".cc"):
                found.append(Violation("third-party", path, include.line,
                                       f"{party} belongs into one .cc under index/ or server/"))
            else:
                users[party].setdefault(path, include)
        for party, (pattern, places) in PLACED_PARTIES.items():
            if pattern.search(name) and not path.startswith(places):
                found.append(Violation("third-party", path, include.line,
                                       f"{party} ({name}) may be seen only in {', '.join(places)}"))
        for party, pattern in SOURCE_ONLY_PARTIES.items():
            if pattern.search(name) and path.endswith(HEADER_SUFFIXES):
                found.append(Violation("third-party", path, include.line, f"{party} ({name}) may be seen only in .cc files"))
    for party, by_path in users.items():
        if len(by_path) > 1:
            for path, include in sorted(by_path.items()):
                found.append(Violation("third-party", path, include.line,
                                       f"{party} is in {len(by_path)} files: {', '.join(sorted(by_path))}"))
    return found


def check_header_guard(path: str, text: str) -> List[Violation]:
    guard = "C3PO_" + re.sub(r"[^A-Z0-9]", "_", path.upper()) + "_"
    directives = [line.strip() for line in text.splitlines() if line.lstrip().startswith("#")]
    found = []
    if directives[:2] != [f"#ifndef {guard}", f"#define {guard}"]:
        found.append(Violation("header-guard", path, 1, f"must begin with #ifndef {guard} and #define {guard}"))
    elif directives[-1] != f"#endif  // {guard}":
        found.append(Violation("header-guard", path, len(text.splitlines()), f"must end with #endif  // {guard}"))
    return found


def types_of(path: str, text: str) -> List[Tuple[str, str, int]]:
    """What a header defines in its namespace: name, path, line."""
    return [(match.group(1), path, text.count("\n", 0, match.start()) + 1) for match in TYPE_DEFINITION.finditer(text)]


def check_one_definition(types: Iterable[Tuple[str, str, int]]) -> List[Violation]:
    """Two types of one name in one program: the linker keeps one of two functions that it takes for the same, such as a
    vector's destructor, and nobody says so. The client's are in no program with the server's."""
    first: Dict[str, str] = {}
    found = []
    for name, path, line in sorted(types, key=lambda definition: definition[1:]):
        for program in ("client", "server"):
            if path.startswith(("client/", "server/")) and not path.startswith(program + "/"):
                continue
            other = first.setdefault(f"{program} {name}", path)
            if other != path:
                found.append(Violation("one-definition", path, line, f"{name} is also defined in {other}"))
                break
    return found


def check_name(path: str) -> List[Violation]:
    for part in path.split("/"):
        banned = BANNED_NAMES.intersection(re.split(r"[^a-z]+", part.lower()))
        if banned:
            return [Violation("name", path, 1, f'"{part}": "{sorted(banned)[0]}" says nothing; name the class or the stage')]
    return []


def check_machine_paths(path: str, text: str) -> List[Violation]:
    return [Violation("machine-path", path, number, f"{match.group(0)} is a folder of one machine")
            for number, line in enumerate(text.splitlines(), 1) for match in MACHINE_PATH.finditer(line)]


def check_wall_clock(path: str, text: str) -> List[Violation]:
    """Durations and deadlines of the server are by the steady clock; absl's timed waits are by the wall clock."""
    if not path.startswith(("server/", "index/")) or not path.endswith(CPP_SUFFIXES) or path in WALL_CLOCK_FILES:
        return []
    return [Violation("wall-clock", path, number, f"{match.group(0)} jumps when the clock is set: SteadyNow(), or Periodic")
            for number, line in enumerate(text.splitlines(), 1) for match in WALL_CLOCK.finditer(line.split("//")[0])]


def check_file_reads(path: str, text: str) -> List[Violation]:
    """A stream waits for a FIFO and reads a device without end. Files that the server is told to open go through ReadWholeFile."""
    if not path.startswith(("server/", "index/")) or not path.endswith(CPP_SUFFIXES) or path in STREAM_FILES:
        return []
    return [Violation("file-reads", path, number, f"{match.group(0)} opens whatever it is given: ReadWholeFile of durable_file.h")
            for number, line in enumerate(text.splitlines(), 1) for match in FILE_STREAM.finditer(line.split("//")[0])]


def check_lengths(path: str, text: str) -> List[Violation]:
    return ([Violation("file-length", path, *fault) for fault in lengths.file_faults(path, text)] +
            [Violation("function-length", path, *fault) for fault in lengths.function_faults(path, text)])


def check_index_kinds(path: str, text: str) -> List[Violation]:
    """Which kind an index is, IndexBuilder alone knows; others ask NeighborIndex what it can."""
    if not path.startswith("index/") or not path.endswith(CPP_SUFFIXES):
        return []
    return [Violation("index-kind", path, number, "dynamic_cast: ask by a method of the interface")
            for number, line in enumerate(text.splitlines(), 1) if "dynamic_cast" in line.split("//")[0]]


def check_device_questions(path: str, text: str) -> List[Violation]:
    return ([Violation("device-question", path, *fault) for fault in device_questions.question_faults(path, text)] +
            [Violation("device-name", path, *fault) for fault in device_questions.name_faults(path, text)])


def read_exceptions(root: str, path: str) -> Tuple[List[Exemption], List[Violation]]:
    text = read_text(root, path) if os.path.isfile(os.path.join(root, path)) else ""
    exemptions, found = [], []
    for number, line in enumerate((text or "").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=2)
        if len(words) < 3:
            found.append(Violation("exceptions", path, number, "an exception is `rule path reason`"))
        else:
            exemptions.append(Exemption(number, words[0], words[1]))
    return exemptions, found


def apply_exceptions(found: List[Violation], exemptions: List[Exemption], path: str) -> List[Violation]:
    granted = {(exemption.rule, exemption.path) for exemption in exemptions}
    needed = {(violation.rule, violation.path) for violation in found}
    left = [violation for violation in found if (violation.rule, violation.path) not in granted]
    for exemption in exemptions:
        if (exemption.rule, exemption.path) not in needed:
            left.append(Violation("exceptions", path, exemption.line,
                                  f"{exemption.path} does not need the exception from {exemption.rule}"))
    return left


def lint(root: str, exceptions: str = "tests/lint/exceptions.txt") -> List[Violation]:
    files = tracked_files(root)
    includes: List[Include] = []
    types: List[Tuple[str, str, int]] = []
    sources: Dict[str, str] = {}
    found: List[Violation] = check_known_rooms(files)
    for path in files:
        found += check_name(path)
        text = read_text(root, path)
        if text is None:
            continue
        found += check_machine_paths(path, text)
        found += check_wall_clock(path, text)
        found += check_file_reads(path, text)
        found += check_lengths(path, text)
        found += check_index_kinds(path, text)
        found += check_device_questions(path, text)
        if path.endswith(CPP_SUFFIXES):
            includes += includes_of(path, text)
            sources[path] = text
        if path.endswith(HEADER_SUFFIXES):
            found += check_header_guard(path, text)
            types += types_of(path, text) if path.startswith(("index/", "server/", "client/")) else []
    found += check_one_definition(types)
    found += check_rooms(includes, set(files))
    found += check_third_parties(includes)
    found += [Violation(*fault) for fault in kernel_rules.faults_of(sources)]
    exemptions, malformed = read_exceptions(root, exceptions)
    return sorted(apply_exceptions(found, exemptions, exceptions) + malformed, key=lambda v: (v.path, v.line, v.rule))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--root", default=default_root, help="the repository (default: the one this file is in)")
    root = parser.parse_args().root
    files = tracked_files(root)
    if not files:
        print(f"{root}: no files to check", file=sys.stderr)
        return 2
    found = lint(root)
    for violation in found:
        print(violation)
    print(f"{len(files)} files, {len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
