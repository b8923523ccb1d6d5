"""What a run will cost, and what is refused before anything is submitted."""

import shutil
from collections import namedtuple

import pytest
import yaml
from configurations import load
from project import ROOT, Project

from nanochat.config import load_config
from nanochat.planning import disk
from nanochat.planning.disk import look, missing_sources, needs, space_problems
from nanochat.planning.hardware import find
from nanochat.planning.plan import GPU_STAGES, STAGES, Known, Site, plan_run, refusals
from nanochat.planning.predict import Speed, commit_bytes, count_steps, predict_training, table_speed, train_token_seconds
from nanochat.planning.text import as_text
from nanochat.presets import PRESETS
from nanochat.schedule import micro_batch_on_cpu

PTOLEMY = Site(8, "a100", 16, 720)
LAPTOP = Site(1, None, 2, None)


CPU_JOB = Site(1, None, 16, 120)


def sites(gpu: Site) -> dict[str, Site]:
    return {stage: gpu if stage in GPU_STAGES else CPU_JOB for stage in STAGES}


@pytest.fixture(scope="module")
def d20():
    return load_config("config/config.yaml")


@pytest.fixture(scope="module")
def rows(d20, tmp_path_factory):
    known = look(d20, "d20", tmp_path_factory.mktemp("empty"))
    return {row.stage: row for row in plan_run(d20, "d20", sites(PTOLEMY), known)}


# -- the numbers -------------------------------------------------------------------------------------------------------------


def test_d20_has_the_numbers_of_the_reference(d20, rows):
    """Parameters, steps, tokens and FLOPs as nanochat reports them for d20."""
    text = as_text(d20, {"d20": list(rows.values())}, [], [])
    prediction = rows["base_train"].prediction
    assert "560,988,160 parameters" in text and "21,400" in text and "11,219,763,200" in text and "3.92e19" in text
    assert (prediction.steps, prediction.tokens) == (21_400, 11_219_763_200)
    assert prediction.flops == 3_491_758_080 * 11_219_763_200
    assert rows["mid_train"].prediction.steps == pytest.approx(700, rel=0.1)  # "about 700" by the reference


def test_d20_on_eight_a100_takes_most_of_a_job_and_a_bit_more(rows):
    """nanochat took 7.1 h there at 65 % of the peak, compiled; we are not compiled, and reach about 40 %."""
    base_train = rows["base_train"]
    assert 7.1 * 3600 < base_train.prediction.seconds < 16 * 3600
    assert base_train.num_jobs == 2
    assert base_train.num_gpus == 8
    assert "8 x A100 80GB at" in base_train.speed.source


def test_the_micro_batch_is_the_largest_that_fits(rows):
    base_train = rows["base_train"]
    assert base_train.micro_batch == base_train.largest == 32
    assert base_train.peak_bytes < find("a100").memory_bytes


