"""GPT-2 from Hugging Face's files against GPT-2 written out: the same logits, the same tokens; what it is not is refused."""

import itertools
import json
import math
import random
import shutil
import zipfile
from functools import partial

import numpy as np
import pytest
import regex
import torch
import torch.nn.functional as F
from gpt2_folders import CONFIG, END_OF_TEXT, learned_vocabulary, random_tensors, sign, write_gpt2
from safetensors.torch import save_file
from torch import Tensor

from nanochat import core_eval, yardstick
from nanochat.core_eval import evaluate_core
from nanochat.core_tokens import prepare
from nanochat.errors import UserError
from nanochat.gpt import GPT, MLP, GPTConfig, LayerNorm
from nanochat.gpt2 import load_gpt2
from nanochat.tiny_world.bundle import write_bundle

load = partial(load_gpt2, dtype="float32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("gpt2") / "small")


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy to change."""
    return shutil.copytree(checkpoint, tmp_path / "changed")


def edit(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- the model ---------------------------------------------------------------------------------------------------------------


def plain_gpt2(tensors: dict[str, Tensor], tokens: Tensor, *, n_layer: int, n_head: int, eps: float) -> Tensor:
    """Logits (T, V) of tokens (T,), from the tensors as the file stores them: no batch, no cache, no fused kernel."""

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    x = tensors["wte.weight"][tokens] + tensors["wpe.weight"][: len(tokens)]
    later = torch.ones(len(tokens), len(tokens)).triu(1).bool()
    for layer in range(n_layer):
        q, k, v = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").chunk(3, dim=1)
        heads = zip(q.chunk(n_head, dim=1), k.chunk(n_head, dim=1), v.chunk(n_head, dim=1), strict=True)
        found = [(a @ b.T / math.sqrt(a.size(1))).masked_fill(later, -math.inf).softmax(dim=1) @ c for a, b, c in heads]
        x = x + linear(torch.cat(found, dim=1), f"h.{layer}.attn.c_proj")
        h = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"h.{layer}.mlp.c_proj")
    return norm(x, "ln_f") @ tensors["wte.weight"].T


@torch.no_grad()
def distance(model: GPT, tensors: dict[str, Tensor] | None = None) -> float:
    """The largest difference of two logits between the model and GPT-2 written out, over three texts as long as they can be."""
    tokens = torch.randint(CONFIG["vocab_size"], (3, CONFIG["n_positions"]), generator=torch.Generator().manual_seed(1))
    sizes = {"n_layer": CONFIG["n_layer"], "n_head": CONFIG["n_head"], "eps": CONFIG["layer_norm_epsilon"]}
    expected = torch.stack([plain_gpt2(tensors or random_tensors(CONFIG), row, **sizes) for row in tokens])
    return (model(tokens) - expected).abs().max().item()


def test_logits_equal_gpt2_written_out(checkpoint):
    model, _ = load(checkpoint)
    assert distance(model) < 1e-4
    assert model.lm_head.weight is model.wte.weight


def with_exact_gelu(model: GPT) -> None:
    for module in model.modules():
        if isinstance(module, MLP):
            module.activation = F.gelu


def with_our_eps(model: GPT) -> None:
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.eps = 1e-5


def with_q_and_k_exchanged(model: GPT) -> None:
    attention = model.blocks[0].attn
    attention.c_q, attention.c_k = attention.c_k, attention.c_q


@torch.no_grad()
def with_a_square_matrix_as_it_was_stored(model: GPT) -> None:
    weight = model.blocks[1].attn.c_proj.weight
    weight.copy_(weight.T.clone())


@pytest.mark.parametrize(
    "broken", [with_exact_gelu, with_our_eps, with_q_and_k_exchanged, with_a_square_matrix_as_it_was_stored]
)
def test_each_detail_of_gpt2_would_show_in_the_logits(checkpoint, broken):
    model, _ = load(checkpoint)
    broken(model)
    assert distance(model) > 1e-3


def test_a_checkpoint_may_name_its_tensors_as_a_part_and_store_head_and_masks(folder):
    tensors = {f"transformer.{name}": tensor for name, tensor in random_tensors(CONFIG).items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48).tril().to(torch.uint8)
    tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors")
    assert distance(load(folder)[0]) < 1e-4


def test_a_checkpoint_may_be_in_parts_and_in_half_precision(folder):
    halves = {name: tensor.half() for name, tensor in random_tensors(CONFIG).items()}
    parts = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for (name, tensor), part in zip(halves.items(), itertools.cycle(parts), strict=False):
        parts[part][name] = tensor
    for part, tensors in parts.items():
        save_file(tensors, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: part for part, tensors in parts.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert distance(load(folder)[0], {name: tensor.float() for name, tensor in halves.items()}) < 1e-4


# -- the tokenizer -----------------------------------------------------------------------------------------------------------

PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
TEXTS = [
    "don't  I'll we've 12345 x1y2\n\n\t end ",
    "naïve café ☃ 日本語 🙂 \u00a0\x85\x1c.",
    "",
    " ",
    "\n",
    "<|endoftext|> the",
    "'S 's ſ",
]


def plain_tokens(text: str, vocabulary: dict[str, int], merges: list[str]) -> list[int]:
    """GPT-2's algorithm: split, write bytes as signs, then make the merges one after the other, each wherever it fits."""
    found = []
    for word in PATTERN.findall(text):
        parts = [sign(byte) for byte in word.encode()]
        for left, right in (merge.split(" ") for merge in merges):
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == (left, right):
                    parts[place : place + 2] = [left + right]
                place += 1
        found += [vocabulary[part] for part in parts]
    return found


def random_texts(number: int) -> list[str]:
    rng = random.Random(5)
    return ["".join(rng.choices("etaoinshrdlu  '\n1é☃s", k=rng.randint(1, 60))) for _ in range(number)]


@pytest.mark.parametrize("source", ["vocab.json", "tokenizer.json", "tokenizer.json with pairs"])
def test_tokens_equal_gpt2s_algorithm_written_out(folder, source):
    vocabulary, merges = learned_vocabulary(CONFIG["vocab_size"])
    if source != "vocab.json":
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocabulary, merges, pairs="pairs" in source)))
    _, tokenizer = load(folder)
    texts = TEXTS + random_texts(200)
    encoded = tokenizer.encode_batch(texts, num_threads=2, bos=True)
    assert [tokens.dtype for tokens in encoded] == [np.uint16] * len(texts)
    assert [tokens.tolist() for tokens in encoded] == [[299, *plain_tokens(text, vocabulary, merges)] for text in texts]
    assert [tokenizer.decode(tokens[1:]) for tokens in encoded] == texts
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (299, 300)


