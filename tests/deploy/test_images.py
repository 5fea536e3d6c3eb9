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

HAS_CUDA_LIBRARY = (pathlib.Path(os.environ["C3POD"]).parent / "libc3po_cuda.so").exists()
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


def bill_of(output: pathlib.Path) -> dict:
    bill = json.loads(output.read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(set(references)) == len(references)
    assert bill["dependencies"] == [{"ref": "c3po", "dependsOn": references}]
    for component in bill["components"]:
        if component["type"] == "library":
            assert component["version"] and component["purl"].startswith(("pkg:deb/debian/", "pkg:pypi/")), component
    return bill


def test_bill_of_materials_holds_every_staged_file_and_its_package(staged: pathlib.Path) -> None:
    bill = bill_of(staged / "sbom.cdx.json")
    listed = {file["name"]: file["hashes"][0]["content"] for component in bill["components"] for file in component.get("components", [])}
    listed |= {component["name"]: component["hashes"][0]["content"] for component in bill["components"] if component["type"] == "application"}
    files = [*(staged / "lib").iterdir(), *(staged / "bin").iterdir()]
    sums = subprocess.run(["sha256sum", *files], capture_output=True, text=True, check=True).stdout
    assert {pathlib.Path(line.split()[1]).name: line.split()[0] for line in sums.splitlines()} == listed
    packages = {component["name"]: component for component in bill["components"]}
    for name, file in (("libgrpc29", "libgrpc.so.29"), ("libssl3", "libssl.so.3"), ("torch", "libtorch_cpu.so"), ("libsqlite3-0", "libsqlite3.so.0"), ("libpq5", "libpq.so.5")):
        assert file in [part["name"] for part in packages[name]["components"]], name
    version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "libgrpc29"], capture_output=True, text=True, check=True).stdout
    assert packages["libgrpc29"]["version"] == version
    needed = (SOURCE / "deploy" / "install_deps.sh").read_text(encoding="utf-8")
    compiled_in = {name for name, component in packages.items() if {"name": "c3po:use", "value": "compiled in"} in component.get("properties", [])}
    assert {"libhnswlib-dev", "nlohmann-json3-dev", "libcli11-dev", "xgrammar"} <= compiled_in
    assert all(re.sub(r"1\.74", "", name) in needed for name in compiled_in)
    assert {"name": "c3po:base", "value": "left out"} in bill["metadata"]["properties"]


def test_bill_of_materials_lists_the_base_is_reproducible_and_has_no_holes(staged: pathlib.Path, tmp_path: pathlib.Path) -> None:
    sources, status = tmp_path / "sources", tmp_path / "status"
    taken = loaded(staged / "bin" / "c3pod")
    assert all(pathlib.Path(path).parent.resolve() == (staged / "lib").resolve() for name, path in taken.items() if not GLIBC.match(name))
    original = dict(re.findall(r"(\S+) => (\S+)", subprocess.run(["ldd", os.environ["C3POD"]], capture_output=True, text=True, check=True).stdout))
    original |= dict(re.findall(r"(\S+) => (\S+)", subprocess.run(["ldd", pathlib.Path(os.environ["C3POD"]).parent / "c3po"], capture_output=True,
                                                                  text=True, check=True).stdout))
    lines = [f"{path.name}\t{original[path.name]}\n" for path in (staged / "lib").iterdir()]
    sources.write_text("".join(lines))
    status.write_text("Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\nDescription: C library\n x\n\n"
                      "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n"
                      "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.0\n")

    def make(output: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, DOCKER / "sbom.py", "--stage", staged.parents[1], "--sources", sources, "--base-status", status,
                               "--output", tmp_path / output], capture_output=True, text=True)

    assert make("one").returncode == 0 == make("two").returncode
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    bill = bill_of(tmp_path / "one")
    base = {component["name"]: component["version"] for component in bill["components"]
            if {"name": "c3po:use", "value": "base image"} in component.get("properties", [])}
    assert base == {"libc6": "2.36-9", "zlib1g": "1:1.0"}
    assert {"name": "c3po:base", "value": "listed"} in bill["metadata"]["properties"]
    sources.write_text("".join(lines[1:]))
    lost = make("holed")
    assert lost.returncode != 0 and lines[0].split("\t")[0] in lost.stderr
    (tmp_path / "stray.so").write_bytes(b"")
    sources.write_text("".join(lines[1:]) + f"{lines[0].split(chr(9))[0]}\t{tmp_path / 'stray.so'}\n")
    stray = make("holed")
    assert stray.returncode != 0 and "of no package" in stray.stderr and not (tmp_path / "holed").exists()


