# What the scripts of this folder share; to be sourced. Sets SUITE, SERVER, DESCENT and BEFORE, and defines `c3po`, which asks the server.

# Where calibrate begins: gradient descent from few samples, no gate, the same everywhere. Every field that a default of the server
# could fill is set, so that the tables of RESULTS.md keep their meaning.
DESCENT=(--k 12 --references all --steps 8 --learning-rate 0.05 --step-rule adam --core-experts 0 --critical-layers 22-29
  --application shift --objective choices --backtrack --validation-neighbors 0 --step-scale 1 --patience 0 --prompt-positions 1
  --no-prior --no-gate --no-profile)

# The defaults up to version 0.1.0, near the paper's, as settings of a method that is called `before`.
BEFORE=()
for setting in k=3 steps=10 learning_rate=0.1 step_rule=adam critical_layers=25-29 core_experts=20 application_rule=every_new_token \
  reference_selection=successful objective=answer backtrack=false validation_neighbors=0 gate.max_neighbor_distance=2 \
  gate.min_validation_loss_reduction=0 use_profile=false; do
  BEFORE+=(--set "before.$setting")
done

SUITE=${C3PO_CACHE_DIR:-$HOME/.cache/c3po}/suite

# The interpreter of deploy/install_deps.sh's tools.
tools_python() { ls -d "${C3PO_CACHE_DIR:-$HOME/.cache/c3po}"/tools-*/bin/python | sort -V | tail -n 1; }
heading() { printf '\n\033[1;36m== %s\033[0m\n' "$*"; }
join() { local IFS=,; echo "$*"; }

# start_server FOLDER [FLAGS...]: a c3pod of its own, its references and log in FOLDER, until the script ends. A second one
# is the one that is asked then. Its arithmetic is the same on every processor, for tables that can be made again.
start_server() {
  local folder=$1 pid
  shift
  mkdir -p "$folder"
  build/release/bin/c3pod --allow-oracle --store "$folder/references.db" --listen 127.0.0.1:0 --metrics-port -1 \
    --neighbor-cache-mb 4096 --arithmetic float32 "$@" 2>"$folder/server.log" &
  pid=$!
  trap 'kill -TERM $(jobs -p) 2>/dev/null; wait || true' EXIT
  SERVER=
  for _ in $(seq 240); do
    SERVER=$(sed -n 's/.*"serving".*"address":"\([^"]*\)".*/\1/p' "$folder/server.log")
    if [ -n "$SERVER" ]; then return; fi
    if ! kill -0 "$pid" 2>/dev/null; then break; fi
    sleep 0.5
  done
  cat "$folder/server.log" >&2
  exit 1
}

c3po() { build/release/bin/c3po --server "$SERVER" "$@"; }
