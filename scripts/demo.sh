#!/usr/bin/env bash
# Sets up what is needed, fetches SmolLM2-135M, converts it at 10% and 30% and
# a self-merge of it losslessly, runs every file, and prints sizes, memory and
# text. The files stay in target/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_build_tools
./scripts/fetch-models.sh --only-smollm2
cargo build --release --quiet --bin headshare-gguf
cargo build --release --quiet -p headshare-testmodels --bin make-test-model

headshare=target/release/headshare-gguf
source=models/SmolLM2-135M-Instruct.Q4_1.gguf
out=target/demo
mkdir -p "$out"

echo "== What sharing would save =="
for ratio in 0.1 0.3; do
  "$headshare" plan "$source" --ratio "$ratio" | head -n 3
done

echo
echo "== Convert =="
for ratio in 0.1 0.3; do
  "$headshare" -q convert "$source" --ratio "$ratio" -o "$out/shared-$ratio.gguf" --force >/dev/null
  "$headshare" verify "$out/shared-$ratio.gguf" --source "$source"
done
# A self-merge: layers 0-19, then 10-29. Ten of its forty layers repeat.
target/release/make-test-model self-merge "$source" --layers 0-19,10-29 -o "$out/self-merge.gguf"
"$headshare" -q convert "$out/self-merge.gguf" --lossless -o "$out/self-merge-lossless.gguf" --force >/dev/null
"$headshare" verify "$out/self-merge-lossless.gguf" --source "$out/self-merge.gguf"

echo
echo "== Run =="
python3 - "$headshare" "$source" "$out/shared-0.1.gguf" "$out/shared-0.3.gguf" \
  "$out/self-merge.gguf" "$out/self-merge-lossless.gguf" <<'PY'
import json, os, subprocess, sys

headshare, *models = sys.argv[1:]
prompt = "The capital of France is"
print(f"prompt: {prompt!r}, 32 tokens, greedy\n")
for model in models:
    result = subprocess.run(
        [headshare, "-q", "run", model, "-p", prompt, "-n", "32", "--temp", "0", "--json"],
        check=True, stdout=subprocess.PIPE)
    result = json.loads(result.stdout)
    memory = result["memory"]
    weights = memory["weights_pss_bytes"]
    print(os.path.basename(model))
    print(f"  file {os.path.getsize(model):,} bytes; weights {memory['logical_weight_bytes']:,} bytes, "
          f"distinct {memory['unique_weight_bytes']:,}, in memory (PSS) "
          + (f"{weights:,}" if weights is not None else "unknown"))
    print(f"  resolve {result['resolve']}, decode {result['decode_tps']:.0f} tokens/s")
    print(f"  text: {result['text']!r}\n")
PY
