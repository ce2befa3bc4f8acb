"""Trains a foretoken model folder in plain PyTorch: eager mode, nn.Module, autograd.

The same network (Llama blocks, n heads over a shared trunk, norm and unembedding), first weights,
batches and optimiser settings as `train_steps` in this package, written the way one writes it
first: no fused tensors, all heads' losses in one graph. With --compile the model with its losses
goes through torch.compile as it is (inductor, whole graph); the optimiser stays what it was.

It takes commands on stdin and answers each with one line of JSON on stdout:

    steps N     trains N steps          -> {"seconds": ..., "losses": [one a step]}
    evaluate    held-out batches        -> {"losses": [one a head]}

The first steps of a compiled model compile it; where that fails the answer is {"failed": why} and
the program ends.
"""

import argparse
import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or dim // self.heads
        self.q_proj = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, dim, bias=False)

    def forward(self, x, cos, sin):
        batch, seq, _ = x.shape

        def split(projected, heads):
            return projected.view(batch, seq, heads, self.head_dim).transpose(1, 2)

        q = rotate(split(self.q_proj(x), self.heads), cos, sin)
        k = rotate(split(self.k_proj(x), self.kv_heads), cos, sin)
        v = split(self.v_proj(x), self.kv_heads)
        grouped = self.kv_heads != self.heads
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, seq, -1))


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def rotary_tables(head_dim, theta, positions):
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = RMSNorm(dim, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(dim, eps)
        self.mlp = Mlp(config)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class MultiTokenModel(nn.Module):
    """A trunk of blocks, one block a head, a final norm and an unembedding that the heads share."""

    def __init__(self, config):
        super().__init__()
        vocab, dim = config["vocab_size"], config["hidden_size"]
        count = config.get("foretoken", {}).get("heads", {}).get("count", 1)
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"] - 1))
        self.heads = nn.ModuleList(Block(config) for _ in range(count))
        self.norm = RMSNorm(dim, config["rms_norm_eps"])
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        head_dim = config.get("head_dim") or dim // config["num_attention_heads"]
        theta = rope_theta(config)
        cos, sin = rotary_tables(head_dim, theta, config["max_position_embeddings"])
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def losses(self, tokens):
        """Mean cross-entropy of every head; `tokens` is [batch, seq + heads]."""
        seq = tokens.shape[1] - len(self.heads)
        cos, sin = self.cos[:seq], self.sin[:seq]
        x = self.embed_tokens(tokens[:, :seq])
        for layer in self.layers:
            x = layer(x, cos, sin)
        losses = []
        for i, head in enumerate(self.heads):
            logits = self.lm_head(self.norm(head(x, cos, sin)))
            targets = tokens[:, i + 1 : i + 1 + seq]
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        return torch.stack(losses)


def rope_theta(config):
    parameters = config.get("rope_parameters") or {}
    return config.get("rope_theta") or parameters.get("rope_theta") or 10_000.0


def load(folder):
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    model = MultiTokenModel(config)
    stored = load_file(os.path.join(folder, "model.safetensors"))
    extra = os.path.join(folder, "heads.safetensors")
    if os.path.exists(extra):
        stored |= load_file(extra)
    last = f"layers.{config['num_hidden_layers'] - 1}."
    weights = {}
    for name, tensor in stored.items():
        name = name.removeprefix("model.")
        if name.startswith(last):
            name = "heads.0." + name.removeprefix(last)
        weights[name] = tensor
    model.load_state_dict(weights | {"cos": model.cos, "sin": model.sin})
    return model


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps, matrix by matrix."""

    def __init__(self, matrices, momentum, weight_decay, dtype):
        super().__init__(matrices, {"lr": 0.0})
        self.momentum, self.weight_decay, self.dtype = momentum, weight_decay, dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - self.momentum)
                update = orthogonalize(p.grad.lerp(buffer, self.momentum), self.dtype)
                p.mul_(1 - group["lr"] * self.weight_decay)
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix, dtype):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    transposed = x.shape[0] > x.shape[1]
    if transposed:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if transposed else x).float()


class Optimizers:
    """What the recipe's [optimizer] section says, with its schedule."""

    def __init__(self, model, section, steps):
        self.model, self.section, self.steps, self.done = model, section, steps, 0
        named = dict(model.named_parameters())
        inside = [n for n in named if n.startswith(("layers.", "heads."))]
        matrices = [named[n] for n in inside if named[n].dim() == 2]
        tables = [named["embed_tokens.weight"], named["lm_head.weight"]]
        norms = [p for p in named.values() if p.dim() == 1]
        muon = section["type"] == "muon"
        decay = section["weight_decay"]
        self.adamw = torch.optim.AdamW(
            [
                {"params": tables if muon else matrices + tables, "weight_decay": decay},
                {"params": norms, "weight_decay": 0.0},
            ],
            betas=(section["beta1"], section["beta2"]),
            eps=section["epsilon"],
        )
        dtype = getattr(torch, section["muon_precision"])
        self.muon = Muon(matrices, section["muon_momentum"], decay, dtype) if muon else None

    def step(self):
        section, factor = self.section, schedule_factor(self.section, self.done, self.steps)
        if section["clip"] > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), section["clip"])
        for group in self.adamw.param_groups:
            group["lr"] = section["learning_rate"] * factor
        self.adamw.step()
        if self.muon:
            for group in self.muon.param_groups:
                group["lr"] = section["muon_learning_rate"] * factor
            self.muon.step()
        self.model.zero_grad()
        self.done += 1


def schedule_factor(section, step, steps):
    warmup = section["warmup"]
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if section["schedule"] != "cosine":
        raise SystemExit(f"the schedule {section['schedule']} is not built here")
    progress = min(1.0, (step - warmup) / (max(steps - 1, warmup + 1) - warmup))
    final = section["final_fraction"]
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def train_steps(losses_of, train, optimizers, count):
    losses = []
    start = time.perf_counter()
    for _ in range(count):
        loss = losses_of(train[optimizers.done % len(train)])
        loss.sum().backward()
        optimizers.step()
        losses.append(loss.detach()[0])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "losses": torch.stack(losses).tolist()}


def evaluate(model, held_out):
    with torch.no_grad():
        losses = torch.stack([model.losses(batch) for batch in held_out]).mean(0)
    return {"losses": losses.tolist()}


def failure(error):
    """One line of why a compilation failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def say(answer):
    print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", required=True, help="the folder that `train_steps prepare` wrote")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with open(os.path.join(arguments.job, "recipe.json")) as file:
        recipe = json.load(file)
    batches = load_file(os.path.join(arguments.job, "batches.safetensors"))
    train, held_out = batches["train"], batches["held_out"]
    model = load(os.path.join(arguments.job, "model"))
    optimizers = Optimizers(model, recipe["optimizer"], recipe["train"]["steps"])
    losses_of = torch.compile(model.losses) if arguments.compile else model.losses
    say(
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "versions": {"torch": torch.__version__},
        }
    )
    for line in sys.stdin:
        command = line.split()
        if command[0] == "steps":
            compiles = arguments.compile and optimizers.done == 0
            try:
                say(train_steps(losses_of, train, optimizers, int(command[1])))
            except Exception as error:
                if not compiles:
                    raise
                say({"failed": failure(error)})
                return
        else:
            say(evaluate(model, held_out))


if __name__ == "__main__":
    main()
