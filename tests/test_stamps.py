"""Time stamps, copies and deletions: what is still there is not done again. `make torture ONLY=stamps` tries many more."""

import random

import pytest
from project import Project
from torture import stamps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(quick_run) -> Project:
    return Project(quick_run)


def test_after_all_time_stamps_were_changed_by_up_to_a_year_there_is_nothing_to_be_done(finished, tmp_path):
    assert stamps.random_stamps(finished, tmp_path / "project", random.Random(1)) is None


def test_with_the_base_model_gone_and_the_final_one_there_nothing_is_trained(finished, tmp_path):
    assert stamps.no_base(finished, tmp_path / "project") is None


def test_with_the_content_of_a_manifest_changed_there_is_something_to_be_done(finished, tmp_path):
    assert "to be done" in stamps.other_content(finished, tmp_path / "project", random.Random(1))


def test_a_project_copied_without_time_stamps_that_lost_files_makes_only_what_is_gone_and_ends_the_same(finished, tmp_path):
    project = stamps.copy_of(finished, tmp_path / "project", keeps_stamps=False)
    (project.folder / "results/tiny/chat_eval/sft/answers.jsonl").unlink()
    (project.folder / "results/tiny/tokens/sft/manifest.json").unlink()
    stamps.repair(project.folder)
    gone = "results/tiny/chat_eval/sft"
    assert stamps.run_and_compare(project, finished, allowed={gone}) is None
    # the check itself: were that stage whole, its work would have been noticed
    assert stamps.compare(project, finished, allowed=set()) == f"made again without need: {gone}"
