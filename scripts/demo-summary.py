"""Runs models and prints a line for each: size, memory, speed, text.

usage: demo-summary.py HEADSHARE-GGUF MODEL=LABEL...
"""

import json
import os
import subprocess
import sys

PROMPT = "The capital of France is"
HEADINGS = ("file", "what it is", "file MB", "in memory MB", "tokens/s", "text")


def measure(headshare, model, label):
    """The cells of one model's line."""
    command = [headshare, "-q", "run", model, "-p", PROMPT, "-n", "24", "--temp", "0", "--json"]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    weights = result["memory"]["weights_pss_bytes"]
    return (
        os.path.basename(model),
        label,
        f"{os.path.getsize(model) / 1e6:.1f}",
        "unknown" if weights is None else f"{weights / 1e6:.1f}",
        f"{result['decode_tps']:.0f}",
        " ".join(result["text"].split()),
    )


def main():
    headshare, *models = sys.argv[1:]
    rows = [HEADINGS]
    rows += [measure(headshare, *model.rsplit("=", 1)) for model in models]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    print(f"Prompt: {PROMPT!r}, 24 tokens, always the most probable one.\n")
    for file, label, *numbers, text in rows:
        cells = [file.ljust(widths[0]), label.ljust(widths[1])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:])]
        print("  ".join([*cells, text]))
    print(
        "\n"
        "\"in memory\" is what the weights take while the model runs; blocks that are shared\n"
        "are there once. Sharing without --repair costs quality, as the texts show; the two\n"
        "merged files give the same text, since only equal copies were dropped. The files\n"
        "are in target/demo; README.md shows what else can be done with them."
    )


main()