@pytest.mark.skipif(not HAS_CUDA_LIBRARY, reason="this build is without libc3po_cuda.so")
def test_cuda_image_also_has_what_is_opened_on_demand() -> None:
    with tempfile.TemporaryDirectory(dir=server_process.cache_folder()) as root:
        staged_cuda = stage(pathlib.Path(root), "cuda")
        library = staged_cuda / "lib"
        names = {path.name for path in library.iterdir()}
        listing = subprocess.run(["ldd", library / "libtorch_cuda.so"], env=environment(LD_LIBRARY_PATH=str(library)),
                                 capture_output=True, text=True).stdout
        bill = bill_of(staged_cuda / "sbom.cdx.json")
        # In ../lib of the program, where c3pod finds it: what it lacks here, if anything, is a driver or a device.
        refusal = subprocess.run([staged_cuda / "bin" / "c3pod", "--device", "cuda", "--model", server_process.TINY_MODEL, "--embedder", "model",
                                  "--store", pathlib.Path(root) / "store.db", "--listen", "127.0.0.1:0", "--metrics-port", "0"],
                                 env=environment(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, timeout=120).stderr.splitlines()[-1]
    assert re.match(r"c3pod: device cuda: no NVIDIA (driver|GPU)", refusal), refusal
    components = {component["name"]: component for component in bill["components"]}
    assert components["libc3po_cuda.so"]["type"] == "application"
    assert components["nvidia-cuda-runtime"]["version"].startswith("13.0.")
    for wanted in ("libc3po_cuda.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10_cuda.so", "libcublas.so.*", "libcublasLt.so.*", "libcudnn.so.*",
                   "libcudnn_ops.so.*", "libnvrtc.so.*"):
        assert fnmatch.filter(names, wanted), wanted
    # The driver's own library belongs to the host.
    assert set(re.findall(r"(\S+) => not found", listing)) <= {"libcuda.so.1"}
    outside = {path for name, path in re.findall(r"(\S+) => (/\S+)", listing) if not GLIBC.match(name)}
    assert outside and all(pathlib.Path(path).parent == library for path in outside)


def test_staging_for_cuda_wants_the_cuda_code(tmp_path: pathlib.Path) -> None:
    for program in ("c3pod", "c3po"):
        (tmp_path / program).symlink_to(pathlib.Path(os.environ["C3POD"]).resolve().parent / program)
    done = subprocess.run([DOCKER / "stage.sh", tmp_path, tmp_path / "root", "cuda"], capture_output=True, text=True)
    assert done.returncode != 0 and "libc3po_cuda.so is not there" in done.stderr, done.stderr


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
        return subprocess.run([staged / "bin" / "healthcheck.sh", *arguments], env=environment(**settings), capture_output=True, timeout=60).returncode

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
                              text=True, timeout=300)

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
    assert "bin/c3pod" in done.stdout and "bin/c3po" in done.stdout and "bin/libc3po_cuda.so" not in done.stdout
    if HAS_CUDA_LIBRARY:
        done = subprocess.run([tmp_path / "deploy" / "docker" / "build.sh", "cuda", "-n"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "bin/libc3po_cuda.so" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    for script in (*DOCKER.glob("*.sh"), SOURCE / "deploy" / "install_deps.sh", SOURCE / "deploy" / "fetch_models.sh"):
        assert str(script.relative_to(SOURCE)) in files


@pytest.mark.parametrize("nvcc, why", (("#!/bin/sh\necho compute_80; echo compute_90\n", "does not know compute_100"),
                                       ("#!/bin/sh\nexit 1\n", "does not run")))
def test_an_nvcc_that_lacks_a_target_is_refused_before_anything_is_installed(tmp_path: pathlib.Path, nvcc: str, why: str) -> None:
    own = tmp_path / "nvcc"
    own.write_text(nvcc)
    own.chmod(0o755)
    done = subprocess.run([SOURCE / "deploy" / "install_deps.sh", "--build-only", "--cuda"], capture_output=True, text=True,
                          env={**os.environ, "C3PO_CACHE_DIR": str(tmp_path / "cache"), "C3PO_NVCC": str(own)})
    assert done.returncode == 1 and why in done.stderr, done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def test_cmake_takes_the_nvcc_that_is_installed() -> None:
    version = re.search(r"^CUDA_VERSION=(\S+)", (SOURCE / "deploy" / "install_deps.sh").read_text(), re.M).group(1)
    folders = set(re.findall(r"cuda-[\d.]+", (SOURCE / "deploy" / "cmake" / "C3poCuda.cmake").read_text()))
    assert folders == {f"cuda-{version}"}


@pytest.mark.parametrize("wanted, code, why", (("AUTO", 0, "not built, so --device cuda is not served: {nvcc} does not know sm_100"),
                                               ("OFF", 0, "not built, so --device cuda is not served: C3PO_CUDA=OFF"),
                                               ("ON", 1, "C3PO_CUDA=ON: {nvcc} does not know sm_100")))
def test_a_build_without_a_fitting_nvcc_is_configured_and_says_so_unless_it_was_asked_for(tmp_path: pathlib.Path, wanted: str, code: int,
                                                                                          why: str) -> None:
    own = tmp_path / "nvcc"
    own.write_text("#!/bin/sh\necho compute_80; echo compute_90\n")
    own.chmod(0o755)
    done = subprocess.run(["cmake", "-S", SOURCE, "-B", tmp_path / "build", "-G", "Ninja", f"-DC3PO_CUDA={wanted}", f"-DC3PO_NVCC={own}"],
                          capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert why.format(nvcc=own) in " ".join((done.stdout + done.stderr).split())
    if code == 0:
        plan = subprocess.run(["ninja", "-C", tmp_path / "build", "-n"], capture_output=True, text=True, check=True).stdout
        assert "bin/c3pod" in plan and "bin/gpu_runtime_test" in plan and "bin/libc3po_cuda.so" not in plan and "nvcc" not in plan
