"""The concepts of training, in the order of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nanochat.concepts.concept import Concept, at

if TYPE_CHECKING:
    from nanochat.gpt import GPTConfig


def batches(config: GPTConfig) -> Concept:
    return Concept(
        name="Batches",
        group="training",
        summary="Text is packed once into rows of T + 1 tokens. The first T are what the model reads, and the same row "
        "one token later is what it has to predict: T predictions from one row. Which rows a step takes follows from "
        "the seed and the step.",
        equation=r"y_t = \mathrm{idx}_{t+1}",
        places=(
            at("dataloader.PackedRows.inputs_and_targets"),
            at("dataloader.PackedRows.inputs_and_targets", assigns="x"),
            at("dataloader.PackedRows.inputs_and_targets", assigns="y"),
            at("dataloader.Loader.batch"),
            at("packing.pack_documents"),
        ),
        change="More tokens a step: smoother gradients; where base_train.steps is given, also more text in all, and otherwise "
        "fewer steps for the same text. Another seed: the same rows in another order; how much two runs differ by chance.",
        edits={"base_train.total_batch_tokens": 8192, "base_train.seed": 43},
    )


def loss(config: GPTConfig) -> Concept:
    return Concept(
        name="Loss",
        group="training",
        summary="Cross-entropy: minus the logarithm of the probability that the model gave to the token that really came next, "
        "averaged over the N supervised tokens of the step. Tokens that do not count have the target -1.",
        equation=r"L = - \frac{1}{N} \sum_{t} \ln p(y_t \mid \mathrm{idx}_1, \dots, \mathrm{idx}_t)",
        places=(
            at("train.sum_of_losses", code=CROSS_ENTROPY),
            at("train.sum_of_losses", code="model(inputs)"),
            at("train.update", code="loss_of(model, inputs, targets) / num_supervised"),
        ),
        change="In fine-tuning: learn from the user's words too, or from the assistant's alone.",
        edits={"sft.mask_user": False},
    )


CROSS_ENTROPY = 'F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")'


def gradient_update(config: GPTConfig) -> Concept:
    return Concept(
        name="Gradient update",
        group="training",
        summary="The batch goes through the model in micro-batches whose gradients add up, over all GPUs. If the norm "
        "of the whole gradient exceeds a limit, all of it is shortened to that limit. Then the optimizers move every "
        "parameter, and the gradients are dropped.",
        equation=r"g = \nabla_w L, \quad g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert}\right), \quad "
        r"w \leftarrow w - \eta \cdot \mathrm{update}(g)",
        places=(
            at("train.update"),
            at("train.update", code="part.backward()"),
            at("train.update", code="optimizer.sum_gradients()"),
            at("train.update", assigns="grad_norm"),
            at("optimizer.clip_gradients", code="torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)"),
            at("train.update", code="optimizer.step(step=step, lr_scale=lr_scale, progress=progress)"),
            at("train.update", assigns="parameter.grad"),
        ),
        change="0: gradients are never shortened. micro_batch changes memory and speed, and the results by rounding alone.",
        edits={"base_train.grad_clip": 0.0, "base_train.micro_batch": 1},
    )


def optimizer_muon(config: GPTConfig) -> Concept:
    return Concept(
        name="Optimizer: Muon",
        group="training",
        summary="For the matrices inside the blocks. The running mean of the gradient is made nearly orthogonal (nearly "
        "all its singular values near 1) before it is applied, so that all these directions learn at about the same pace.",
        equation=r"m \leftarrow \mu m + (1 - \mu) g, \quad u = \mathrm{orthogonalize}((1 - \mu) g + \mu m), \quad "
        r"W \leftarrow W - \eta \sqrt{\max(1, \mathrm{rows} / \mathrm{columns})} u",
        places=(
            at("muon.Muon.step"),
            at("muon.Muon.step", code="momenta.lerp_(gradients, 1 - momentum)"),
            at("muon.Muon.step", assigns="updates"),
            at("muon.orthogonalize"),
            at("muon.orthogonalize", code="a * x + (b * gram + c * gram @ gram) @ x"),
            at("muon.Muon.step", code="parameter.sub_(update, alpha=lr)"),
            at("optimizer.build_optimizer", assigns="muon"),
        ),
        change="Its rate, for the matrices alone.",
        edits={"base_train.matrix_lr": 0.01},
    )


def optimizer_adamw(config: GPTConfig) -> Concept:
    return Concept(
        name="Optimizer: AdamW",
        group="training",
        summary="For the tables, the output matrix and all vectors. Each number moves by its gradient's running mean, "
        "divided by the root of its running square: a step of about the rate, whatever the gradient's size.",
        equation=r"m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad "
        r"w \leftarrow (1 - \eta \lambda) w - \eta \frac{\hat{m}}{\sqrt{\hat{v}} + \epsilon}",
        places=(
            at("adamw.AdamW.step"),
            at("adamw.AdamW.step", code="mean.lerp_(gradient, 1 - beta1)"),
            at("adamw.AdamW.step", code="square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)"),
            at("adamw.AdamW.step", code="parameter.addcdiv_(mean, spread, value=-lr / mean_bias)"),
            at("optimizer.build_optimizer", assigns="adamws"),
        ),
        change="Its rates: of the tables (embedding_lr) and of the rest (unembedding_lr); its decay.",
        edits={"base_train.embedding_lr": 0.1, "base_train.unembedding_lr": 0.002, "base_train.weight_decay": 0.01},
    )


def learning_rate(config: GPTConfig) -> Concept:
    return Concept(
        name="Learning-rate schedule",
        group="training",
        summary="All rates rise and fall together: an optional linear rise, a plateau, a linear fall at the end (a trapezoid). "
        "Muon's momentum rises over the first steps.",
        equation=r"\eta_s = \eta \frac{s + 1}{w} \text{ in the first } w \text{ steps}, \quad "
        r"\eta_s = \eta (\ell + (1 - \ell) r) \text{ in the last } d, \quad \ell = \frac{n - s}{d}",
        places=(
            at("schedule.learning_rate_scale"),
            at("schedule.learning_rate_scale", code="left + (1 - left) * final_lr_ratio"),
            at("schedule.muon_momentum"),
            at("train.Schedule.scale"),
            at("train.train", assigns="lr_scale"),
        ),
        change="How long the rise and the fall are, and where the fall ends.",
        edits={"base_train.warmup_ratio": 0.1, "base_train.warmdown_ratio": 0.5, "base_train.final_lr_ratio": 0.1},
    )


def metrics(config: GPTConfig) -> Concept:
    return Concept(
        name="Metrics",
        group="training",
        summary="Each step's loss, learning-rate scale and gradient norm are logged. Text that is never trained on gives the "
        "validation loss and, in bits per byte, a number that does not depend on the tokenizer. CORE and the chat "
        "scores ask what the model can do; both are corrected for guessing.",
        equation=r"\mathrm{bpb} = \frac{- \sum_t \log_2 p(y_t)}{\sum_t \mathrm{bytes}(y_t)}, \quad "
        r"\mathrm{CORE} = \mathrm{mean} \frac{\mathrm{accuracy} - \mathrm{chance}}{1 - \mathrm{chance}}",
        places=(
            at("loss_eval.evaluate_bpb"),
            at("loss_eval.evaluate_bpb", code="text_nats / (math.log(2) * num_bytes)"),
            at("train.train", code=METRICS_ROW),
            at("core_eval.evaluate_core"),
            at("accuracy.centered"),
            at("chat_eval.evaluate_chat"),
        ),
        change="How often the validation loss is measured, and on how many tokens; how many items of each task are asked.",
        edits={"base_train.eval_every": 50, "base_train.eval_tokens": 65_536, "base_eval.max_per_task": 20},
    )


METRICS_ROW = 'metrics.append({"step": step, "loss": loss, "lr_scale": lr_scale, "grad_norm": grad_norm, "tokens": tokens})'

TRAINING: tuple[Callable[[GPTConfig], Concept | None], ...] = (
    batches,
    loss,
    gradient_update,
    optimizer_muon,
    optimizer_adamw,
    learning_rate,
    metrics,
)
