"""The plan as people read it: a table a run, then the files, the room on the disk, and what cannot work."""

import shutil
from collections.abc import Iterable, Mapping, Sequence

from nanochat.config import Config
from nanochat.planning.disk import Need, absent_vocabularies, by_disk, file_of, gigabytes, missing_files
from nanochat.planning.plan import STAGES, Row, long_time
from nanochat.schedule import count_parameters, flops_per_token

NOTHING = "-"
HEADER = ("stage", "steps", "tokens", "FLOPs", "time", "GPU hours", "jobs", "GPU memory", "micro-batch")
LEFT = 1  # columns that are aligned to the left
NAMED = 6  # missing files that are named; of more, their number


def as_text(config: Config, runs: Mapping[str, Sequence[Row]], found: Sequence[Need], problems: Sequence[str]) -> str:
    """The whole plan. `found` is the room that is needed, `problems` what cannot work."""
    blocks = [run_text(config, run, rows) for run, rows in runs.items()]
    blocks += [files_text(config), room_text(found)]
    if problems:
        blocks.append("This cannot work:\n" + "\n".join(f"  {problem}" for problem in problems))
    return "\n\n".join(blocks)


def run_text(config: Config, run: str, rows: Sequence[Row]) -> str:
    model = config.gpt_config(run)
    lines = [f"{run}: {count_parameters(model):,} parameters, {flops_per_token(model):.3g} FLOPs for each token of training"]
    lines += [f"  {source}" for source in dict.fromkeys(f"{used(row)}: {row.speed.source}" for row in rows if row.speed)]
    cells = [cells_of(row) for row in rows]
    lines += indented(aligned([HEADER, *cells, total_of(rows)]))
    unknown = dict.fromkeys(row.site.gpu for row in rows if row.num_gpus and row.site.device is None)
    lines += [
        f"  {gpu} is not in the table of nanochat/planning/hardware.py, so nothing is predicted for it" for gpu in unknown
    ]
    if any(row.prediction is None for row in rows):
        lines.append(f"  {NOTHING}: not known before the stages ahead of it are done")
    others = [f"{stage} from {owner}" for stage, owner in reused(config, run)]
    return "\n".join(lines + ([f"  reused: {', '.join(others)}"] if others else []))


def used(row: Row) -> str:
    return f"{row.num_gpus} GPUs" if row.num_gpus else f"{row.site.threads} CPU threads"


def cells_of(row: Row) -> tuple[str, ...]:
    prediction = row.prediction
    stage = f"{row.stage} (done)" if row.is_done else row.stage
    if prediction is None:
        return (stage, *[NOTHING] * (len(HEADER) - 1))
    return (
        stage,
        f"{prediction.steps:,}" if prediction.steps else NOTHING,
        f"{prediction.tokens:,}" if prediction.tokens else NOTHING,
        f"{prediction.flops:.3g}".replace("e+", "e") if prediction.flops else NOTHING,
        long_time(prediction.seconds),
        f"{gpu_hours(row):.1f}" if row.num_gpus else NOTHING,
        str(row.num_jobs or NOTHING),
        f"{row.peak_bytes / 2**30:.0f} GiB" if row.peak_bytes else NOTHING,
        f"{row.micro_batch}" + (f" (fits: {row.largest})" if row.largest else "") if row.micro_batch else NOTHING,
    )


def gpu_hours(row: Row) -> float:
    return row.num_gpus * row.prediction.seconds / 3600 if row.prediction else 0.0


def total_of(rows: Sequence[Row]) -> tuple[str, ...]:
    left = [row for row in rows if not row.is_done]
    seconds = sum(row.prediction.seconds for row in left if row.prediction)
    hours = sum(gpu_hours(row) for row in left)
    jobs = sum(row.num_jobs or 0 for row in left)
    words = ("still to do", "", "", "", long_time(seconds), f"{hours:.1f}" if hours else NOTHING, str(jobs or NOTHING), "", "")
    return words


def reused(config: Config, run: str) -> list[tuple[str, str]]:
    return [(stage, config.owner(run, stage)) for stage in STAGES if config.owner(run, stage) != run]


def files_text(config: Config) -> str:
    """Which files are there, and which are fetched by what."""
    keys = config.all_files()
    missing = missing_files(config, keys)
    lines = [f"files: {len(keys) - len(missing)} of {len(keys)} are here"]
    if missing:
        names = ", ".join(str(file_of(config, key)) for key in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        lines.append(f"  missing: {names}{more}; `snakemake download` fetches them")
    if absent := absent_vocabularies(config):
        lines.append(f"  not in {config.catalogue.path}: {', '.join(absent)}; the tokenizer is compared without them")
    return "\n".join(lines)


def room_text(found: Sequence[Need]) -> str:
    if not found:
        return "disk: nothing more is needed"
    lines = ["disk:"]
    for folder, wanted in by_disk(found).items():
        total = sum(need.num_bytes for need in wanted)
        lines.append(
            f"  about {gigabytes(total)} more on {folder.absolute()}, {gigabytes(shutil.disk_usage(folder).free)} are free"
        )
        lines += indented(aligned([(need.what, gigabytes(need.num_bytes)) for need in wanted]), "    ")
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(pad(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows
    ]


def pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < LEFT else cell.rjust(width)


def indented(lines: Iterable[str], by: str = "  ") -> list[str]:
    return [by + line for line in lines]
