"""A pretrained model's GGUF file as transformers reads it: dequantised, float32, greedy.

It greets with one line of JSON, then takes one JSON object a line on stdin and answers each with
one line, numbers that are not finite as null. "do" says what:

    lines      {count, seed, corpus}            -> {"lines": [texts], "ids": [their ids]}
    held_back  {count, seed, corpus, problems}  -> {"prompts": [texts]}
    generate   {prompt, max_new_tokens}         -> {"tokens": [ids], "seconds": of `generate` alone}
    gap        {prompt, tokens, next}           -> how far the tokens `next` lie below the best one
    logits     {prompt, file}                   -> how far the logits in `file` are from its own
    open       {path, made (by `make`)}         -> what loading a model in another form, a folder
                                                   or a GGUF file, came to; `generate`, `gap` and
                                                   `logits` are that one's until `close`
    same_texts {count, seed, corpus}            -> how many lines its tokenizer gives other ids for
    close      {}                               -> the first one's again
    make       {family, path}                   -> saves a small model with random weights there
    gguf       {path}                           -> an exported file's tensors and metadata
    medusa     {folder, prompt, file}           -> exported heads, and how far `file` is from them

With `--measure COMMAND...` it runs the command and prints its time and the most memory it had.
"""

import argparse
import gzip
import json
import math
import os
import random
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