@pytest.mark.parametrize(
    ("depth", "vocab_size", "measured"),
    [(20, 65_536, 81_108), (20, 8_192, 117_651 / 1.10), (12, 65_536, 194_058 / 1.10), (8, 65_536, 278_203 / 1.10)],
)
def test_the_speed_of_an_h100_is_as_it_was_measured(depth, vocab_size, measured):
    """Tokens/s of whole steps on an H100 (benchmarks/gpu_step.py); the last three without deterministic kernels."""
    sizes = {"n_layer": depth, "n_embd": 64 * depth, "n_head": depth // 2, "n_kv_head": depth // 2}
    model = {**sizes, "vocab_size": vocab_size, "sequence_len": 2048, **PRESETS["nanochat"]}
    assert 1 / train_token_seconds(model, find("H100")) == pytest.approx(measured, rel=0.06)


def test_a_predicted_training_is_steps_evaluations_and_commits(rows):
    model, specification = rows["base_train"].model, {**rows["base_train"].specification, "steps": 10, "eval_every": 4}
    speed = Speed(train_token_s=1.0, update_s=0.0, forward_token_s=0.0, decode_token_s=0.0, source="")
    only_steps = predict_training(specification, model, speed).seconds
    assert only_steps == pytest.approx(10 * 524_288 + 3 * commit_bytes(model) / 0.5e9)  # commits at 4, 8 and 10
    speed = Speed(1.0, 2.0, 3.0, 0.0, "")
    evaluated = 3 * 10_485_760 * 3.0
    assert predict_training(specification, model, speed).seconds == pytest.approx(only_steps + 10 * 2.0 + evaluated)


def test_steps_of_a_mixture_are_unknown_until_its_rows_are_counted(rows):
    specification, model = rows["sft"].specification, rows["sft"].model
    assert count_steps(specification, model, train_rows=None) is None
    assert count_steps(specification, model, train_rows=801) == 101  # 8 rows a step, the last one partly of the next epoch


@pytest.mark.parametrize(("width", "length"), [(192, 256), (384, 512), (1280, 2048), (32, 16)])
def test_the_micro_batch_of_a_cpu_is_the_one_that_the_training_chooses(width, length):
    from nanochat.train import choose_micro_batch

    model = {"n_embd": width, "sequence_len": length}
    chosen = [choose_micro_batch(0, rows=rows, model=model, dtype="bfloat16") for rows in (1, 16, 24)]
    assert [micro_batch_on_cpu(model, rows) for rows in (1, 16, 24)] == chosen


def test_cpus_and_gpus_that_nobody_knows(d20):
    assert table_speed(d20.gpt_config("d20"), device=None, num_devices=1, cores=2).train_token_s > 0.01
    unknown = plan_run(d20, "d20", sites(Site(8, "t4", 16, 720)))
    assert all(row.prediction is None for row in unknown if row.stage in GPU_STAGES)
    assert refusals(unknown) == []  # unknown is not impossible
    assert "t4 is not in the table" in as_text(d20, {"d20": unknown}, [], [])


# -- refusals ----------------------------------------------------------------------------------------------------------------


def refused(config, gpu: Site, known: Known | None = None) -> list[str]:
    return refusals(plan_run(config, config.run_names[0], sites(gpu), known or Known()))


def test_what_can_work_is_not_refused(d20):
    assert refused(d20, PTOLEMY) == []
    for name in ("tiny", "small"):
        assert refused(load_config(f"config/{name}.yaml"), LAPTOP) == []


def test_d20_on_a_laptop_would_take_years(d20):
    (problem,) = refused(d20, LAPTOP)
    assert "years on 2 CPU cores" in problem and "config/tiny.yaml?" in problem


def test_what_is_done_already_is_not_refused(d20):
    assert refused(d20, LAPTOP, Known(done=frozenset(STAGES))) == []


def test_some_weeks_on_a_large_machine_are_allowed(d20):
    assert refused(d20, Site(1, None, 192, None)) == []


@pytest.mark.parametrize(
    ("edits", "site", "words"),
    [
        ({"base_train.micro_batch": 4}, Site(2, "a100", 2, 60), None),
        (
            {"base_train.micro_batch": 8},
            Site(2, "a100", 2, 60),
            "does not divide the 4 rows that each of 2 ranks has in a step; try 4",
        ),
        ({}, Site(16, "a100", 2, 60), "8 rows a step, which 16 ranks cannot share evenly; give base_train 8 ranks"),
        ({}, Site(3, "a100", 2, 60), "which 3 ranks cannot share evenly; give base_train 2 ranks"),
    ],
    ids=["fine", "does not divide", "more ranks than rows", "rows do not divide"],
)
def test_ranks_and_micro_batches_must_share_the_rows_of_a_step(tmp_path, edits, site, words):
    problems = refused(load(tmp_path, edits), site)
    assert problems == [] if words is None else words in problems[0]


def test_a_micro_batch_that_does_not_fit_is_refused_with_the_one_that_does():
    document = {**config_document(), "base_train": {"depth": 26, "micro_batch": 32}}
    (problem,) = refused(load_config(document), PTOLEMY)
    assert (
        "base_train.micro_batch 32 needs" in problem
        and "a A100 80GB has 79" in problem
        and "the largest that fits is 16" in problem
    )


def test_a_model_too_large_for_a_gpu_is_refused():
    document = {**config_document(), "base_train": {"depth": 96}}
    problems = refused(load_config(document), PTOLEMY)
    assert any("even for one row at a time" in text and "smaller base_train.depth" in text for text in problems)


def test_a_job_shorter_than_the_time_between_commits_is_refused(d20):
    problems = refused(d20, Site(8, "a100", 16, 3))
    assert any("base_train would commit every" in text and "try base_train.commit_every:" in text for text in problems)
    assert not refused(d20, Site(8, "a100", 16, 30)), "half an hour is enough for 250 steps"


def config_document() -> dict:
    with open("config/config.yaml") as file:
        return yaml.safe_load(file)


# -- the disk ----------------------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", ["total", "used", "free"])


def test_room_is_needed_for_downloads_tokens_commits_and_models(d20, rows, tmp_path):
    found = {need.what: need.num_bytes for need in needs(d20, list(rows.values()), d20.all_files(), tmp_path)}
    assert 24e9 < found["258 downloads"] < 27e9  # 240 shards of about 100 MB
    assert 22e9 < found["d20/tokens/pretrain"] < 27e9  # 12.2 billion tokens of 2 bytes
    assert found["d20/base_train: model and commits"] == 3 * 4 * 560_988_160 + 2 * 4 * (393_216_000 + 2 * 167_772_160)


def test_too_little_room_is_refused_with_what_takes_the_most(d20, rows, tmp_path, monkeypatch):
    found = needs(d20, list(rows.values()), d20.all_files(), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 12_000_000_000))
    (problem,) = space_problems(found)
    assert "12.0 GB are free" in problem and str(tmp_path) in problem and "258 downloads" in problem
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 200_000_000_000))
    assert space_problems(found) == []


