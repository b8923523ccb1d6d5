"""The report's sections about how good the models are: summary, base evaluation, chat evaluation, samples.

Everything that goes into a table or through `inline` and `fenced` is escaped there. A key that a stage did not publish gives
`–` in its cell; a stage that has not finished gives a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nanochat.accuracy import centered_interval
from nanochat.reports.machine import gpu_cost, price
from nanochat.reports.making import preset
from nanochat.text import (
    NOTHING,
    Markdown,
    bullets,
    code,
    count,
    duration,
    exact,
    fenced,
    given,
    inline,
    picture,
    score,
    table,
)

if TYPE_CHECKING:
    from nanochat.reports.report import StageData

Stages = Mapping[str, "StageData"]
Blocks = list[Markdown]

SPELLING_BEE = "spelling_bee"
TASK_TITLES = {
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    SPELLING_BEE: "SpellingBee",
}

# nanochat's card of d20 (its README of October 2025; eight H100, 3 h 51 min). Its ChatCORE averages five tasks.
PUBLISHED_D20 = {
    "core": {"base": 0.2219},
    "arc_easy": {"mid": 0.3561, "sft": 0.3876},
    "arc_challenge": {"mid": 0.2875, "sft": 0.2807},
    "mmlu": {"mid": 0.3111, "sft": 0.3151},
    "gsm8k": {"mid": 0.0250, "sft": 0.0455},
    "humaneval": {"mid": 0.0671, "sft": 0.0854},
    "five": {"mid": 0.0730, "sft": 0.0884},
}
NUM_CORE_TASKS = 22
GPT2_CORE = 0.2565  # of the largest one, 1.5 B parameters, on the same 22 tasks


def missing(stages: Stages) -> Blocks:
    """What a reader must know before the first number: stages without results, files that were refused."""
    lines = [stage.problem for stage in stages.values() if stage.problem]
    lines += [line for stage in stages.values() for line in stage.damage]
    if not lines:
        return []
    return [Markdown("**This report is not complete.**"), bullets(lines)]


def summary(stages: Stages) -> Blocks:
    """Every score beside the published card. The headline numbers stand before it."""
    return [scores(stages), *score_notes(stages)]


def headline_table(stages: Stages, specification: Mapping[str, Any]) -> Markdown:
    return table(["", ""], headlines(stages, specification), left=2)


def headlines(stages: Stages, specification: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    base, config = stages["base_train"], stages["base_train"].config
    if config:
        yield "Model", f"{layers(config)} of width {config['n_embd']:,}, {preset(config)}"
    if base.is_finished:
        yield "Parameters", count(base.results.get("parameters"))
        yield "Trained on", f"{count(base.results.get('tokens'))} tokens in {exact(base.results.get('steps'))} steps"
    yield "Validation bits per byte", score(validation_bpb(stages))
    evaluated, chatcore = stages["base_eval"].results, stages["chat_eval/sft"].results.get("chatcore", {})
    yield "CORE", estimate(evaluated.get("core"), evaluated.get("interval"))
    for key in ("five", "six"):
        yield f"ChatCORE of {key}, after sft", estimate(chatcore.get(key), chatcore.get(f"{key}_interval"))
    seconds = [s for stage in stages.values() if (s := stage.record.get("seconds")) is not None]
    yield "Time of all finished stages", duration(sum(seconds)) if seconds else NOTHING
    if price(specification) is not None:
        costs = [cost for stage in stages.values() if (cost := gpu_cost(stage, specification)) is not None]
        yield "Cost of the GPUs", f"{sum(costs):,.2f}" if costs else NOTHING


def layers(config: Mapping[str, Any]) -> str:
    return "1 layer" if config["n_layer"] == 1 else f"{config['n_layer']} layers"


def validation_bpb(stages: Stages) -> float | None:
    """On the validation shard, after base_train: what base_eval measured, or the training's own last value."""
    measured = stages["base_eval"].results.get("bits_per_byte", {}).get("validation")
    return measured if measured is not None else stages["base_train"].results.get("validation_bpb")


