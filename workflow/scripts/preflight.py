"""Prove that all that a run's GPU stages read is here, unchanged, and opens without network.

The proof is the manifest: what was opened, with how much in it. The record holds what the predictions are made from,
among it how fast this machine is, if it is to train.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.identities import require_same_tokenizer
from nanochat.manifest import open_verified
from nanochat.planning import predict
from nanochat.planning.inventory import find_problems
from nanochat.planning.plan import GPU_STAGES, TRAININGS, Site, speed_of
from nanochat.schedule import micro_batch_on_cpu
from nanochat.stage import Stage, by_key, log, run_program, stage_parser


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="manifest of the tokenizer")
    parser.add_argument("--tokens", type=Path, nargs="*", default=[], help="manifests of all tokens that are read")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="manifests of the catalogue's files that are read")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="conversation files of your own (JSON lines)")
    parser.add_argument("--sites", type=site, nargs="+", required=True, metavar="STAGE=SITE", help="what each stage is given")
    parser.add_argument("--commit-every", type=commit_every, nargs="*", default=[], metavar="STAGE=STEPS")
    parser.add_argument("--memory", type=Path, required=True, help="where to remember which files were found right")
    args = parser.parse_args()

    problems = find_problems([args.tokenizer, *args.tokens, *args.data], memory=args.memory, everything=True)
    if problems:
        raise UserError("not every file that this run reads is as it was published:\n  " + "\n  ".join(problems))
    tokens = {f"tokens/{path.parent.name}": path for path in args.tokens}
    data = by_key(args.data)
    inputs = {"tokenizer": args.tokenizer, **tokens, **data, **{str(path): path for path in args.files}}
    stage = Stage(args.manifest, specification=args.specification, inputs=inputs)
    if not stage.is_done():
        run(args, stage, tokens, data)


def site(text: str) -> tuple[str, Site]:
    name, _, rest = text.partition("=")
    return name, Site.parse(rest)


def commit_every(text: str) -> tuple[str, int]:
    name, _, steps = text.partition("=")
    return name, int(steps)


def run(args: argparse.Namespace, stage: Stage, tokens: dict[str, Path], data: dict[str, Path]) -> None:
    from nanochat.flash import require_package
    from nanochat.planning import preflight  # imports PyTorch, which a proof that stands already does not need

    specification, model = args.specification, args.specification["model"]
    for name in specification.get("attention_backends", []):
        require_package(name)
    tokenizer = preflight.open_tokenizer(open_verified(args.tokenizer), vocab_size=model["vocab_size"])
    preflight.open_engine(model, tokenizer)
    opened: dict[str, Any] = {}
    for name, path in tokens.items():
        require_same_tokenizer(open_verified(path), stage.found["tokenizer"], whose=args.tokenizer)
        if name == "tokens/core":
            opened["CORE"] = preflight.open_core(open_verified(path), vocab_size=model["vocab_size"])
        else:
            training = specification["trainings"][name]
            opened[name] = preflight.open_tokens(open_verified(path), **training, vocab_size=model["vocab_size"])
    files = {key: path.with_name(path.name.removesuffix(".manifest.json")) for key, path in data.items()}
    own_files = {str(path): path for path in args.files}
    for name, mixture in specification["mixtures"].items():
        opened[f"{name}: conversations"] = preflight.open_mixture(mixture, files | own_files, tokenizer)
    work: dict[str, Any] = {}
    if chat := specification["chat"]:
        work["chat"] = preflight.open_chat_tasks(chat, files, tokenizer, model=model)
        opened["chat tasks"] = {name: items for name, (items, _, _) in work["chat"].items()}
    for name, found in opened.items():
        log.info(f"preflight  {name}: " + ", ".join(f"{key} {number:,}" for key, number in found.items()))
    sites = dict(args.sites)
    speeds = find_speeds(sites, specification)
    for source in dict.fromkeys(speed.source for speed in speeds.values()):
        log.info(f"preflight  speed: {source}")
    stage.publish(
        [],
        results={"opened": opened},
        record={
            **work,
            "speeds": {name: speed.as_dict() for name, speed in speeds.items()},
            "threads": {name: site.threads for name, site in sites.items()},
            "commit_every": dict(args.commit_every),
        },
    )


def find_speeds(sites: dict[str, Site], specification: dict) -> dict[str, predict.Speed]:
    """Measured where a single process will train on this machine's CPU; from the table elsewhere."""
    model = specification["model"]
    tabled = {stage: speed_of(model, sites[stage]) for stage in GPU_STAGES if stage in sites}
    speeds = {stage: speed for stage, speed in tabled.items() if speed is not None}
    here = {
        stage for stage in speeds if sites[stage].gpu is None and sites[stage].ranks == 1 and sites[stage].runtime_min is None
    }
    rows = {
        name.replace("tokens/pretrain", "base_train").removeprefix("tokens/"): training["batch_tokens"] // model["sequence_len"]
        for name, training in specification["trainings"].items()
    }
    micro_batches = {stage: micro_batch_on_cpu(model, rows[stage]) for stage in TRAININGS if stage in here and stage in rows}
    if micro_batches:
        from nanochat.planning.speed import measure_speeds

        cores = max(sites[stage].threads for stage in micro_batches)
        measured = measure_speeds(model, micro_batches=micro_batches, cores=cores) or {}
        for stage in here & (measured.keys() | {"base_eval", "chat_eval/mid_train", "chat_eval/sft"}):
            speeds[stage] = measured.get(stage) or next(iter(measured.values()), speeds[stage])
    return speeds


if __name__ == "__main__":
    run_program(main)