def test_what_is_there_needs_no_room(tmp_path):
    config = load(tmp_path)
    before = needs(config, [], config.all_files(), tmp_path)
    for key in config.all_files():
        path = disk.file_of(config, key, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"data")
        path.with_name(path.name + ".manifest.json").write_text("{}")
    assert before[0].num_bytes > 0
    assert needs(config, [], config.all_files(), tmp_path) == []
    assert look(config, "small", tmp_path).done == frozenset()


# -- five jobs that failed on this cluster before ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["mmlu/auxiliary_train", "mmlu/test", "humaneval/test"], ids=["MMLU auxiliary_train", "MMLU all", "HumanEval"]
)
def test_a_data_set_that_was_never_fetched_is_named_by_the_plan_and_is_an_input_of_the_dag(key, d20, shared_data, tmp_path):
    assert key in d20.all_files(), "download fetches it, because a stage that reads it says so"
    assert str(disk.file_of(d20, key)) in {str(disk.file_of(d20, k)) for k in disk.missing_files(d20, [key], tmp_path)}
    stage = "tokens/mid_train" if key == "mmlu/auxiliary_train" else "chat_eval/sft"
    assert key in d20.files_needed("d20", stage)


def test_a_catalogue_without_a_data_set_that_a_run_reads_is_refused_at_once(tmp_path):
    from nanochat.errors import UserError

    with pytest.raises(UserError, match="humaneval/test"):
        load(tmp_path, {"chat_eval.tasks": ["humaneval"]})


def test_a_local_file_that_is_not_there_is_named_by_the_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_DATA", str(tmp_path))
    config = load_config({**small_document(), "catalogue": "config/local_sources.yaml"})
    problems = missing_sources(config, ["mmlu/auxiliary_train"])
    assert len(problems) == 1 and "mmlu/auxiliary_train" in problems[0] and "there is no such file" in problems[0]


def small_document() -> dict:
    with open("config/small.yaml") as file:
        return yaml.safe_load(file)


def test_no_tracker_can_ask_for_a_login_since_none_is_imported():
    for path in [*(ROOT / "nanochat").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]:
        assert "wandb" not in path.read_text(), path


def test_tokenizers_to_compare_with_that_are_not_there_are_said_and_stop_nothing():
    config = load_config("config/tiny.yaml")
    assert disk.absent_vocabularies(config) == ["gpt2_bpe", "cl100k_bpe"]
    rows = plan_run(config, "tiny", sites(LAPTOP))
    assert "gpt2_bpe, cl100k_bpe; the tokenizer is compared without them" in as_text(config, {"tiny": rows}, [], [])
    assert refusals(rows) == []


# -- the commands --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_plan_of_d20_for_ptolemy_needs_no_slurm_and_the_laptop_refuses_to_start_it(tmp_path):
    project = Project(tmp_path)
    shutil.copy("config/config.yaml", tmp_path / "my.yaml")
    text = project.run("plan")
    assert "560,988,160 parameters" in text and "This cannot work:" in text and "years on 2 CPU threads" not in text
    assert "base_train" in text and "files: 0 of 258 are here" in text
    refused = project.snakemake()
    assert refused.returncode != 0
    assert "nothing was started" in refused.stderr and "config/tiny.yaml?" in refused.stderr
    assert not (tmp_path / "resources").exists(), "not even a download"
    assert "Job stats" in project.run("-n"), "a dry run refuses nothing"
    assert project.snakemake("results/d20/base_train/manifest.json", "-n").returncode == 0