def scores(stages: Stages) -> Markdown:
    """One row a score: after each training, the chance of guessing, and the published card."""
    mid, sft = stages["chat_eval/mid_train"].results, stages["chat_eval/sft"].results

    def published(key: str) -> list[str]:
        return [score(PUBLISHED_D20.get(key, {}).get(stage)) for stage in ("base", "mid", "sft")]

    rows = [["CORE", score(stages["base_eval"].results.get("core")), NOTHING, NOTHING, score(0.0), *published("core")]]
    for name in chat_task_names(stages):
        of_mid, of_sft = (r.get("tasks", {}).get(name, {}) for r in (mid, sft))
        chance = of_sft.get("baseline", of_mid.get("baseline"))
        values = [NOTHING, score(of_mid.get("accuracy")), score(of_sft.get("accuracy")), score(chance)]
        rows.append([task_title(name), *values, *published(name)])
    for key in ("five", "six"):
        values = [score(r.get("chatcore", {}).get(key)) for r in (mid, sft)]
        rows.append([f"ChatCORE of {key}", NOTHING, *values, score(0.0), *published(key)])
    own = ["base_train", "mid_train", "sft", "chance"]
    return table(["", *own, "published d20: BASE", "published d20: MID", "published d20: SFT"], rows)


def score_notes(stages: Stages) -> Blocks:
    notes = [
        Markdown(
            "The three columns on the right are published values of another model: nanochat's d20 of October 2025 (561 M "
            "parameters, 11.2 B tokens of FineWeb-Edu, eight H100). They are there to read the scale by, and say nothing "
            "about a model of another size or from other data. Training that d20 again gave CORE 0.2042, 0.2045 and 0.2118 "
            "elsewhere: differences of 0.01 are noise."
        ),
        Markdown(
            "CORE and ChatCORE are means of (accuracy − chance) / (1 − chance): 0 is guessing, 1 is all right. ChatCORE of "
            "five is over ARC-Easy, ARC-Challenge, MMLU, GSM8K and HumanEval, as on the published card; of six, over "
            "SpellingBee too. There is none where one of its tasks was not asked."
        ),
    ]
    tasks = stages["base_eval"].results.get("tasks", {})
    if tasks and len(tasks) != NUM_CORE_TASKS:
        notes.append(Markdown(f"CORE here is the mean of {len(tasks)} tasks; the published one is of {NUM_CORE_TASKS}."))
    asked = [task for stage in stages.values() for task in stage.results.get("tasks", {}).values()]
    if any(is_partial(task) for task in asked):
        notes.append(
            Markdown(
                "Some tasks were asked with a seeded sample of their items; the tables below say with how many of how many."
            )
        )
    if num_cropped := sum(task.get("num_cropped") or 0 for task in asked):
        notes.append(Markdown(f"{count(num_cropped)} prompts were longer than the model can read and lost their beginning."))
    return notes


def base_evaluation(stages: Stages, *, figure: str) -> Blocks:
    """Bits per byte, CORE, and its tasks one by one."""
    stage = stages["base_eval"]
    if stage.problem:
        return [stage.problem]
    bits, tasks = stage.results.get("bits_per_byte", {}), stage.results.get("tasks", {})
    rows = [["training text", score(bits.get("train"))], ["validation text", score(bits.get("validation"))]]
    core = stage.results.get("core")
    bounds = stage.results.get("interval")
    known = f" (95 % interval: {interval(bounds)})" if bounds else ""
    found = f"**{score(core)}**{known}, the mean of the centred scores" if core is not None else "none, for it takes all tasks"
    blocks = [
        Markdown(
            "Bits per byte: how many bits the model needs on average to tell the next byte of a text. It does not depend on "
            "the vocabulary, so models with different tokenizers can be compared; lower is better."
        ),
        table(["text", "bits per byte"], rows),
        Markdown(f"CORE: {found}; {len(tasks)} tasks were asked. GPT-2 (1.5 B) has {GPT2_CORE} on the usual {NUM_CORE_TASKS}."),
        picture("CORE task by task: accuracy beside chance, and centred scores", figure),
    ]
    rows = [
        [
            label,
            given(task.get("type")).replace("_", " "),
            examples(task),
            items(task),
            score(task.get("accuracy")),
            interval(task.get("interval")),
            score(task.get("baseline")),
            score(task.get("centered")),
            interval(centred_interval(task)),
        ]
        for label, task in sorted(tasks.items(), key=lambda item: -item[1].get("centered", 0))
    ]
    header = ["task", "type", "examples shown", "items", "accuracy", "95 % interval", "chance", "centred", "95 % interval"]
    return [*blocks, table(header, rows, left=2), *task_notes(tasks)] if rows else blocks


