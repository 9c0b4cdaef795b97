#!/usr/bin/env bash
# Tries what others would get: the crates that can be published are packed, and
# compiled from their packages; `cargo install` gives a program that converts and
# runs a model, away from this folder. Runs after `cargo build --release
# --workspace`, whose results it uses: then the installation compiles nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_build_tools

started=$SECONDS
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# Crates that depend on each other are packed together, so that each finds the
# others although no registry has them yet.
# That takes cargo 1.90.
published=(headshare-format headshare-files headshare-stitch)
minor=$(cargo --version | sed 's/^cargo 1\.\([0-9]*\).*/\1/')
if [ "$minor" -ge 90 ]; then
  cargo package --quiet --offline --locked --allow-dirty "${published[@]/#/--package=}"
else
  echo "test-packages: cargo 1.$minor cannot pack crates that depend on each other; 1.90 can"
fi
packed=$((SECONDS - started))

cargo install --quiet --offline --locked --path . --target-dir target --root "$work" --no-track
make_model=$PWD/target/release/make-test-model
cd "$work"
"$make_model" synthetic --preset tiny-gqa -o model.gguf
PATH=$work/bin:$PATH
headshare-gguf --version
headshare-gguf --quiet convert model.gguf -o shared.gguf --ratio 0.5
headshare-gguf --quiet verify shared.gguf --source model.gguf
headshare-gguf --quiet run shared.gguf -p a -n 2 >run.txt
[ -s run.txt ]
echo "test-packages: packed in $packed s, everything took $((SECONDS - started)) s"