# A started program inherits the peak of the process that starts it: there it has to stay small.
if sys.argv[1:2] != ["--measure"]:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # No folder of compiled scripts among the sources.
    sys.dont_write_bytecode = True
    import exported
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # Type, number format, and what a config of it has besides its sizes.
    FAMILIES = {
        "llama3_scaling": ("llama", torch.bfloat16, {
            "head_dim": 24, "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        }),
        "llama_linear": ("llama", torch.float16, {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        }),
        "qwen2": ("qwen2", torch.float32, {
            "tie_word_embeddings": False, "use_sliding_window": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        }),
        "mistral": ("mistral", torch.bfloat16, {
            "tie_word_embeddings": False, "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        }),
    }

# Blocks of Unicode, each with letters or marks that tokenizers stumble over.
BLOCKS = [
    (0x0020, 0x007E), (0x00A0, 0x024F), (0x0250, 0x02FF), (0x0300, 0x036F), (0x0370, 0x03FF),
    (0x0400, 0x04FF), (0x0530, 0x058F), (0x0590, 0x05FF), (0x0600, 0x06FF), (0x0900, 0x097F),
    (0x0E00, 0x0E7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x214F),
    (0x2190, 0x23FF), (0x2500, 0x27BF), (0x2800, 0x28FF), (0x3000, 0x30FF), (0x3400, 0x3480),
    (0x4E00, 0x9FFF), (0xA980, 0xA9DF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF),
    (0xFB00, 0xFDFF), (0xFE00, 0xFE6F), (0xFF00, 0xFFFF), (0x10000, 0x1007F), (0x10330, 0x1034F),
    (0x12000, 0x120FF), (0x1D100, 0x1D1FF), (0x1D400, 0x1D7FF), (0x1F100, 0x1F1FF),
    (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x2007F), (0xE0000, 0xE01EF),
    (0xF0000, 0xF007F), (0x10FF80, 0x10FFFF),
]
EMOJI = [
    "\U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466", "\U0001F44D\U0001F3FF",
    "\U0001F3F3\uFE0F\u200D\U0001F308", "\U0001F469\U0001F3FD\u200D\U0001F4BB", "\u2764\uFE0F",
    "1\uFE0F\u20E3", "\U0001F1E9\U0001F1EA", "\U0001F600", "\U0001F9D1\u200D\U0001F680", "\u200D",
    "\uFE0F", "\U0001F3FB",
]
SPACES = [
    " ", " ", " ", "  ", "    ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", "\u00A0", "\u2003",
    "\u3000", "\u200B", "\u0085", "\u2028", "\x0B", "\x0C",
]
CONTROLS = [chr(c) for c in [*range(0x20), *range(0x7F, 0xA0), 0xAD]] + list(
    "\u200B\u200E\u200F\u202A\u202E\u2060\u2066\u2069\uFEFF\uFFF9\uFFFD\uFFFE\uFFFF"
)
WORDS = (
    "the quick brown fox don't can't we'll I'm they've HE'S naïve café "
    "Straße façade über ÉCOLE привет мир Москва γειά σου Ελλάδα שלום עולם "
    "مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก 你好 世界 漢字 こんにちは カタカナ 안녕하세요 "
    "세계 xin chào thế giới İstanbul ısırgan ﬁne ﬂow Ⅷ ½ x² naïve "
    "e\u0301te\u0301 self.weight np.float32 def return lambda __init__ "
    "camelCaseName snake_case_name HTTPServer "
).split()
DIGITS = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "²³¹½¾", "𝟎𝟏𝟐𝟑"]
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…—–«»“”‘’¿¡§°±×÷€£¥©®™•"


def corpus_texts(folder, rng, files):
    paths = sorted(Path(folder).rglob("*.py"))
    chosen = rng.sample(paths, min(files, len(paths)))
    texts = [path.read_bytes().decode("utf-8", "ignore") for path in chosen]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise SystemExit(f"no Python code in {folder}")
    return texts


class Lines:
    """Texts of many kinds, the same ones for the same seed."""

    def __init__(self, seed, corpus, specials):
        self.rng = random.Random(seed)
        self.code = [text.splitlines() for text in corpus_texts(corpus, self.rng, 300)]
        self.specials = specials
        self.kinds = [
            self.code_lines, self.unicode, self.marks, self.emoji, self.spaces, self.controls,
            self.digits, self.scripts, self.line_ends, self.special_tokens, self.signs,
            self.repeats,
        ]

    def make(self, count):
        return [self.one() for _ in range(count)]

    def one(self):
        # A few are two kinds joined.
        kinds = [self.rng.choice(self.kinds) for _ in range(self.rng.choice([1] * 11 + [2]))]
        return "".join(kind() for kind in kinds)

    def some(self, choices, least, most):
        return [self.rng.choice(choices) for _ in range(self.rng.randint(least, most))]

    def code_lines(self):
        lines = self.rng.choice(self.code)
        start = self.rng.randrange(len(lines))
        return "\n".join(lines[start : start + self.rng.randint(1, 4)])

    def unicode(self):
        blocks = self.some(self.some(BLOCKS, 1, 4), 1, 40)
        return "".join(chr(self.rng.randint(*block)) for block in blocks)

    def marks(self):
        codes = [*range(0x300, 0x370), *range(0x5B0, 0x5C8), *range(0x64B, 0x660)]
        marks = [chr(code) for code in codes] + ["\u093F", "\u0E31", "\u20D7", "\uFE20"]
        bases = self.some("aeinoЯשبकก ", 12, 12)
        return "".join(base + "".join(self.some(marks, 0, 4)) for base in bases)

    def emoji(self):
        return "".join(self.some(EMOJI + [" ", "a", "\U0001F6B4"], 1, 12))

    def spaces(self):
        pieces = zip(self.some(SPACES, 8, 8), self.some(WORDS + ["", "", "7"], 8, 8))
        return "".join(space * self.rng.choice([1, 1, 2, 3, 9]) + word for space, word in pieces)

    def controls(self):
        pieces = [(CONTROLS, 1, 8), (WORDS, 0, 2), (CONTROLS, 0, 4)]
        return "".join("".join(self.some(*piece)) for piece in pieces)

    def digits(self):
        def number():
            return "".join(self.some(self.rng.choice([DIGITS[0]] * 4 + DIGITS), 1, 12))

        joints = ["", " ", "  ", "\n", "\n\n  ", " - ", "\t", "e+", *".,-x:/_'"]
        return "".join(joint + number() for joint in self.some(joints, 1, 8))

    def scripts(self):
        words = self.some(WORDS, 2, 12)
        return "".join(word + self.rng.choice([" ", " ", "", ", ", "-"]) for word in words)

    def line_ends(self):
        ends = ["\r\n", "\r\n", "\r", "\n", "\n\r", "\r\n\r\n", " \r\n", "\r\n "]
        pairs = zip(self.some(WORDS, 6, 6), self.some(ends, 6, 6))
        return "".join(word + end for word, end in pairs)

    def special_tokens(self):
        whole = self.some(self.specials, 1, 3)
        broken = self.rng.choice(self.specials)
        others = [broken[:-1], broken[1:], broken.upper(), " ", "\n", "user\n"]
        pieces = whole + self.some(others + self.some(WORDS, 1, 3), 1, 5)
        self.rng.shuffle(pieces)
        return "".join(pieces)

    def signs(self):
        return "".join(self.some([*SIGNS, " ", "'s", "'LL", "=>", "!=", "//", "..."], 1, 30))

    def repeats(self):
        piece = self.rng.choice([*WORDS, *SPACES, *SIGNS, "ab", "\U0001F600"])
        return piece * self.rng.randint(0, 70)


def held_back(request):
    """Prompts that nothing was fitted to: programming problems, and code cut anywhere."""
    rng = random.Random(request["seed"])
    with gzip.open(request["problems"], "rt", encoding="utf-8") as file:
        problems = [json.loads(line)["prompt"] for line in file if line.strip()]
    count = request["count"]
    prompts = rng.sample(problems, min(count * 3 // 5, len(problems)))
    texts = corpus_texts(request["corpus"], rng, 2 * count)
    while len(prompts) < count:
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        cut = text[start : start + rng.randint(40, 600)]
        if cut.strip() and "\0" not in cut:
            prompts.append(cut)
    return {"prompts": prompts}


class Model:
    """A model in a GGUF file, dequantised, or in a folder, as it is or in float32."""

    def __init__(self, path, float32=False):
        place, options = os.path.abspath(path), {"dtype": torch.float32} if float32 else {}
        if os.path.isfile(place):
            place, name = os.path.split(place)
            options = {"gguf_file": name, "dtype": torch.float32}
        named = {key: value for key, value in options.items() if key == "gguf_file"}
        self.tokenizer = AutoTokenizer.from_pretrained(place, **named)
        model, self.loading = AutoModelForCausalLM.from_pretrained(
            place, output_loading_info=True, **options
        )
        self.model = model.eval()

    def greeting(self):
        parameters = list(self.model.parameters())
        config = self.model.config
        return {
            "versions": {
                "transformers": transformers.__version__,
                "torch": torch.__version__,
                "gguf": version("gguf"),
            },
            "parameters": sum(p.numel() for p in parameters),
            "float32_bytes": sum(p.numel() * 4 for p in parameters),
            "layers": config.num_hidden_layers,
            "dim": config.hidden_size,
            "ffn": config.intermediate_size,
            "vocab": config.vocab_size,
        }

    def encode(self, text):
        return self.tokenizer(text)["input_ids"]

    def lines(self, request):
        specials = self.tokenizer.get_added_vocab()
        lines = Lines(request["seed"], request["corpus"], sorted(specials)).make(request["count"])
        return {"lines": lines, "ids": self.tokenizer(lines)["input_ids"]}

    def generate(self, request):
        prompt = torch.tensor([self.encode(request["prompt"])])
        start = time.perf_counter()
        output = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request["max_new_tokens"],
            do_sample=False,
            pad_token_id=self.model.config.eos_token_id or 0,
        )
        seconds = time.perf_counter() - start
        return {"tokens": output[0, prompt.shape[1] :].tolist(), "seconds": seconds}

    def gap(self, request):
        ids = self.encode(request["prompt"]) + request["tokens"]
        logits = self.model(torch.tensor([ids])).logits[0, -1]
        best = logits.topk(2).values
        return {
            "gap": (best[0] - logits[request["next"]].min()).item(),
            "gap_of_two_best": (best[0] - best[1]).item(),
        }

    def logits(self, ids):
        return self.model(torch.tensor([ids])).logits[0]


class Peer:
    """The model that it was started with and, while one is open, another form of the same or one
    that `make` made."""

    def __init__(self, path):
        self.path, self.first, self.other, self.is_made = path, Model(path), None, False

    @property
    def model(self):
        return self.other or self.first

    def lines(self, request):
        return self.first.lines(request)

    def held_back(self, request):
        return held_back(request)

    def generate(self, request):
        return self.model.generate(request)

    def gap(self, request):
        return self.model.gap(request)

    def logits(self, request):
        stored = load_file(request["file"])
        ids = self.model.encode(request["prompt"])
        logits = self.model.logits(ids)
        answer = {"tokens": len(ids), "largest_difference": None, "to_first": None}
        if stored["tokens"].tolist() == ids and stored["logits"][0].shape == logits.shape:
            answer["largest_difference"] = (stored["logits"][0] - logits).abs().max().item()
        form = self.other and not self.is_made
        if form and self.first.encode(request["prompt"]) == ids:
            answer["to_first"] = (self.first.logits(ids) - logits).abs().max().item()
        return answer

    def open(self, request):
        self.is_made = request.get("made", False)
        self.other = Model(request["path"], float32=self.is_made)
        if self.is_made:
            # For some families transformers takes a cutting of their own, whatever the folder says.
            self.other.tokenizer = self.first.tokenizer
        first, other = self.first.model, self.other.model
        problems = [f"{key}: {found}" for key, found in self.other.loading.items() if found]
        if type(other) is not type(first):
            problems.append(f"a {type(other).__name__}, not a {type(first).__name__}")
        return {"class": type(other).__name__, "dtype": str(other.dtype), "problems": problems}

    def same_texts(self, request):
        lines = self.first.lines(request)
        ids = self.other.tokenizer(lines["lines"])["input_ids"]
        chat = [{"role": role, "content": "Hello"} for role in ["user", "assistant", "user"]]
        chats = [
            model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            if model.tokenizer.chat_template
            else None
            for model in [self.first, self.other]
        ]
        return {
            "lines": len(ids),
            "differing": sum(one != other for one, other in zip(ids, lines["ids"])),
            "same_chat": chats[0] == chats[1],
        }

    def close(self, _request):
        self.other = None
        return {}

    def make(self, request):
        family, tokenizer = FAMILIES[request["family"]], self.first.tokenizer
        model_type, dtype, special = family
        torch.manual_seed(1)
        sizes = dict(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=160, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            initializer_range=0.1, eos_token_id=tokenizer.eos_token_id,
        )
        config = AutoConfig.for_model(model_type, **{**sizes, **special})
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # What starts out as zeros or ones would hide where it is left out.
                if name.endswith(".bias") or "norm" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.to(dtype).save_pretrained(request["path"], max_shard_size="3MB")
        tokenizer.save_pretrained(request["path"])
        files = sorted(path.name for path in Path(request["path"]).glob("*.safetensors"))
        return {
            "class": type(model).__name__, "dtype": str(dtype), "files": len(files),
            "rope": config.rope_parameters, "tied": config.tie_word_embeddings,
        }

    def gguf(self, request):
        return exported.gguf_file(request["path"], self.path, self.first.model)

    def medusa(self, request):
        stored = load_file(request["file"])
        ids = self.first.encode(request["prompt"])
        return exported.medusa(request["folder"], stored, ids, self.first.model)


def finite(answer):
    """JSON has no name for what is not a number."""
    if isinstance(answer, dict):
        return {key: finite(value) for key, value in answer.items()}
    return None if isinstance(answer, float) and not math.isfinite(answer) else answer


def serve():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    peer = Peer(arguments.model)
    actions = [
        "lines", "held_back", "generate", "gap", "logits", "open", "same_texts", "close", "make",
        "gguf", "medusa",
    ]
    print(json.dumps(peer.first.greeting()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] not in actions:
            raise SystemExit(f"{request['do']} is none of {', '.join(actions)}")
        # A model is made or loaded as it was at the start.
        with torch.inference_mode(request["do"] not in ("open", "make")):
            answer = getattr(peer, request["do"])(request)
        print(json.dumps(finite(answer)), flush=True)


def measure(command):
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` failed ({child.returncode})")
    print(json.dumps({"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    else:
        serve()
