#!/usr/bin/env bash
# Makes all goldens of this folder again, in Python environments of its own with the pinned versions from PyPI, runs the tests that
# read them, and says which files came out otherwise. On the versions of provenance.json none should; on a processor of another kind the
# last bits of some floats may, and the tests' verdict is what counts.
#   tests/golden/remake.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
CACHE_DIR=${C3PO_CACHE_DIR:-$HOME/.cache/c3po}
deploy/install_deps.sh

# make_venv NAME PACKAGES...: prints its Python.
make_venv() {
  local venv=$CACHE_DIR/goldens-1/$1
  shift
  if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check "$@" >&2
    touch "$venv/complete"
  fi
  echo "$venv/bin/python"
}

# libtorch's wheel is the torch of the goldens.
MODELS=$(make_venv models transformers==4.57.6 safetensors==0.7.0 numpy==2.3.5)
MODELS_5=$(make_venv models-5 transformers==5.24.0 safetensors==0.8.0 numpy==2.3.5)
TOKENIZERS=$(make_venv tokenizers tokenizers==0.23.3 jinja2==3.1.6)
GGUF=$(make_venv gguf transformers==4.57.6 safetensors==0.8.0 numpy==2.4.6 gguf==0.19.0 sentencepiece==0.2.3 protobuf==7.36.2)
# llama.cpp itself, compiled for this processor: some minutes.
LLAMA_CPP=$(CMAKE_ARGS="-DLLAVA_BUILD=OFF" make_venv llama-cpp transformers==4.57.6 safetensors==0.8.0 numpy==1.26.4 sentencepiece==0.2.3 protobuf==7.36.2 \
  llama-cpp-python==0.3.36)
TORCH=$(ls -d "$CACHE_DIR"/torch-*/site | sort -V | tail -n 1)

"$TOKENIZERS" tests/golden/tokenizer/make_tokenizer_goldens.py
"$TOKENIZERS" tests/golden/tokenizer/make_seam_goldens.py
"$TOKENIZERS" tests/golden/tokenizer/make_unicode_goldens.py
"$TOKENIZERS" tests/golden/tokenizer/make_chat_goldens.py
"$MODELS" tests/golden/tokenizer/make_surrounding_goldens.py
"$MODELS" tests/golden/chat/make_template_goldens.py
PYTHONPATH=$TORCH "$MODELS" tests/golden/model/make_model_goldens.py
PYTHONPATH=$TORCH "$MODELS" tests/golden/config/make_config_goldens.py
PYTHONPATH=$TORCH "$MODELS_5" tests/golden/config/make_config_goldens.py
PYTHONPATH=$TORCH "$MODELS" tests/golden/embed/make_embed_goldens.py "$CACHE_DIR/models/all-minilm-l6-v2"

# llama.cpp's converter lies in the sdist of its Python binding, which is only unpacked.
LLAMA=$CACHE_DIR/goldens-1/llama_cpp_python-0.3.36
if [ ! -d "$LLAMA" ]; then
  "$GGUF" -m pip download -q --no-deps --no-binary :all: --dest "$CACHE_DIR/goldens-1" llama-cpp-python==0.3.36
  tar xzf "$LLAMA.tar.gz" -C "$CACHE_DIR/goldens-1"
fi
PYTHONPATH=$TORCH "$GGUF" tests/golden/gguf/make_gguf_goldens.py
PYTHONPATH=$TORCH "$GGUF" tests/golden/gguf/make_gguf_models.py "$LLAMA/vendor/llama.cpp"
PYTHONPATH=$TORCH "$GGUF" tests/golden/gguf/make_gguf_tokenizers.py "$LLAMA/vendor/llama.cpp"
PYTHONPATH=$TORCH "$LLAMA_CPP" tests/golden/gguf/answers/make_gguf_answers.py "$LLAMA/vendor/llama.cpp"
"$LLAMA_CPP" tests/golden/gguf/answers/make_gguf_ids.py
PACKED=$(make_venv packed compressed-tensors==0.20.1 safetensors==0.8.0 transformers==5.24.0 loguru psutil pydantic)
PYTHONPATH=$TORCH "$PACKED" tests/golden/packed/make_packed_goldens.py

cmake --preset release >/dev/null
cmake --build --preset release --target server_model_test server_model_folder_test server_compute_gguf_test server_weights_test server_text_test server_text_gguf_test server_chat_test server_embed_test c3pod
for name in server_model_test server_model_folder_test server_compute_gguf_test server_weights_test server_text_test server_text_gguf_test server_chat_test server_embed_test; do OMP_NUM_THREADS=1 build/release/bin/$name --gtest_brief=1; done
"$(ls -d "$CACHE_DIR"/tools-*/bin/python | sort -V | tail -n 1)" tests/integration/gguf_answers_test.py build/release/bin/c3pod
CHANGED=$(git status --porcelain -- tests/golden)
echo "files that came out otherwise: ${CHANGED:-none}"