def task_notes(tasks: Mapping[str, Mapping[str, Any]]) -> Blocks:
    """What the numbers of a table's tasks stand for: samples of items, examples that there were not, prompts that were cut."""
    notes = []
    if tasks:
        notes.append(
            Markdown(
                "An interval is about the luck of which items a task has. Another training of the same model moves scores, too."
            )
        )
    if sampled := [task for task in tasks.values() if is_partial(task)]:
        first = items(sampled[0])
        notes.append(Markdown(f"{first} items: a sample, drawn with a fixed seed, so it is the same for every model."))
    if any((task.get("num_fewshot_asked") or 0) > (task.get("num_fewshot") or 0) for task in tasks.values()):
        notes.append(Markdown("Fewer examples are shown than asked for where there are not enough other items."))
    cropped = {name: number for name, task in tasks.items() if (number := task.get("num_cropped"))}
    if cropped:
        listed = ", ".join(f"{inline(name)} {number:,}" for name, number in cropped.items())
        notes.append(Markdown(f"Prompts that were longer than the model can read, and lost their beginning: {listed}."))
    return notes


def chat_evaluation(stages: Stages, *, figure: str) -> Blocks:
    """The chat tasks after mid_train and after sft, with intervals."""
    evals = {name.split("/")[1]: stage for name, stage in stages.items() if name.startswith("chat_eval/")}
    blocks = [stage.problem for stage in evals.values() if stage.problem]
    names = chat_task_names(stages)
    if not names:
        return blocks
    rows = []
    for name in names:
        tasks = [stage.results.get("tasks", {}).get(name, {}) for stage in evals.values()]
        either = last_of(evals, name)
        row = [task_title(name), given(either.get("kind")), items(either), score(either.get("baseline"))]
        for task in tasks:
            row += [score(task.get("accuracy")), interval(task.get("interval"))]
        rows.append(row)
    for key in ("five", "six"):
        row = [f"ChatCORE of {key}", "", "", score(0.0)]
        for stage in evals.values():
            chatcore = stage.results.get("chatcore", {})
            row += [score(chatcore.get(key)), interval(chatcore.get(f"{key}_interval"))]
        rows.append(row)
    notes = []
    if SPELLING_BEE in names:
        notes.append(
            Markdown(
                "SpellingBee's right answers are small numbers, often 1: an answer that always says 1 can score over a half, "
                "so read its accuracy against that, not against 0."
            )
        )
    header = ["task", "kind", "items", "chance", *(cell for name in evals for cell in (name, "95 % interval"))]
    return [
        *blocks,
        picture("Chat scores after mid_train and sft, with 95 % intervals", figure),
        table(header, rows, left=2),
        Markdown(
            "A choice is right when the right letter is the likeliest of those offered; a generative task, when what the "
            "model wrote passes the task's check. An interval that contains the chance shows no more than guessing."
        ),
        *pass_table(names, evals),
        *task_notes({task_title(name): task for name in names if (task := last_of(evals, name))}),
        *sandbox_words(evals),
        *notes,
    ]


