#!/usr/bin/env bash
# Sets up what the tests need and runs all of them: format, lints, unit,
# integration and doc tests. Everything uses the release profile, so that
# llama.cpp is compiled once.
set -euo pipefail
cd "$(dirname "$0")/.."
# Rust's smallest profile has neither: better now than after the downloads.
for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || {
        echo "test.sh: cargo $part is missing: rustup component add rustfmt clippy" >&2
        exit 1
    }
done
. scripts/setup.sh
setup_build_tools
setup_xllamacpp
setup_chat_templates
./scripts/fetch-models.sh
./scripts/test-setup.sh
cargo fmt --all --check
cargo build --release --workspace
./scripts/test-packages.sh
cargo clippy --release --workspace --all-targets -- -D warnings
# Tests run side by side on few cores: threads that spin while they wait for each
# other would take the cores from those that they wait for.
export OMP_WAIT_POLICY=passive
# The models are there, so no test may skip for want of one.
export HEADSHARE_REQUIRE_MODELS=1
cargo test --release --workspace
# Fuzzing wants nightly and cargo-fuzz; where both are there, each target runs
# for a while.
if cargo +nightly fuzz --version >/dev/null 2>&1; then
    cargo run --manifest-path fuzz/Cargo.toml --example seeds
    cargo +nightly fuzz run parse_gguf -- -max_total_time=20
    cargo +nightly fuzz run read_alias_table -- -max_total_time=20 -max_len=65536
fi
