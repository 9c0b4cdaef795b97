"""Generates greedily with the llama.cpp server inside PyPI's xllamacpp, a build
that nobody here made, and prints one JSON object:

  text      what was generated
  tokens    [{"id", "logprob", "top": [[id, logprob], ...]}, ...]
  memory    proportional set size of the whole process in KiB, after loading
            and at the end ("loaded", "generated"), and the number of mappings
  seconds   how long loading and generating took

Run it as it is for a plain file, and through `headshare-gguf exec` for a
converted one.
"""

import argparse
import json
import os
import sys
import time

import xllamacpp


def memory() -> dict:
    with open("/proc/self/smaps_rollup") as rollup:
        sizes = dict(line.split(":", 1) for line in rollup if ":" in line[:24])
    with open("/proc/self/maps") as maps:
        mappings = sum(1 for _ in maps)
    return {"pss_kib": int(sizes["Pss"].split()[0]), "mappings": mappings}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("-n", type=int, default=32, help="tokens to generate")
    parser.add_argument("--repack", choices=["on", "off"], default="on")
    modes = {
        name.removeprefix("LLAMA_LOAD_MODE_").lower(): getattr(xllamacpp.llama_load_mode, name)
        for name in dir(xllamacpp.llama_load_mode)
        if name.startswith("LLAMA_LOAD_MODE_")
    }
    parser.add_argument("--load-mode", choices=modes, default="mmap")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    args.load_mode = modes[args.load_mode]
    return args


def main() -> None:
    args = arguments()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.load_mode = args.load_mode
    params.no_extra_bufts = args.repack == "off"
    params.n_ctx = args.context
    params.n_parallel = 1
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.warmup = False
    params.fit_params = False

    started = time.monotonic()
    server = xllamacpp.Server(params)
    loaded = time.monotonic()
    at_load = memory()
    reply = server.handle_completions(
        {
            "prompt": args.prompt,
            "n_predict": args.n,
            "max_tokens": args.n,
            "temperature": 0,
            "logprobs": 5,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    generated = time.monotonic()
    if "choices" not in reply:
        sys.exit(f"the server answered {reply}")
    choice = reply["choices"][0]
    tokens = [
        {
            "id": token["id"],
            "logprob": token["logprob"],
            "top": [[top["id"], top["logprob"]] for top in token["top_logprobs"]],
        }
        for token in choice["logprobs"]["content"]
    ]
    result = {
        "text": choice["text"],
        "tokens": tokens,
        "memory": {"loaded": at_load, "generated": memory()},
        "seconds": {"load": loaded - started, "generate": generated - loaded},
        "timings": reply.get("timings"),
    }
    json.dump(result, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()
    # The server's threads need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
