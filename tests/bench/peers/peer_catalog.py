"""The peers: how each is found, converted for, started, and asked for its version. All of them get the same number of threads, weights of
as many bits and room for 8,192 positions; what a flag does not say stays as its makers set it."""

import dataclasses
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import typing

import peer_clients
import peer_process

HERE = pathlib.Path(__file__).resolve().parent
POSITIONS = 8192  # Of all sequences together.
STREAMS_MAX = 32
LOAD_SECONDS_MAX = 600


class Weights(typing.NamedTuple):
    """Of so many bits, as this project and as llama.cpp call them."""
    c3po: str
    llama_cpp: str


WEIGHTS = {16: Weights("bfloat16", "BF16"), 8: Weights("int8", "Q8_0"), 4: Weights("int4", "Q4_K_M")}  # Bits, but for what scales add.
NAMES = {"c3po": "C3PO", "llama.cpp": "llama.cpp", "vllm": "vLLM", "transformers": "transformers"}  # In the order of the table.


@dataclasses.dataclass
class Peer:
    name: str
    version: str
    command: list
    environment: dict
    client: typing.Any
    process: typing.Any = None
    resident_loaded: int = 0  # Bytes.

    def start(self, folder: pathlib.Path) -> None:
        """PeerFailed when it does not come up. Its output goes to a file below `folder`."""
        self.process = peer_process.PeerProcess(self.command, folder / f"{self.name}.log", self.environment)
        try:
            self.process.wait_until(self.client.ready, LOAD_SECONDS_MAX)
        except BaseException:
            self.process.stop()
            raise
        self.resident_loaded = self.process.resident_bytes()

    def shown_command(self, arguments) -> str:
        """Without the paths and ports of this machine."""
        names = {str(arguments.model): "MODEL", str(self.client.port): "PORT"}
        words = [pathlib.Path(str(self.command[0])).name, *map(str, self.command[1:])]
        shown = [names.get(word) or word.replace(f":{self.client.port}", ":PORT") for word in words]
        shown = ["FILE/" + pathlib.Path(word).name if word.startswith("/") else word for word in shown]
        shown_environment = [f"{key}={pathlib.Path(value).name}" for key, value in self.environment.items() if key != "PATH"]
        return " ".join([*shown_environment, shlex.join(shown)])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def output_of(*command) -> str:
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    if done.returncode != 0:
        raise peer_process.PeerFailed(f"{shlex.join(map(str, command))} ended with {done.returncode}: {done.stdout[-500:].strip()}")
    return done.stdout.strip()


def package_versions(python: str, *packages) -> str:
    code = "import importlib.metadata as m, sys; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    return output_of(python, "-c", code, *packages).splitlines()[-1]


def embedder(arguments) -> pathlib.Path | None:
    """The sentence encoder's folder, where there is one; else the model embeds."""
    folder = arguments.cache.parent / "models" / "all-minilm-l6-v2"
    return folder if folder.is_dir() else None


def c3po(arguments, folder, stubs) -> Peer:
    if not pathlib.Path(arguments.c3pod).is_file():
        raise peer_process.PeerFailed(f"{arguments.c3pod} is not built")
    port = free_port()
    command = [arguments.c3pod, "--model", arguments.model, "--threads", arguments.threads, "--kv-cache-tokens", POSITIONS,
               "--running-sequences-max", STREAMS_MAX, "--weights", WEIGHTS[arguments.bits].c3po, "--embedder", embedder(arguments) or "model",
               "--store", folder / "references.db", "--listen", f"127.0.0.1:{port}", "--metrics-port", "-1"]
    if arguments.bits != 16 and embedder(arguments):
        command += ["--embedder-dtype", "bfloat16"]  # Whoever quantizes the model is short of memory.
    return Peer("c3po", output_of(arguments.c3pod, "--version"), command, {}, peer_clients.C3poClient(port, stubs))


