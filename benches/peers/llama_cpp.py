"""Continues prompts with llama.cpp: greedy, on the CPU, with a float32 KV cache.

It opens the GGUF file as llama.cpp does. On stdin it takes one JSON object a line,
{"prompt": text, "max_new_tokens": n}, and answers each with one line: {"tokens": [...],
"seconds": ...}, the time that llama.cpp itself gives for prompt and continuation.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import urllib.request

# The library writes its log where it likes; answers have the real stdout to themselves.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import xllamacpp  # noqa: E402


def serve(model, threads):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 2048
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = False
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.verbosity = 1
    params.ui = False
    return xllamacpp.Server(params)


def ask(server, request):
    body = {
        "prompt": request["prompt"],
        "n_predict": request["max_new_tokens"],
        "temperature": 0,
        "top_k": 1,
        "repeat_penalty": 1.0,
        "return_tokens": True,
        "cache_prompt": False,
    }
    call = urllib.request.Request(
        server.listening_address + "/completion",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    answer = json.loads(urllib.request.urlopen(call).read())
    timings = answer["timings"]
    seconds = (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3
    return {"tokens": answer["tokens"], "seconds": seconds}


def say(answer):
    print(json.dumps(answer), file=ANSWERS, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    server = serve(arguments.model, arguments.threads)
    version = importlib.metadata.version("xllamacpp")
    say({"xllamacpp": version, "system": str(xllamacpp.get_system_info()).strip()})
    for line in sys.stdin:
        say(ask(server, json.loads(line)))


if __name__ == "__main__":
    main()
