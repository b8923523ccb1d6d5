"""Killed at, or refused, any system call that publishes: what was there, or is to be there, and the next attempt gets there.

All kills of publishing and committing are tried here, and a seeded sample of the rest; `make torture` tries all of it.
"""

import pytest
from conftest import skip_or_fail
from torture.crash_points import controlled, try_control, try_path, workshop
from torture.publish_paths import publish_paths
from torture.trace import Call, power_problems
from torture.zygote import why_no_tracing

PATHS = publish_paths("http://server")
QUICK = [path.name for path in PATHS if path.is_quick]
OTHERS = [path.name for path in PATHS if not path.is_quick]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash_points")
    if reason := why_no_tracing(folder):
        skip_or_fail(reason)
    with workshop(folder) as (zygote, world, address):
        yield {path.name: path for path in publish_paths(address)}, zygote, world


def failures(found: dict) -> list[str]:
    return [trial for kind in ("kills", "errors", "power") for trial in found[kind] if trial]


@pytest.mark.parametrize("name", QUICK)
def test_manifests_and_commits_survive_a_kill_at_every_call(shop, tmp_path, name):
    paths, zygote, world = shop
    found = try_path(paths[name], zygote, world, tmp_path, errors=0.1)
    assert len(found["kills"]) == found["counts"]["points"] > 0
    assert not failures(found), failures(found)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_path_survives_a_sample_of_kills_and_errors(shop, tmp_path, name):
    paths, zygote, world = shop
    found = try_path(paths[name], zygote, world, tmp_path, kills=0.03, errors=0.03)
    assert found["kills"]
    assert not failures(found), failures(found)


def test_what_is_written_in_place_does_not_survive(shop, tmp_path):
    """Negative control of the tests above."""
    paths, zygote, world = shop
    for path in controlled(list(paths.values())):
        broken = [problem for problem in try_control(path, zygote, world, tmp_path) if problem]
        assert any("neither as it was nor as it is to be" in problem for problem in broken)
        assert any("is damaged" in problem for problem in broken)


# -- the order that a power failure needs ------------------------------------------------------------------------------------

PUBLISHED = [
    Call("mkdir", "out"),
    Call("fsync", ""),
    Call("openat", "out/.a.tmp", makes=True),
    Call("write", "out/.a.tmp"),
    Call("fsync", "out/.a.tmp"),
    Call("rename", "out/.a.tmp", "out/a"),
    Call("fsync", "out"),
    Call("openat", "out/.manifest.json.tmp", makes=True),
    Call("write", "out/.manifest.json.tmp"),
    Call("fsync", "out/.manifest.json.tmp"),
    Call("rename", "out/.manifest.json.tmp", "out/manifest.json"),
    Call("fsync", "out"),
]


def test_in_order_there_is_nothing_to_lose():
    assert power_problems(PUBLISHED) == []


@pytest.mark.parametrize("left_out", [number for number, call in enumerate(PUBLISHED) if call.name == "fsync"])
def test_any_sync_that_is_left_out_is_noticed(left_out):
    assert power_problems([*PUBLISHED[:left_out], *PUBLISHED[left_out + 1 :]])


def test_a_commit_whose_folder_is_renamed_before_its_files_are_synced_is_noticed():
    calls = [
        Call("mkdir", "resume/.step_00000001.tmp"),
        Call("openat", "resume/.step_00000001.tmp/weights", makes=True),
        Call("write", "resume/.step_00000001.tmp/weights"),
        Call("rename", "resume/.step_00000001.tmp", "resume/step_00000001"),
        Call("fsync", "resume"),
    ]
    assert any("weights is not synced" in problem for problem in power_problems(calls))


def test_an_older_commit_removed_before_the_new_one_has_its_name_on_the_disk_is_noticed():
    calls = [
        Call("rename", "resume/.step_00000003.tmp", "resume/step_00000003"),
        Call("unlink", "resume/step_00000001/manifest.json"),
        Call("fsync", "resume"),
    ]
    assert power_problems(calls) == ["resume/step_00000003 is not synced before resume/step_00000001/manifest.json is removed"]
