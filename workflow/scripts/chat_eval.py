"""Score a chat model on the chat tasks: multiple choice by logits, and answers that it writes."""

from pathlib import Path

from nanochat import tasks
from nanochat.chat_eval import evaluate_chat
from nanochat.checkpoint import load_model
from nanochat.distributed import join_ranks
from nanochat.manifest import write_json_lines
from nanochat.stage import Stage, by_key, run_program, stage_parser, verified_files


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="manifest of the chat model")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="manifests of the tasks' test files")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    specification = args.specification

    with join_ranks(args.device) as ranks:
        data = by_key(args.data)
        stage = Stage(args.manifest, specification=specification, inputs={"model": args.model, **data})
        if ranks.from_main(ranks.is_main and stage.is_done()):
            return
        model, tokenizer = load_model(args.model.parent, ranks.device)
        files = verified_files(data)
        results, answers = evaluate_chat(
            model,
            tokenizer,
            {name: tasks.build(name, split="test", files=files) for name in specification["tasks"]},
            max_per_task=specification["max_per_task"],
            max_new_tokens=specification["max_new_tokens"],
            temperature=specification["temperature"],
            top_k=specification["top_k"],
            seed=specification["seed"],
            rank=ranks.rank,
            world_size=ranks.world_size,
            gather=ranks.gather_objects,
        )
        if ranks.is_main:
            write_json_lines(stage.folder / "answers.jsonl", answers)
            stage.publish(["answers.jsonl"], results=results)
        ranks.wait()


if __name__ == "__main__":
    run_program(main)
