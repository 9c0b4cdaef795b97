#!/usr/bin/env bash
# Sets up what the tests need and runs all of them: format, lints, unit,
# integration and doc tests. Everything uses the release profile, so that
# llama.cpp is compiled once.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_build_tools
setup_xllamacpp
./scripts/fetch-models.sh
cargo fmt --all --check
cargo build --release --workspace
cargo clippy --release --workspace --all-targets -- -D warnings
cargo test --release --workspace
