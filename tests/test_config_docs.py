"""The generated schema and documentation are in step with the models, and the schema says what the check says."""

import json
from typing import Any

import jsonschema
import pytest
import yaml
from configurations import DOCUMENT, REPOSITORY, edited

from nanochat.config_docs import COMMAND, generated_files, schema


@pytest.mark.parametrize("name", generated_files())
def test_generated_files_are_in_step(name: str) -> None:
    path = REPOSITORY / name
    is_same = path.exists() and path.read_text(encoding="utf-8") == generated_files()[name]
    assert is_same, f"{name} has fallen behind nanochat/sections.py or nanochat/catalogue.py. Run: {COMMAND}"


def check(document: Any) -> None:
    jsonschema.validate(document, schema())


@pytest.mark.parametrize("name", ["config.yaml", "small.yaml", "tiny.yaml", "speedrun.yaml"])
def test_shipped_configurations_fit_the_schema(name: str) -> None:
    check(yaml.safe_load((REPOSITORY / "config" / name).read_text()))


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("config/*sources.yaml")), ids=lambda path: path.name)
def test_shipped_catalogues_fit_the_schema(path: Any) -> None:
    wanted = json.loads((REPOSITORY / "config/sources.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), wanted)


def test_overrides_and_reuse_fit_the_schema() -> None:
    check({**DOCUMENT, "runs": {"a": None, "b": {"base_train": "a", "sft": {"epochs": 2.0}}}})


def test_numbers_with_underscores_fit_the_schema_as_editors_read_them() -> None:
    check(edited({"base_train.total_batch_tokens": "524_288"}))


@pytest.mark.parametrize(
    "edit",
    [
        {"base_train.depht": 3},
        {"base_train.depth": "two"},
        {"base_train.depth": 0},
        {"base_train.preset": "nanocaht"},
        {"base_train.matrix_lr": "atuo"},
        {"base_train.optimizer": {"cautios": True}},
        {"sft.mixture": []},
        {"sft.mixture.0": {"rows": 3}},
        {"runs.small": {"stf": {}}},
        {"runs.small": {"identity": "small"}},
        {"runs": ...},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_check_refuses(edit: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(edited(edit))