def pass_table(names: Sequence[str], evals: Stages) -> Blocks:
    """Of tasks with several answers to an item: how often at least one of k is right."""
    rows = []
    for name in names:
        found = {key: stage.results.get("tasks", {}).get(name, {}) for key, stage in evals.items()}
        for k in dict.fromkeys(k for task in found.values() for k in task.get("pass_at") or {}):
            values = [score((task.get("pass_at") or {}).get(k)) for task in found.values()]
            rows.append([task_title(name), f"pass@{k}", exact(last_of(evals, name).get("num_samples")), *values])
    if not rows:
        return []
    return [
        table(["task", "", "answers to an item", *evals], rows, left=2),
        Markdown(
            "pass@k: how often at least one of k answers to an item is right, without bias estimated from all of them (arXiv "
            "2107.03374). The accuracy's interval counts items, not answers."
        ),
    ]


def sandbox_words(evals: Stages) -> Blocks:
    """Behind which walls the programs that models wrote were run."""
    found = {name: tier for name, stage in evals.items() if (tier := stage.record.get("sandbox"))}
    if not found:
        return []
    tiers = " and ".join(dict.fromkeys(code(tier) for tier in found.values()))
    return [Markdown(f"Programs that the models wrote ran in the sandbox, tier {tiers}.")]


def samples(stages: Stages) -> Blocks:
    """What the models wrote, as text."""
    blocks: Blocks = []
    for stage in stages.values():
        if found := stage.results.get("samples"):
            blocks.append(Markdown(f"From {code(stage.name)}:"))
            for sample in found:
                blocks += [Markdown(f"Prompt: {inline(sample['prompt'])}"), fenced(sample["text"])]
    return blocks or [stages["base_eval"].problem or Markdown("None were asked for.")]


# -- small parts -------------------------------------------------------------------------------------------------------------


def task_title(name: str) -> str:
    return TASK_TITLES.get(name, name.replace("_", " "))


def chat_task_names(stages: Stages) -> list[str]:
    """All tasks of both evaluations: the known ones in their usual order, then the others as they come."""
    found = dict.fromkeys(n for key in ("sft", "mid_train") for n in stages[f"chat_eval/{key}"].results.get("tasks", {}))
    return [name for name in TASK_TITLES if name in found] + [name for name in found if name not in TASK_TITLES]


def last_of(evals: Stages, name: str) -> Mapping[str, Any]:
    """A task's results after the last training after which it was asked."""
    found = [stage.results.get("tasks", {}).get(name) for stage in evals.values()]
    return next((task for task in reversed(found) if task), {})


def is_partial(task: Mapping[str, Any]) -> bool:
    return task.get("num_items") != task.get("num_available")


def items(task: Mapping[str, Any]) -> str:
    """9,345, or 500 of 9,345."""
    if task.get("num_items") is None:
        return NOTHING
    return f"{task['num_items']:,}" + (f" of {task['num_available']:,}" if is_partial(task) else "")


def examples(task: Mapping[str, Any]) -> str:
    """10, or 4 of 10."""
    shown, asked = task.get("num_fewshot"), task.get("num_fewshot_asked")
    return exact(shown) + (f" of {asked:,}" if asked is not None and asked != shown else "")


def centred_interval(task: Mapping[str, Any]) -> tuple[float, float] | None:
    bounds, baseline = task.get("interval"), task.get("baseline")
    return centered_interval(bounds, baseline) if bounds and baseline is not None else None


def estimate(value: float | None, bounds: Sequence[float] | None) -> str:
    """0.2042 (0.195 to 0.213)"""
    return score(value) + (f" ({interval(bounds)})" if value is not None and bounds else "")


def interval(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else NOTHING


def chat_tasks(stages: Stages, name: str) -> dict[str, dict]:
    """The scores of one evaluation, by the tasks' titles and in their usual order."""
    tasks = stages[name].results.get("tasks", {})
    return {task_title(task): tasks[task] for task in chat_task_names(stages) if task in tasks}