def tokenizer_json(vocabulary: dict[str, int], merges: list[str], *, pairs: bool = False, **changes) -> dict:
    """As Hugging Face's library writes it; newer versions write merges as pairs."""
    content = {
        "version": "1.0",
        "added_tokens": [{"id": 299, "content": END_OF_TEXT, "special": True, "normalized": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [merge.split(" ") for merge in merges] if pairs else merges},
    }
    return {**content, **changes}


def test_a_run_of_a_million_blanks_is_encoded(checkpoint):
    _, tokenizer = load(checkpoint)
    assert tokenizer.decode(tokenizer.encode_array(" " * 1_000_000)) == " " * 1_000_000


# -- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_type", "gpt_neo", r'model_type is .gpt_neo.; this model does "gpt2"'),
        ("activation_function", "relu", r'activation_function is .relu.; this model does "gelu_new" or'),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True; this model does false"),
        ("scale_attn_weights", False, "scale_attn_weights is False"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False"),
        ("n_inner", 100, "n_inner is 100; the MLP of this model is 4 n_embd wide"),
        ("n_head", 5, "config.json: n_embd 24 is not a multiple of n_head 5"),
        ("n_layer", "two", "n_layer is 'two'; expected a number"),
        ("n_layer", 3, "h.2.ln_1.weight is missing"),
        ("n_layer", 1, r"h\.1\.\S+ is unknown"),
        ("n_positions", 64, r"wpe.weight is float32 \[48, 24\] instead of float32 \[64, 24\]"),
        ("layer_norm_epsilon", "small", "layer_norm_epsilon is 'small'"),
        ("vocab_size", 200, "its tokenizer has 300 tokens, and its model 200"),
    ],
)
def test_what_the_configuration_asks_for_and_we_do_not_do_is_refused_in_words(folder, key, value, words):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(UserError, match=words):
        load(folder)


