"""What other software makes of the files that we export, with nothing passed over in silence."""

import json
from itertools import combinations
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, silu

# Keys of a GGUF file's tokenizer that a copy has to repeat.
TOKENIZER = [
    "tokenizer.chat_template", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.merges", "tokenizer.ggml.model",
    "tokenizer.ggml.token_type", "tokenizer.ggml.tokens",
]


def gguf_file(path, source, model):
    """A GGUF file as the package `gguf` reads it: its tensors beside those that a model of these
    sizes has, under that package's own names, and its metadata beside that of the file `source`."""
    reader = gguf.GGUFReader(path)
    # The reader names dimensions from the innermost on.
    found = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    wanted = gguf_tensors(model)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} has no place" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    metadata = contents(reader)
    original = contents(gguf.GGUFReader(source))
    family = metadata.get("general.architecture")
    told = {key for key in original.keys() | metadata.keys() if not key.startswith("GGUF.")}
    others = sorted(key for key in told if original.get(key) != metadata.get(key))
    strict = [key for key in others if key in TOKENIZER or key.startswith(f"{family}.")]
    return {
        "tensors": len(found),
        "types": sorted({tensor.tensor_type.name for tensor in reader.tensors}),
        "problems": problems + [f"the key {key} is another" for key in strict],
        "other_keys": {key: [brief(original.get(key)), brief(metadata.get(key))] for key in others},
    }


def brief(value):
    return value if len(str(value)) <= 80 else f"{str(value)[:40]}… ({len(value)})"


def contents(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


def gguf_tensors(model):
    """The shape of every tensor of a model, by its name in GGUF files."""
    config = model.config
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    shapes = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            shapes[names.get_name(name, (".weight", ".bias")) or name] = tuple(tensor.shape)
    if config.rope_parameters["rope_type"] == "llama3":
        shapes["rope_freqs.weight"] = (config.head_dim // 2,)
    return shapes


class MedusaDraft:
    """A draft model for vLLM's class Medusa, by what its loader asks for.

    Where that passes over a tensor without a place, or leaves one as it was made, it is a problem
    here.
    """

    def __init__(self, folder, target):
        self.problems = []
        config = self.config(json.loads((Path(folder) / "config.json").read_text()))
        self.dim, self.vocab = config["hidden_size"], config["vocab_size"]
        self.heads, self.layers = config["num_heads"], config["num_hidden_layers"]
        self.drafted = config.get("truncated_vocab_size") or self.vocab
        self.shared = config.get("original_lm_head", False)
        self.bias = config.get("medusa_fc_bias", False)
        self.scale = config.get("logit_scale", 1.0)
        for key, ours, wanted in [
            ("model_type", config.get("model_type"), "medusa"),
            ("architectures", config.get("architectures"), ["MedusaModel"]),
            ("hidden_size", self.dim, target.hidden_size),
            ("vocab_size", self.vocab, target.vocab_size),
        ]:
            if ours != wanted:
                self.problems.append(f"{key} is {ours}, not {wanted}")
        self.tensors = load_file(Path(folder) / "model.safetensors")
        self.check_tensors()

    def config(self, stored):
        # vLLM renames any key that looks like one of these two; the last one counts.
        config = {}
        for key, value in stored.items():
            if "num" in key and "heads" in key:
                key = "num_heads"
            elif "num" in key and "layers" in key:
                key = "num_hidden_layers"
            if key in config:
                self.problems.append(f"{key} is there twice")
            config[key] = value
        return config

    def wanted(self):
        shapes = {}
        for head in range(self.heads):
            for layer in range(self.layers):
                shapes[f"blocks.{head}.layers.{layer}.weight"] = (self.dim, self.dim)
                if self.bias:
                    shapes[f"blocks.{head}.layers.{layer}.bias"] = (self.dim,)
        for head in range(1 if self.shared else self.heads):
            shapes[f"lm_heads.{head}.weight"] = (self.drafted, self.dim)
        if self.drafted < self.vocab:
            shapes["token_map"] = (self.drafted,)
        return shapes

    def check_tensors(self):
        wanted = self.wanted()
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                self.problems.append(f"{name} is {found.get(name)}, not {wanted.get(name)}")
        ids = self.tensors.get("token_map")
        if ids is None:
            return
        if ids.is_floating_point() or ids.min() < 0 or ids.max() >= self.vocab:
            self.problems.append("token_map holds other things than tokens")
        elif len(ids.unique()) < len(ids):
            self.problems.append("token_map holds a token twice")

    def logits(self, hidden):
        """From the final hidden states [seq, dim], for each head [seq, drafted]."""
        found = []
        for head in range(self.heads):
            x = hidden
            for layer in range(self.layers):
                name = f"blocks.{head}.layers.{layer}"
                weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
                x = x + silu(linear(x, weight, bias))
            unembedding = self.tensors[f"lm_heads.{0 if self.shared else head}.weight"]
            found.append(self.scale * linear(x, unembedding))
        return found


def medusa(folder, stored, ids, model):
    """The heads in `folder` over the model's final hidden states, beside the logits `stored`."""
    draft = MedusaDraft(folder, model.config)
    answer = {
        "heads": draft.heads, "draft_vocabulary": draft.drafted, "problems": draft.problems,
        "tokens": len(ids), "largest_difference": None, "least_apart": None,
    }
    if stored["tokens"].tolist() != ids:
        draft.problems.append("our tokens are others")
    if stored["logits"].shape[0] != draft.heads + 1:
        draft.problems.append(f"{draft.heads} heads, our logits are of {len(stored['logits'])}")
    if draft.problems:
        return answer
    hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    ours = stored["logits"]
    if draft.drafted < draft.vocab:
        ours = ours[..., draft.tensors["token_map"]]
    differences = torch.stack(draft.logits(hidden)) - ours[1:]
    answer["largest_difference"] = differences.abs().max().item()
    # How far any two heads lie apart: below that no comparison could tell them from each other.
    pairs = combinations(ours, 2)
    answer["least_apart"] = min((one - other).abs().max().item() for one, other in pairs)
    return answer
