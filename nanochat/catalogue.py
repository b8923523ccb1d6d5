"""The catalogue: every remote file that a run may read, by a short key. Nothing is downloaded here.

    folder: fineweb-edu             # files go to resources/<folder>/
    files:
      gsm8k/test:
        url: https://...            # or http, file:///absolute, file:beside/this/file, generated:<name>
        size: 419_088               # bytes
        sha256: ee7b8d...
    families:                       # data sets of many files of one kind
      fineweb-edu/shard:            # its files are fineweb-edu/shard_00000, fineweb-edu/shard_00001, ...
        url: https://.../shard_{index:05d}.parquet
        count: 1_823

A key names one file or, without the number, a family: `parts("smoltalk/train")` lists the files of either. ${NAME} in an
address is replaced by the environment variable when the address is asked for, so an unset one harms nobody who does not need
the file.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.errors import UserError
from nanochat.strict_yaml import as_text_keys, problems_of, raise_for, read_mapping

SCHEMES = ("https", "http", "file", "generated")
KEY = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"
INDEX = "{index:05d}"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(Model):
    """What a file and a family have in common."""

    url: str = Field(description="https, http, file or generated address; a family's has {index:05d} in it")
    path: str | None = Field(None, description="where it goes in resources/<folder>/; empty = its key and the address's suffix")
    revision: str | None = Field(None, description="the publisher's commit that the address is pinned to")
    licence: str | None = Field(None, description="as the publisher states it")
    rows: int | None = Field(None, description="documents, questions or lines; of a family: of all its files", ge=0)
    verified: bool = Field(False, description="whether somebody has downloaded it and found this size and sha256")
    note: str | None = Field(None, description="what else one should know")


class FileEntry(Source):
    """One file."""

    size: Size | None = Field(None, description="bytes; empty = unknown")
    sha256: Sha256 | None = Field(None, description="empty = unknown")


class FamilyEntry(Source):
    """Numbered files of one kind."""

    count: int = Field(description="how many there are, numbered from 0", ge=1, le=100_000)
    sizes: list[Size] | None = Field(None, description="bytes of each file")
    sha256s: list[Sha256] | None = Field(None, description="of each file")


class CatalogueDocument(Model):
    """A catalogue file."""

    folder: str = Field(description="name of the folder in resources/", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    files: dict[str, FileEntry] = Field({}, description="single files, by key")
    families: dict[str, FamilyEntry] = Field({}, description="numbered files, by the key without the number")


@dataclass(frozen=True)
class CatalogueFile:
    """One file of the catalogue. `path` is relative to resources/<folder>/; None where something is not known."""

    key: str
    address: str  # as written, with its ${VARIABLES}
    path: str
    size: int | None
    sha256: str | None
    revision: str | None
    licence: str | None
    rows: int | None
    verified: bool
    catalogue: Path

    @property
    def url(self) -> str:
        """The address to read from, absolute. UserError if it names an environment variable that is not set."""

        url = re.sub(r"\$\{(\w+)\}", lambda match: self._variable(match[1]), self.address)
        if urlsplit(url).scheme not in SCHEMES:
            shown = re.sub(r"(?<=//)[^/]*@|(?<=\?).*", "***", url)  # it may hold a password or a token
            raise UserError(f"{self.catalogue}: {self.key} is at {shown}; an address begins with {', '.join(SCHEMES)}")
        if url.startswith("file:") and not url.startswith("file:/"):
            return (self.catalogue.parent.absolute() / url.removeprefix("file:")).as_uri()
        return url

    @property
    def source(self) -> Path | None:
        """The file on this machine that it is copied from; None if it comes from elsewhere. UserError as `url`."""
        parts = urlsplit(self.url) if self.address.startswith(("file:", "${")) else None
        return Path(unquote(parts.path)) if parts and parts.scheme == "file" else None

    def _variable(self, name: str) -> str:
        value = os.environ.get(name)
        if not value:
            raise UserError(f"{self.catalogue}: {self.key} is at {self.address}, and {name} is not set. Run: export {name}=...")
        if self.address.startswith(f"file://${{{name}}}"):
            return quote(str(Path(value).expanduser().absolute()))  # a path may be relative and may have spaces in it
        return value


class Catalogue:
    """Every remote file by its key. `path` is the catalogue's own file, `folder` the name of its folder in resources/."""

    def __init__(self, path: Path, document: CatalogueDocument):
        self.path = path
        self.folder = document.folder
        self._files = document.files
        self._families = document.families

    def __contains__(self, key: str) -> bool:
        return key in self._files or self._family_of(key) is not None

    def get(self, key: str) -> CatalogueFile:
        """The file of this key. UserError, with the nearest key there is, if there is none."""
        if key in self._files:
            return self._file(key, self._files[key])
        place = self._family_of(key)
        if place is None:
            raise UserError(self.unknown(key))
        return self._shard(*place)

    def parts(self, name: str) -> list[str]:
        """Keys of all files of a data set: one for a single file, `count` for a family."""
        if name in self._families:
            return [f"{name}_{index:05d}" for index in range(self._families[name].count)]
        return [self.get(name).key]

    def rows(self, name: str) -> int | None:
        """Documents, questions or lines of a whole data set, if the catalogue says."""
        return (self._files.get(name) or self._families[name]).rows

    def keys(self) -> list[str]:
        return [*self._files, *(key for name in self._families for key in self.parts(name))]

    def names(self) -> list[str]:
        """Keys of single files, and families by their name alone."""
        return [*self._files, *self._families]

    def unknown(self, key: str) -> str:
        """The sentence that says that there is no such key, and what there is."""
        if match := re.fullmatch(r"(.+)_\d{5}", key):
            if match[1] in self._families:
                return (
                    f"{self.path} has no {key}: the {self._families[match[1]].count} files of {match[1]} are numbered from 0."
                )
            key = match[1]
        near = get_close_matches(key, self.names(), n=1, cutoff=0.7)
        hint = f" Did you mean {near[0]}?" if near else f" It has {', '.join(self.names())}."
        return f"{self.path} has no {key}.{hint}"

    def _family_of(self, key: str) -> tuple[str, int] | None:
        match = re.fullmatch(r"(.+)_(\d{5})", key)
        if match and match[1] in self._families and int(match[2]) < self._families[match[1]].count:
            return match[1], int(match[2])
        return None

    def _file(self, key: str, entry: FileEntry) -> CatalogueFile:
        return self._make(key, entry, entry.url, default_path(key, entry), entry.size, entry.sha256, entry.rows)

    def _shard(self, name: str, index: int) -> CatalogueFile:
        entry = self._families[name]
        url, path = (text.replace(INDEX, f"{index:05d}") for text in (entry.url, default_path(f"{name}_{INDEX}", entry)))
        size = entry.sizes[index] if entry.sizes else None
        sha256 = entry.sha256s[index] if entry.sha256s else None
        return self._make(f"{name}_{index:05d}", entry, url, path, size, sha256, None)

    def _make(
        self, key: str, entry: Source, url: str, path: str, size: int | None, sha256: str | None, rows: int | None
    ) -> CatalogueFile:
        known = (size, sha256, entry.revision, entry.licence, rows, entry.verified)
        return CatalogueFile(key, url, path, *known, catalogue=self.path)


