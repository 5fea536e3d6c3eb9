# shellcheck shell=bash disable=SC2034,SC2012
# What the scripts of this folder share; to be sourced. Sets SUITE and BIN. `start_server` starts a c3pod and sets SERVER, SERVER_PID
# and what is known of the model that is served: MODEL_NAME, MOE_LAYERS, EXPERTS, CRITICAL, DESCENT, BEFORE. `c3po` asks that server.
#   C3PO_BIN   folder of c3pod and c3po (build/release/bin)

SUITE=${C3PO_CACHE_DIR:-$HOME/.cache/c3po}/suite
BIN=${C3PO_BIN:-build/release/bin}

# A program that is started by it ends when this script does, however that ends: a killed one leaves no server on its store.
DIES_WITH_SCRIPT=()
if command -v setpriv >/dev/null && setpriv --help 2>&1 | grep -q pdeathsig; then DIES_WITH_SCRIPT=(setpriv --pdeathsig TERM); fi

# The interpreter of deploy/install_deps.sh's tools.
tools_python() { ls -d "${C3PO_CACHE_DIR:-$HOME/.cache/c3po}"/tools-*/bin/python | sort -V | tail -n 1; }
heading() { printf '\n\033[1;36m== %s\033[0m\n' "$*"; }
join() { local IFS=,; echo "$*"; }

# last_layers N: the last N of the MoE layers that are served, or all of fewer, as --critical-layers takes them.
last_layers() { echo "$((MOE_LAYERS > $1 ? MOE_LAYERS - $1 : 0))-$((MOE_LAYERS - 1))"; }

# Settings by the size of the model that is served. For the default model's 30 layers of 24 experts they are those of RESULTS.md.
fit_settings() {
  local info setting
  info=$(c3po info --json)
  field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" <<<"$info"; }
  MODEL_NAME=$(sed -n 's/.*"model":{[^}]*"name":"\([^"]*\)".*/\1/p' <<<"$info")
  MOE_LAYERS=$(field moe_layers)
  EXPERTS=$(field experts)
  # A quarter of the layers, 5 to 8: what c3pod has by default.
  local quarter=$(((MOE_LAYERS + 3) / 4))
  CRITICAL=$(last_layers "$((quarter < 5 ? 5 : quarter > 8 ? 8 : quarter))")
  # Where calibrate begins: gradient descent from few samples, no gate, the same everywhere. Every field that a default of the
  # server could fill is set, so that the tables of RESULTS.md keep their meaning.
  DESCENT=(--k 12 --references all --steps 8 --learning-rate 0.05 --step-rule adam --core-experts 0 --critical-layers "$CRITICAL"
    --application shift --objective choices --backtrack --validation-neighbors 0 --step-scale 1 --patience 0 --prompt-positions 1
    --no-balance --trust 0 --neighborhoods 1 --neighbor-source embedding --no-prior --no-offset --no-gate
    --no-profile)
  # The defaults up to version 0.1.0, near the paper's, as settings of a method that is called `before`.
  BEFORE=()
  for setting in k=3 steps=10 learning_rate=0.1 step_rule=adam "critical_layers=$(last_layers 5)" \
    "core_experts=$((EXPERTS < 20 ? EXPERTS : 20))" application_rule=every_new_token reference_selection=successful \
    objective=answer backtrack=false validation_neighbors=0 gate.max_neighbor_distance=2 gate.min_validation_loss_reduction=0 \
    use_profile=false; do
    BEFORE+=(--set "before.$setting")
  done
}

# start_server FOLDER [FLAGS...]: a c3pod of its own, its references and log in FOLDER, until the script ends. A second one
# is the one that is asked then. Its arithmetic is the same on every processor, for tables that can be made again. FLAGS, or
# C3PO_MODEL, name another model than the default one. NEIGHBOR_CACHE_MB: room for references' fixed states (4096).
start_server() {
  local folder=$1
  shift
  mkdir -p "$folder"
  : >"$folder/server.log"  # Neither absent nor an earlier server's, with its address, until the new one opens it.
  "${DIES_WITH_SCRIPT[@]}" "$BIN/c3pod" --allow-oracle --store "$folder/references.db" --listen 127.0.0.1:0 --metrics-port -1 \
    --neighbor-cache-mb "${NEIGHBOR_CACHE_MB:-4096}" --arithmetic float32 "$@" 2>"$folder/server.log" &
  SERVER_PID=$!
  trap 'kill -TERM $(jobs -p) 2>/dev/null || true; wait || true' EXIT
  SERVER=
  while [ -z "$SERVER" ] && kill -0 "$SERVER_PID" 2>/dev/null; do  # Weights of a large model take minutes.
    SERVER=$(sed -n 's/.*"serving".*"address":"\([^"]*\)".*/\1/p' "$folder/server.log")
    sleep 0.1
  done
  if [ -z "$SERVER" ]; then
    cat "$folder/server.log" >&2
    exit 1
  fi
  fit_settings
}

# Ends the server that was started last.
stop_server() {
  kill -TERM "$SERVER_PID"
  wait "$SERVER_PID" || true
}

c3po() { "${DIES_WITH_SCRIPT[@]}" "$BIN/c3po" --server "$SERVER" "$@"; }

# has_learned FIELD COLLECTION: whether there is a profile, or a prior, as `c3po refs profile show` names it. The collection's counts
# have fields of the same names, so the JSON is read and not searched.
has_learned() {
  c3po refs profile show --collection "$2" --json |
    python3 -c 'import json, sys; sys.exit(sys.argv[1] not in json.load(sys.stdin))' "$1"
}