def made_once(path: pathlib.Path, program: str | None, flag: str, command) -> pathlib.Path:
    """`path`, made by command(the file it is written to) if it is not there; PeerFailed names `flag` where no `program` was given."""
    if not path.exists():
        if not program:
            raise peer_process.PeerFailed(f"{path} is not there; name what makes it with {flag}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        output_of(*command(partial))
        partial.rename(path)
    return path


def gguf_of(arguments) -> pathlib.Path:
    """The model's file in the cache: NAME.gguf, and NAME.TYPE.gguf quantized from it."""
    python = arguments.llama_python or arguments.transformers_python or "python3"
    whole = arguments.cache / f"{arguments.model.name}.gguf"
    kind = WEIGHTS[arguments.bits].llama_cpp
    path = whole if arguments.bits == 16 else whole.with_suffix(f".{kind}.gguf")
    if arguments.bits == 16 or not path.exists():
        made_once(whole, arguments.llama_convert, "--llama-convert",
                  lambda to: [python, arguments.llama_convert, arguments.model, "--outtype", "bf16", "--outfile", to])
    return made_once(path, arguments.llama_quantize, "--llama-quantize",
                     lambda to: [arguments.llama_quantize, whole, to, kind, arguments.threads])


def llama_cpp(arguments, folder, stubs) -> Peer:
    server = arguments.llama_server or shutil.which("llama-server")
    if not server:
        raise peer_process.PeerFailed("no llama-server on PATH, none given with --llama-server")
    version = next(line for line in output_of(server, "--version").splitlines() if line.startswith("version"))
    port = free_port()
    command = [server, "--model", gguf_of(arguments), "--threads", arguments.threads, "--threads-batch", arguments.threads,
               "--ctx-size", POSITIONS, "--parallel", STREAMS_MAX, "--kv-unified", "--cache-ram", 0,
               "--host", "127.0.0.1", "--port", port]
    return Peer("llama.cpp", arguments.llama_version or version, command, {}, peer_clients.LlamaServerClient(port))


def refuse_quantized(arguments) -> None:
    if arguments.bits != 16:
        raise peer_process.PeerFailed(f"it takes no weights of {arguments.bits} bits that are made from the model's folder alone")


def vllm(arguments, folder, stubs) -> Peer:
    refuse_quantized(arguments)
    program = [arguments.vllm_python, "-m", "vllm.entrypoints.cli.main"] if arguments.vllm_python else [shutil.which("vllm")]
    if not program[0]:
        raise peer_process.PeerFailed("no vllm on PATH, no interpreter given with --vllm-python")
    if arguments.vllm_python:
        version = package_versions(arguments.vllm_python, "vllm", "torch")
    else:
        version = output_of(*program, "--version").splitlines()[-1]
    port = free_port()
    command = [*program, "serve", arguments.model, "--dtype", arguments.vllm_dtype, "--max-model-len", 1024,
               "--max-num-seqs", STREAMS_MAX, "--no-enable-prefix-caching", "--host", "127.0.0.1", "--port", port]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": f"0-{arguments.threads - 1}", "HF_HUB_OFFLINE": "1",
                   "VLLM_NO_USAGE_STATS": "1"}
    if arguments.vllm_python:  # What is installed beside the interpreter, ninja for instance, is looked for on PATH.
        folder = pathlib.Path(arguments.vllm_python).parent
        environment["PATH"] = f"{folder}:{os.environ['PATH']}"
        openmp = folder.parent / "lib" / "libiomp5.so"  # Of PyPI's intel-openmp: what its makers say to load before all else.
        if openmp.is_file():
            environment["LD_PRELOAD"] = str(openmp.resolve())
    return Peer("vllm", version, command, environment, peer_clients.VllmClient(port, str(arguments.model)))


def transformers(arguments, folder, stubs) -> Peer:
    refuse_quantized(arguments)
    if not arguments.transformers_python:
        raise peer_process.PeerFailed("no interpreter given with --transformers-python")
    port = free_port()
    command = [arguments.transformers_python, HERE / "transformers_worker.py", arguments.model, port, arguments.threads,
               arguments.transformers_dtype]
    return Peer("transformers", package_versions(arguments.transformers_python, "transformers", "torch"), command,
                {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}, peer_clients.TransformersClient(port))


MAKERS = {"c3po": c3po, "llama.cpp": llama_cpp, "vllm": vllm, "transformers": transformers}