def load_catalogue(path: str | Path) -> Catalogue:
    """Read and check a catalogue. UserError that lists every problem."""
    path = Path(path)
    content = as_text_keys(read_mapping(path, "a catalogue of downloads"))
    try:
        document = CatalogueDocument.model_validate(content)
    except ValidationError as error:
        raise_for(problems_of(error, CatalogueDocument), str(path))
    raise_for(list(problems_in(document)), str(path))
    return Catalogue(path, document)


def problems_in(document: CatalogueDocument) -> Iterator[str]:
    """What a type cannot say: addresses, paths, and how keys go together."""
    owners: dict[str, str] = {}
    entries: list[tuple[str, str, FileEntry | FamilyEntry]] = [("files", key, entry) for key, entry in document.files.items()]
    entries += [("families", key, entry) for key, entry in document.families.items()]
    for group, key, entry in entries:
        name = f"{group}.{key}"
        if not re.fullmatch(KEY, key):
            yield f"{name}: a key is made of letters, digits, '.', '_' and '-', in parts separated by '/'"
        yield from address_problems(name, entry)
        path = default_path(f"{key}_{INDEX}" if group == "families" else key, entry)
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or path.endswith(".json"):
            yield f"{name}.path is {path!r}; it must stay inside resources/{document.folder}/ and not end in .json"
        if path in owners:
            yield f"{name}.path is {path!r}, which is the path of {owners[path]} too"
        owners[path] = name
        yield from digest_problems(name, entry)


def address_problems(name: str, entry: FileEntry | FamilyEntry) -> Iterator[str]:
    if urlsplit(entry.url).scheme not in SCHEMES and not entry.url.startswith("${"):
        yield f"{name}.url is {entry.url!r}; it must begin with one of {', '.join(f'{s}:' for s in SCHEMES)} or a ${{VARIABLE}}"
    for field in ("url", "path"):
        text = getattr(entry, field)
        if text is not None and isinstance(entry, FamilyEntry) != (INDEX in text):
            yield f"{name}.{field} is {text!r}; " + (
                f"a family's has {INDEX} in it" if isinstance(entry, FamilyEntry) else "a single file's has no {index}"
            )


def digest_problems(name: str, entry: FileEntry | FamilyEntry) -> Iterator[str]:
    known: list[Any] = []
    if isinstance(entry, FileEntry):
        known = [entry.size, entry.sha256]
    else:
        known = [entry.sizes, entry.sha256s]
        for field in ("sizes", "sha256s"):
            values = getattr(entry, field)
            if values is not None and len(values) != entry.count:
                yield f"{name}.{field} has {len(values)} entries, and {name}.count is {entry.count}"
    if entry.verified and None in known:
        yield f"{name}.verified is true, and size or sha256 is missing; a file is verified against both"


def default_path(key: str, entry: Source) -> str:
    if entry.path is not None:
        return entry.path
    suffix = PurePosixPath(urlsplit(entry.url).path).suffix
    return key if key.endswith(suffix) else key + suffix
