"""Score a chat model on the chat tasks: multiple choice by logits, and answers that it writes."""

from collections.abc import Mapping
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
        rows = {"spelling_bee": specification["spelling_items"]}  # made, not read, so somebody must say how many
        chosen = {name: tasks.build(name, split="test", files=files, rows=rows.get(name)) for name in specification["tasks"]}
        results, answers = evaluate_chat(
            model,
            tokenizer,
            chosen,
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
            results["samples"] = first_answers(chosen, answers)
            stage.publish(["answers.jsonl"], results=results, record={**ranks.record(), "dtype": model.dtype_name})
        ranks.wait()


def first_answers(chosen: Mapping[str, tasks.Task], answers: list[dict]) -> list[dict[str, str]]:
    """The first question of each task that is answered in words, and what the model said, for the report."""
    written = [row for row in answers if row["index"] == 0 and "answer" in row]
    return [{"prompt": question(chosen[row["task"]][0]), "text": row["answer"]} for row in written]


def question(conversation: dict) -> str:
    return next(message["content"] for message in conversation["messages"] if message["role"] == "user")


if __name__ == "__main__":
    run_program(main)
