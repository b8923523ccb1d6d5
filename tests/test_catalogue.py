"""The catalogue: keys, families, addresses, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import CATALOGUE, REPOSITORY

from nanochat.catalogue import Catalogue, load_catalogue
from nanochat.errors import UserError

SHA = "0123456789abcdef" * 4


def make(folder: Path, content: dict[str, Any] | str) -> Catalogue:
    path = folder / "sources.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_catalogue(path)


def one_file(**entry: Any) -> dict[str, Any]:
    return {"folder": "f", "files": {"a": {"url": "https://example.org/a.bin", **entry}}}


def one_family(**entry: Any) -> dict[str, Any]:
    return {"folder": "f", "families": {"a": {"url": "https://example.org/{index:05d}.bin", "count": 2, **entry}}}


def test_a_file_is_found_by_its_key(tmp_path: Path) -> None:
    catalogue = make(tmp_path, one_file(size=3, sha256=SHA, revision="r", licence="MIT", rows=2, verified=True))
    file = catalogue.get("a")
    assert (catalogue.folder, catalogue.path) == ("f", tmp_path / "sources.yaml")
    assert (file.key, file.url, file.path) == ("a", "https://example.org/a.bin", "a.bin")
    assert (file.size, file.sha256, file.revision, file.licence, file.rows, file.verified) == (3, SHA, "r", "MIT", 2, True)


def test_a_family_has_a_file_for_each_number(tmp_path: Path) -> None:
    entry = {"path": "t/{index:05d}.x", "sizes": [5, 6], "sha256s": [SHA, SHA[::-1]]}
    catalogue = make(tmp_path, one_family(**entry))
    assert catalogue.keys() == catalogue.parts("a") == ["a_00000", "a_00001"]
    file = catalogue.get("a_00001")
    assert (file.url, file.path) == ("https://example.org/00001.bin", "t/00001.x")
    assert (file.size, file.sha256) == (6, SHA[::-1])
    assert "a_00001" in catalogue and "a_00002" not in catalogue and "a" not in catalogue


def test_parts_lists_the_files_of_a_family_or_the_single_file(tmp_path: Path) -> None:
    catalogue = make(tmp_path, CATALOGUE)
    assert catalogue.parts("smoltalk/train") == ["smoltalk/train_00000", "smoltalk/train_00001"]
    assert catalogue.parts("smoltalk/test") == ["smoltalk/test"]
    assert catalogue.parts("stories/shard_00003") == ["stories/shard_00003"]


def test_a_file_lies_under_its_key_with_the_suffix_of_its_address(tmp_path: Path) -> None:
    catalogue = make(tmp_path, CATALOGUE)
    assert catalogue.get("stories/shard_00002").path == "stories/shard_00002.parquet"
    assert catalogue.get("gsm8k/test").path == "gsm8k/test.parquet"
    assert catalogue.get("words").path == "words.txt"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("wrods", ["has no wrods", "Did you mean words?"]),
        ("gsm8k/tset", ["Did you mean gsm8k/test?"]),
        ("stories/shard_00005", ["has no stories/shard_00005", "5 files", "numbered from 0"]),
        ("zebra", ["has no zebra", "It has", "eval_bundle"]),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_and_the_file(key: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make(tmp_path, CATALOGUE).get(key)
    assert not [word for word in [*words, str(tmp_path / "sources.yaml")] if word not in str(caught.value)], str(caught.value)


# -- addresses -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["https://example.org/a", "http://localhost:1/a", "generated:a.parquet", "file:///tmp/a"])
def test_an_address_is_given_as_written(url: str, tmp_path: Path) -> None:
    assert make(tmp_path, one_file(url=url)).get("a").url == url


def test_a_relative_file_is_beside_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    make(tmp_path, one_file(url="file:data/a b.bin"))
    catalogue = load_catalogue(Path(tmp_path.name) / "sources.yaml")
    assert catalogue.get("a").url == (tmp_path / "data/a b.bin").as_uri()


def test_variables_are_replaced_when_the_address_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = make(tmp_path, one_file(url="${MIRROR}/a.bin"))
    monkeypatch.setenv("MIRROR", "https://mirror.example.org/files")
    assert catalogue.get("a").url == "https://mirror.example.org/files/a.bin"
    monkeypatch.setenv("MIRROR", "ftp://mirror.example.org")
    with pytest.raises(UserError, match=r"ftp://mirror\.example\.org/a\.bin; an address begins with"):
        _ = catalogue.get("a").url


def test_a_folder_in_a_variable_may_be_relative_and_have_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = make(tmp_path, one_file(url="file://${NANOCHAT_DATA}/x/a.bin"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_DATA", "my data")
    assert catalogue.get("a").url == (tmp_path / "my data/x/a.bin").as_uri()


def test_an_unset_variable_matters_only_to_who_asks_for_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOCHAT_DATA", raising=False)
    file = make(tmp_path, one_file(url="file://${NANOCHAT_DATA}/a.bin")).get("a")
    assert file.path == "a.bin"
    with pytest.raises(UserError, match=r"a is at file.*NANOCHAT_DATA is not set\. Run: export NANOCHAT_DATA="):
        _ = file.url


# -- what is refused -----------------------------------------------------------------------------------------------------------

WRONG = {
    "an unknown field": (one_file(sha="x"), ["files.a.sha is unknown", "Did you mean files.a.sha256?"]),
    "no folder": ({"files": {}}, ["folder is missing"]),
    "a folder with a slash": ({"folder": "a/b"}, ["folder is the text 'a/b'"]),
    "no address": ({"folder": "f", "files": {"a": {}}}, ["files.a.url is missing"]),
    "an unknown scheme": (
        one_file(url="s3://bucket/a"),
        ["files.a.url is 's3://bucket/a'", "https:, http:, file:, generated:"],
    ),
    "a path as address": (one_file(url="/data/a"), ["files.a.url is '/data/a'"]),
    "a path upwards": (one_file(path="../a"), ["files.a.path is '../a'", "stay inside resources/f/"]),
    "an absolute path": (one_file(path="/a"), ["files.a.path is '/a'"]),
    "the path of a manifest": (one_file(path="a.manifest.json"), ["files.a.path", ".json"]),
    "a short digest": (one_file(sha256="abc"), ["files.a.sha256 is the text 'abc'"]),
    "a negative size": (one_file(size=-1), ["files.a.size is -1; it must be at least 0"]),
    "a size as text": (one_file(size="3 MB"), ["files.a.size is the text '3 MB'; a whole number"]),
    "verified without a digest": (one_file(verified=True), ["files.a.verified is true, and size or sha256 is missing"]),
    "a family without its number": (one_family(url="https://example.org/a.bin"), ["families.a.url", "has {index:05d} in it"]),
    "a file with a number": (one_file(url="https://example.org/{index:05d}"), ["files.a.url", "a single file's has no"]),
    "a family without a count": (one_family(count=0), ["families.a.count is 0; it must be at least 1"]),
    "too few sizes": (one_family(sizes=[1]), ["families.a.sizes has 1 entries, and families.a.count is 2"]),
    "two files in one place": (
        {"folder": "f", "files": {n: {"url": "http://h/x", "path": "x"} for n in ("a", "b")}},
        ["files.b.path is 'x', which is the path of files.a too"],
    ),
    "a key with spaces": ({"folder": "f", "files": {"a b": {"url": "http://h/x"}}}, ["files.a b: a key is made of"]),
    "a repeated key": ("folder: f\nfiles:\n  a: {url: 'http://h/x'}\n  a: {url: 'http://h/y'}\n", ["line 4", "twice"]),
    "an empty file": ("", ["is empty; expected a catalogue of downloads"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_catalogue_is_refused_in_words(name: str, tmp_path: Path) -> None:
    content, words = WRONG[name]
    with pytest.raises(UserError) as caught:
        make(tmp_path, content)
    assert not [word for word in [*words, str(tmp_path / "sources.yaml")] if word not in str(caught.value)], str(caught.value)


# -- the shipped ones ----------------------------------------------------------------------------------------------------------


def test_no_digest_of_the_shipped_catalogue_counts_as_verified_without_size_and_sha256() -> None:
    catalogue = load_catalogue(REPOSITORY / "config/sources.yaml")
    assert len(catalogue.parts("fineweb-edu/shard")) == 1823
    assert len(catalogue.parts("smoltalk/train")) == 4
    for name in catalogue.names():
        file = catalogue.get(catalogue.parts(name)[-1])
        assert file.licence and not file.verified
        assert file.revision is None or file.revision in file.url


def test_the_local_catalogue_has_the_keys_of_the_remote_one_but_for_the_vocabularies() -> None:
    remote, local = (load_catalogue(REPOSITORY / f"config/{name}.yaml") for name in ("sources", "local_sources"))
    assert set(remote.names()) - set(local.names()) == {"gpt2_bpe", "cl100k_bpe"}
    assert set(local.names()) <= set(remote.names())


def test_the_local_catalogue_fits_the_folder_of_real_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DATA", str(shared_data))
    catalogue = load_catalogue(REPOSITORY / "config/local_sources.yaml")
    missing = [
        key
        for name in catalogue.names()
        for key in catalogue.parts(name)
        if not Path(catalogue.get(key).url.removeprefix("file://")).is_file()
    ]
    assert missing == []
