"""The steps of the Dockerfile as plain scripts: the build is configured in a folder that holds what the engine would send,
the staged programs run with the staged libraries alone, and their scripts do what the manifests rely on.
Needs C3POD, the server's path, with c3po beside it.  Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_images.py"""

import fnmatch
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
DOCKER = SOURCE / "deploy" / "docker"
sys.path.insert(0, str(SOURCE / "tests" / "integration"))
import server_process

GLIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|pthread|rt|util|resolv|mvec))\.so|linux-vdso")


def environment(**more: str) -> dict[str, str]:
    """Nothing inherited that could lead a program to a library or a setting of this machine."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stage(root: pathlib.Path, device: str) -> pathlib.Path:
    subprocess.run([DOCKER / "stage.sh", pathlib.Path(os.environ["C3POD"]).parent, root, device], check=True)
    return root / "opt" / "c3po"


@pytest.fixture(scope="module")
def staged():
    with tempfile.TemporaryDirectory(dir=server_process.cache_folder()) as root:  # Where libtorch is: linked, not copied.
        yield stage(pathlib.Path(root), "cpu")


def loaded(program: pathlib.Path, **settings: str) -> dict[str, str]:
    """Library name -> path, as the dynamic linker finds them."""
    listing = subprocess.run([program], env=environment(LD_TRACE_LOADED_OBJECTS="1", **settings), capture_output=True, text=True).stdout
    assert "not found" not in listing, listing
    return dict(re.findall(r"(\S+) => (\S+)", listing))


@pytest.mark.parametrize("program", ("c3pod", "c3po"))
def test_staged_program_needs_only_glibc_of_its_host(staged: pathlib.Path, program: str) -> None:
    libraries = loaded(staged / "bin" / program)
    assert len(libraries) > 10
    for name, path in libraries.items():
        assert GLIBC.match(name) or pathlib.Path(path).parent.resolve() == (staged / "lib").resolve(), f"{name} is of the host: {path}"
    for flag in ("--version", "--help"):
        done = subprocess.run([staged / "bin" / program, flag], env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_staged_libraries_are_all_needed(staged: pathlib.Path) -> None:
    needed = set(loaded(staged / "bin" / "c3pod")) | set(loaded(staged / "bin" / "c3po"))
    assert {path.name for path in (staged / "lib").iterdir()} == {name for name in needed if not GLIBC.match(name)}


def test_cuda_image_also_has_what_is_opened_on_demand() -> None:
    with tempfile.TemporaryDirectory(dir=server_process.cache_folder()) as root:
        library = stage(pathlib.Path(root), "cuda") / "lib"
        names = {path.name for path in library.iterdir()}
        listing = subprocess.run(["ldd", library / "libtorch_cuda.so"], env=environment(LD_LIBRARY_PATH=str(library)),
                                 capture_output=True, text=True).stdout
    for wanted in ("libtorch_cpu.so", "libtorch_cuda.so", "libc10_cuda.so", "libcublas.so.*", "libcublasLt.so.*", "libcudnn.so.*",
                   "libcudnn_ops.so.*", "libnvrtc.so.*"):
        assert fnmatch.filter(names, wanted), wanted
    # The driver's own library belongs to the host.
    assert set(re.findall(r"(\S+) => not found", listing)) <= {"libcuda.so.1"}
    outside = {path for name, path in re.findall(r"(\S+) => (/\S+)", listing) if not GLIBC.match(name)}
    assert outside and all(pathlib.Path(path).parent == library for path in outside)


def test_staging_says_what_is_missing(tmp_path: pathlib.Path) -> None:
    for arguments, why in (([tmp_path, tmp_path / "root"], "is not there"), ([tmp_path, tmp_path / "root", "tpu"], "tpu")):
        done = subprocess.run([DOCKER / "stage.sh", *arguments], capture_output=True, text=True)
        assert done.returncode != 0 and why in done.stderr, done.stderr


class StagedServer(server_process.ServerProcess):
    """Started as the image starts it: configured by the environment, on ports chosen before."""

    def __init__(self, staged: pathlib.Path, folder: pathlib.Path):
        super().__init__(str(staged / "bin" / "c3pod"), folder, "--threads", "1", launcher=("env", "-i", "OMP_NUM_THREADS=1"))


def test_staged_server_serves_and_its_health_check_tells(staged: pathlib.Path, tmp_path: pathlib.Path) -> None:
    server = StagedServer(staged, tmp_path)

    def check(*arguments: str, **settings: str) -> int:
        return subprocess.run([staged / "bin" / "healthcheck.sh", *arguments], env=environment(**settings), capture_output=True, timeout=30).returncode

    try:
        port = str(server.metrics_port)
        assert check("/readyz", port) == 0 and check("/healthz", port) == 0
        assert check(C3PO_METRICS_PORT=port) == 0
        assert check("/elsewhere", port) == 1
        info = subprocess.run([staged / "bin" / "c3po", "--server", f"127.0.0.1:{server.port}", "info"], env=environment(),
                              capture_output=True, text=True, timeout=60)
        assert info.returncode == 0, info.stderr
    finally:
        assert server.stop() == 0
    assert check("/readyz", port) == 1


def test_import_job_publishes_a_store_whole_or_not_at_all(staged: pathlib.Path, tmp_path: pathlib.Path) -> None:
    store = tmp_path / "published" / "references.db"
    store.parent.mkdir()

    def publish(first: int, last: int, model: pathlib.Path = server_process.TINY_MODEL) -> subprocess.CompletedProcess:
        samples = tmp_path / "samples.jsonl"
        samples.write_text("".join(json.dumps({"prompt": f"What is {i} modulo seven?", "answer": f" {i % 7}"}) + "\n"
                                   for i in range(first, last)))
        settings = environment(C3PO_MODEL=str(model), C3PO_EMBEDDER="model", C3PO_THREADS="1", C3PO_IMPORT_PORT=str(free_port()))
        return subprocess.run([staged / "bin" / "import_references.sh", store, "numbers", samples], env=settings, capture_output=True,
                              text=True, timeout=120)

    def count() -> int:
        copy = tmp_path / "copy.db"  # As a replica takes it.
        shutil.copy(store, copy)
        server = server_process.ServerProcess(str(staged / "bin" / "c3pod"), tmp_path, "--store", str(copy), "--threads", "1")
        try:
            return sum(json.loads(line)["references"] for line in server.log if '"collection_opened"' in line)
        finally:
            server.stop()

    for first, last in ((0, 5), (3, 8)):
        done = publish(first, last)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [path.name for path in store.parent.iterdir()] == ["references.db"], "nothing is left beside the store"
    assert count() == 8
    before = store.read_bytes()
    failed = publish(8, 9, model=tmp_path / "no_model")
    assert failed.returncode != 0 and "did not start" in failed.stderr
    assert [path.name for path in store.parent.iterdir()] == ["references.db"] and store.read_bytes() == before


def context_files() -> list[str]:
    """What the engine would send: tracked and new files that .dockerignore lets through."""
    listing = subprocess.run(["git", "-c", "safe.directory=*", "-C", SOURCE, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                             check=True, capture_output=True, text=True).stdout
    ignored = [line for line in (SOURCE / ".dockerignore").read_text(encoding="utf-8").splitlines() if line]

    def left_out(path: str) -> bool:
        parts = [path, *(str(parent) for parent in pathlib.PurePosixPath(path).parents)]
        return any(part == rule or ("/" not in part and fnmatch.fnmatch(part, rule)) or
                   (rule.startswith("**/") and fnmatch.fnmatch(part.rpartition("/")[2], rule[3:])) for rule in ignored for part in parts)

    return [path for path in listing.split("\0") if path and not left_out(path) and (SOURCE / path).is_file()]


def test_context_holds_all_that_compiling_takes(tmp_path: pathlib.Path) -> None:
    """Configured anew, and every command of the build planned: a source that is not there stops ninja."""
    files = context_files()
    assert not any(path.startswith(("tests/", ".git/", "build/")) for path in files)
    for path in files:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / path, target)
    done = subprocess.run([tmp_path / "deploy" / "docker" / "build.sh", "-n"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "bin/c3pod" in done.stdout and "bin/c3po" in done.stdout
    for script in (*DOCKER.glob("*.sh"), SOURCE / "deploy" / "install_deps.sh", SOURCE / "deploy" / "fetch_models.sh"):
        assert str(script.relative_to(SOURCE)) in files
