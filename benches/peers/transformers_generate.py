"""Decodes prompts with transformers' `generate`: greedy, float32, with its KV cache.

It reads the folder as any user would (`AutoModelForCausalLM.from_pretrained`). On stdin it takes
one JSON object a line, {"prompt": text, "max_new_tokens": n}, and answers each with one line:
{"prompt_tokens": n, "tokens": [...], "seconds": ...}, the time of `generate` alone.
"""

import argparse
import json
import os
import sys
import time

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(os.path.join(arguments.model, "tokenizer.json"))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prompt = torch.tensor([tokenizer.encode(request["prompt"]).ids])
        start = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request["max_new_tokens"],
                do_sample=False,
                pad_token_id=model.config.eos_token_id or 0,
            )
        seconds = time.perf_counter() - start
        tokens = output[0, prompt.shape[1] :].tolist()
        answer = {"prompt_tokens": prompt.shape[1], "tokens": tokens, "seconds": seconds}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
