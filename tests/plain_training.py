"""A training written out once more, in float64 and as plainly as it can be: what `nanochat.train` computes, by definition.

Nothing of the library is used but the shapes: the model, the loss, the clipping, both optimizers, the schedule and the order of
the rows are written from their papers and from docs/transformer.md. One row after the other, matrices as they are.
"""

import math

import numpy as np
import torch


def train_plainly(weights, rows, masks, *, model, training, num_steps):
    """Losses, gradient norms and final weights (name -> float64) of `num_steps` of a training that is `num_steps` long."""
    weights = {name: tensor.double().requires_grad_() for name, tensor in weights.items()}
    moments = {name: (torch.zeros_like(tensor), torch.zeros_like(tensor)) for name, tensor in weights.items()}
    losses, norms = [], []
    for step in range(num_steps):
        chosen = order_of_rows(len(rows), training["batch_rows"], step, training["seed"])
        total = sum(loss_of_row(weights, rows[row], masks[row], model) for row in chosen)
        loss = total / sum(int(masks[row][1:].sum()) for row in chosen)
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        if norm > training["grad_clip"]:
            gradients = {name: gradient * training["grad_clip"] / norm for name, gradient in gradients.items()}
        rate = rate_at(step, num_steps, training)
        for name, weight in weights.items():
            move(name, weight, gradients[name], moments[name], step=step, rate=rate, model=model, training=training)
        losses.append(loss.item())
        norms.append(norm)
    return losses, norms, {name: weight.detach() for name, weight in weights.items()}


def order_of_rows(num_rows, batch_rows, step, seed):
    """The rows of a step: epochs, each in an order of its own, follow one another without a gap."""
    positions = range(step * batch_rows, (step + 1) * batch_rows)
    orders = {epoch: np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_rows) for epoch in range(9)}
    return [int(orders[position // num_rows][position % num_rows]) for position in positions]


def rate_at(step, num_steps, training):
    warmup, warmdown = round(training["warmup_ratio"] * num_steps), round(training["warmdown_ratio"] * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if step > num_steps - warmdown:
        left = (num_steps - step) / warmdown
        return left + (1 - left) * training["final_lr_ratio"]
    return 1.0


# -- the model ---------------------------------------------------------------------------------------------------------------


def loss_of_row(weights, row, mask, model):
    """Cross-entropy in nats, summed over the tokens of a row that are to be learned."""
    ids = torch.tensor(row.astype(np.int64))
    x = normalized(weights["wte.weight"][ids[:-1]])
    for layer in range(model["n_layer"]):
        block = {name.removeprefix(f"blocks.{layer}."): w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
        x = x + attention(block, normalized(x), model)
        hidden = (normalized(x) @ block["mlp.c_fc.weight"].T).clamp(min=0) ** 2
        x = x + hidden @ block["mlp.c_proj.weight"].T
    logits = normalized(x) @ weights["lm_head.weight"].T
    logits = model["soft_cap"] * torch.tanh(logits / model["soft_cap"])
    scores = logits.logsumexp(dim=1) - logits[torch.arange(len(logits)), ids[1:]]
    return (scores * torch.tensor(mask[1:].astype(np.float64))).sum()


def attention(block, x, model):
    width, queries, keys = model["n_embd"] // model["n_head"], model["n_head"], model["n_kv_head"]
    outputs = []
    for head in range(queries):
        shared = head * keys // queries
        q = x @ block["attn.c_q.weight"][head * width : (head + 1) * width].T
        k, v = (x @ block[f"attn.c_{kind}.weight"][shared * width : (shared + 1) * width].T for kind in "kv")
        q, k = (normalized(turned(part, model["rope_base"])) for part in (q, k))
        scores = q @ k.T / math.sqrt(width)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        outputs.append(scores.softmax(dim=1) @ v)
    return torch.cat(outputs, dim=1) @ block["attn.c_proj.weight"].T


def turned(x, base):
    """Position p turns the pair (i, i + half) by p * base ** (-i / half)."""
    half = x.size(1) // 2
    angles = torch.arange(len(x)).double()[:, None] * base ** (-torch.arange(half).double() / half)
    first, second = x[:, :half], x[:, half:]
    return torch.cat([first * angles.cos() + second * angles.sin(), second * angles.cos() - first * angles.sin()], dim=1)


def normalized(x):
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()


# -- the optimizers ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def move(name, weight, gradient, moments, *, step, rate, model, training):
    mean, square = moments
    if name.startswith("blocks."):
        momentum = 0.85 + (0.95 - 0.85) * min(step / 300, 1)
        mean += (1 - momentum) * (gradient - mean)
        update = orthogonal(gradient + momentum * (mean - gradient))
        weight -= training["matrix_lr"] * rate * math.sqrt(max(1, weight.size(0) / weight.size(1))) * update
        return
    lr = training["embedding_lr" if name == "wte.weight" else "unembedding_lr"] * math.sqrt(768 / model["n_embd"]) * rate
    mean += (1 - 0.8) * (gradient - mean)
    square += (1 - 0.95) * (gradient**2 - square)
    weight *= 1 - lr * training["weight_decay"]
    weight -= lr * mean / (1 - 0.8 ** (step + 1)) / ((square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-10)


def orthogonal(matrix):
    x = matrix / (matrix.norm() + 1e-7)
    if x.size(0) > x.size(1):
        return orthogonal(matrix.T).T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x
