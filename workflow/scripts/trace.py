"""Trace a prompt through a model, and one step of its training; beside it another run's model, or the other preset's.

On one core of the CPU, whatever trained the model; in float32, but for Muon's iteration, which is in bfloat16 where the CPU
multiplies that fast, as in the trainings. On CPUs of one kind the same bytes every time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.identities import require_same_tokenizer
from nanochat.manifest import open_verified, read_json_lines, write_json
from nanochat.stage import Stage, log, run_program, stage_parser

if TYPE_CHECKING:
    from nanochat.gpt import GPTConfig
    from nanochat.tokenizer import Tokenizer

FILES = ["trace.json", "forward.html", "step.html"]


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--run", required=True, help="name of the run, for the pages")
    parser.add_argument("--model", type=Path, required=True, help="manifest of the model to trace")
    parser.add_argument("--tokens", type=Path, required=True, help="manifest of the packed rows that it was trained on")
    parser.add_argument("--beside", type=Path, nargs="?", help="manifest of the other run's model")
    args = parser.parse_args()

    inputs = {"model": args.model, "tokens": args.tokens, **({"beside": args.beside} if args.beside else {})}
    stage = Stage(args.manifest, specification=args.specification, inputs=inputs)
    if not stage.is_done():  # before PyTorch is imported, which takes seconds
        run(args, stage)


def run(args, stage: Stage) -> None:
    import torch

    from nanochat.tracing.forward_page import write_forward_page
    from nanochat.tracing.step_page import write_step_page

    torch.set_num_threads(1)  # with more, the order of the sums would depend on the machine
    trace = make_trace(args)
    write_json(stage.folder / "trace.json", trace)
    write_forward_page(stage.folder / "forward.html", trace, title=f"Forward pass of {args.run}")
    write_step_page(stage.folder / "step.html", trace, title=f"Training step of {args.run}")
    stage.publish(FILES, results=headlines(trace))


def make_trace(args) -> dict[str, Any]:
    """Everything that the pages show."""
    from nanochat.checkpoint import load_model
    from nanochat.component_map import component_map
    from nanochat.dataloader import open_rows
    from nanochat.tracing.differences import differences
    from nanochat.tracing.forward import counterpart, nearest_preset, trace_forward
    from nanochat.tracing.step import trace_step

    specification, trained, tokens = args.specification, open_verified(args.model), open_verified(args.tokens)
    require_same_tokenizer(tokens, trained.inputs.get("tokenizer"), whose=args.model)
    training, num_tokens = specification["model"], specification["step_tokens"]
    model, tokenizer = load_model(args.model.parent, dtype="float32")
    other = counterpart(model.config)

    log.info(f"{specification['prompt']!r} goes through {training} of {args.run}")
    forward = trace_forward(model, tokenizer, specification["prompt"], name=args.run, is_chat=training != "base_train")
    beside = trace_beside(args, model.config, tokenizer)
    log.info(f"one step of {training}, on {num_tokens} tokens")
    step = trace_step(
        model,
        tokenizer,
        open_rows(tokens, "train"),
        open_rows(tokens, "validation"),
        trained.specification,
        read_json_lines(trained.path("metrics.jsonl")),
        num_tokens=num_tokens,
        name=args.run,
    )
    return {
        "forward": forward,
        "beside": beside,
        "differences": differences(model.config.as_dict(), beside["config"]),
        "step": step,
        "components": {nearest_preset(config): component_map(config) for config in (model.config, other)},
    }


def trace_beside(args, config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The same prompt through what stands beside: another run's model, or the other preset at these sizes, untrained."""
    from nanochat.tracing.beside import trace_counterpart, trace_trained

    specification = args.specification
    prompt, is_chat = specification["prompt"], specification["model"] != "base_train"
    log.info(f"beside it: {specification['beside'] if args.beside else 'the other preset, untrained'}")
    if args.beside:
        return trace_trained(args.beside.parent, config, prompt, name=specification["beside"], is_chat=is_chat)
    return trace_counterpart(config, tokenizer, prompt, is_chat=is_chat)


def headlines(trace: dict[str, Any]) -> dict[str, Any]:
    """What the model would say next, and what the step did to the loss."""
    forward, step = trace["forward"], trace["step"]
    token, chance = forward["lens"][-1]["top"][0]
    return {
        "next_token": forward["vocabulary"][str(token)],
        "next_token_probability": chance,
        "step_loss": step["loss"]["before"],
        "step_loss_after": step["loss"]["after"],
    }


if __name__ == "__main__":
    run_program(main)