def test_weights_that_are_not_gpt2s_are_refused_in_words(folder):
    path = folder / "model.safetensors"
    good = random_tensors(CONFIG)
    for tensors, words in (
        ({**good, "h.0.attn.c_gate.weight": torch.ones(2)}, "h.0.attn.c_gate.weight is unknown"),
        ({**good, "wte.weight": good["wte.weight"].to(torch.int8)}, r"wte.weight is int8 \[300, 24\] instead of float32"),
        ({**good, "lm_head.weight": good["wte.weight"] + 1}, "lm_head.weight is not wte.weight"),
    ):
        save_file(tensors, path)
        with pytest.raises(UserError, match=words):
            load(folder)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load(folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"as .bin, pickled files, .* Take the model.safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"model.safetensors is not there"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "../other/model.safetensors"}}')
    with pytest.raises(UserError, match="to the file in this folder"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v, m: v.pop("A") and v.update({"new": 32}), "1 of the single bytes have no token, such as 'A'"),
        (lambda v, m: v.pop(END_OF_TEXT) and v.update({"other": 299}), r"it has no <\|endoftext\|>"),
        (lambda v, m: v.update({"gap": 500}), "should be 0, 1, 2"),
        (lambda v, m: v.update({"text": "299"}), "should be 0, 1, 2"),
        (lambda v, m: m.reverse(), "merge 2.* has no id of its own above"),
        (lambda v, m: m.pop(0), "joins what no merge before it made"),
        (lambda v, m: m.append("a b c"), "expected two tokens"),
    ],
)
def test_a_vocabulary_that_tiktoken_would_read_otherwise_is_refused(folder, change, words):
    vocabulary, merges = learned_vocabulary(CONFIG["vocab_size"])
    change(vocabulary, merges)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(merges))
    with pytest.raises(UserError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "expected byte-level BPE"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"model": {"type": "BPE", "vocab": {}}}, "no model with vocab and merges"),
        ({"model": {"type": "WordPiece", "vocab": {}, "merges": []}}, "found 'WordPiece'"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(folder, changes, words):
    content = tokenizer_json(*learned_vocabulary(CONFIG["vocab_size"]), **changes)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        load(folder)


def test_a_folder_without_a_file_is_told_by_its_name(folder, tmp_path):
    with pytest.raises(UserError, match=r"nothing/config.json: cannot read GPT-2's configuration"):
        load(tmp_path / "nothing")
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges.txt: cannot read GPT-2's merges"):
        load(folder)


# -- the program -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "eval_bundle.zip"
    write_bundle(path)
    return path


def run(*arguments) -> None:
    yardstick.main([*map(str, arguments), "--device", "cpu", "--dtype", "float32", "--max-per-task", "6"])


def test_the_program_writes_what_an_evaluation_of_the_same_model_finds(checkpoint, bundle, tmp_path, capsys):
    run(checkpoint, "--bundle", bundle, "-o", tmp_path)
    model, tokenizer = load(checkpoint)
    results, examples = evaluate_core(model, tokenizer, prepare(bundle, tokenizer, max_per_task=6))
    found = json.loads((tmp_path / "core.json").read_text())
    assert {key: found[key] for key in results} == json.loads(json.dumps(results))
    assert found["parameters"] == model.num_parameters() and found["max_per_task"] == 6
    assert set(found["model"]) == {"config.json", "merges.txt", "model.safetensors", "vocab.json"}
    assert [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()] == examples
    printed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    task = results["tasks"]["world_towns"]
    assert f"6 of 40    {task['accuracy']:.4f}" in printed["world_towns"]
    low, high = results["interval"]
    assert f"{low:.3f} to {high:.3f}" in printed["CORE"] and f"{results['core']:.4f}" in printed["CORE"]
    assert "published" not in printed["task"]
    assert not (tmp_path / "resume").exists()


def test_the_program_goes_on_behind_the_tasks_that_are_finished(checkpoint, bundle, tmp_path, monkeypatch):
    run(checkpoint, "--bundle", bundle, "-o", tmp_path / "whole")
    evaluated, evaluate_task = [], core_eval.evaluate_task

    def killed_in_the_fourth_task(model, tokenizer, task, *others, **more):
        if len(evaluated) == 3 and not (tmp_path / "killed" / "again").exists():
            raise KeyboardInterrupt
        evaluated.append(task.label)
        return evaluate_task(model, tokenizer, task, *others, **more)

    monkeypatch.setattr(core_eval, "evaluate_task", killed_in_the_fourth_task)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, "--bundle", bundle, "-o", tmp_path / "killed")
    (tmp_path / "killed" / "again").touch()
    run(checkpoint, "--bundle", bundle, "-o", tmp_path / "killed")
    assert len(evaluated) == len(set(evaluated)) == 8
    for name in ("core.json", "examples.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_gpt2_of_known_sizes_stands_beside_the_bundles_own_scores(tmp_path, bundle, capsys, monkeypatch):
    with_scores = shutil.copy(bundle, tmp_path / "with_scores.zip")
    with zipfile.ZipFile(with_scores, "a") as file:
        lines = ["Task                , Accuracy  , Centered  ", "world_towns , 0.308504  , 0.078006  ", "CORE ,  , 0.113891 "]
        file.writestr("eval_bundle/openai-community-gpt2.csv", "\n".join(lines) + "\n")
    monkeypatch.setitem(yardstick.PUBLISHED, (CONFIG["n_layer"], CONFIG["n_embd"]), "openai-community-gpt2.csv")
    folder = write_gpt2(tmp_path / "gpt2")
    run(folder, "--bundle", with_scores, "-o", tmp_path / "out")
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["task"][-1] == "published"
    assert (lines["world_towns"][-1], lines["world_pets"][-1], lines["CORE"][-1]) == ("0.3085", "–", "0.1139")
    run(folder, "--bundle", with_scores, "-o", tmp_path / "out", "--tasks", "world_towns")
    assert "no CORE: it takes all tasks of the bundle" in capsys.readouterr().out


def test_the_scores_in_the_published_bundle_are_read(shared_data):
    cores = {}
    for (layers, width), name in yardstick.PUBLISHED.items():
        config = GPTConfig.preset("textbook", n_layer=layers, n_embd=width, n_head=1, n_kv_head=1)
        cores[name] = yardstick.published_scores(shared_data / "eval_bundle.zip", config)
    assert [round(scores["CORE"], 4) for scores in cores.values()] == [0.1139, 0.1849, 0.2146, 0.2565]
    assert {len(scores) for scores in cores.values()} == {23}
