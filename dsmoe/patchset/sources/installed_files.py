"""Patching the ``deepspeed`` package that pip installed, and taking the patches back.

An installed package is not a checkout, but its files are those of a base: ``bases/NAME/files``
lists them, and the trees made from that list have the base's ids. The result is built from these
files in an object database of our own beside the package's (``.dsmoe.git`` in its folder), by the
same code as for a checkout. That database keeps the original of every file that is changed, so
that reverting needs nothing else. Content decides at every run: a file holds the base's bytes, the
result's, or those of the series applied before; anything else is somebody's edit and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Iterable, Mapping, Sequence

from dsmoe.common.errors import LocalChanges, NotACheckout, OtherBase, SeriesBroken, UsageError
from dsmoe.common.files import remove_file, write_atomically
from dsmoe.common.typed import program
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.build import Built, build
from dsmoe.patchset.checkout.open import Checkout, workspace
from dsmoe.patchset.checkout.records import Record, Records, read_record
from dsmoe.patchset.git import Git
from dsmoe.patchset.inputs import read_input
from dsmoe.patchset.series import load_series
from dsmoe.patchset.tree import Entries, Entry, hash_files, make_tree, read_tops

PACKAGE = "deepspeed"
LABEL = "the installed package"
#: Top folder of the base -> the folders below site-packages that hold its files.
PLACES = {
    "deepspeed": ("deepspeed",),
    "op_builder": ("op_builder", "deepspeed/ops/op_builder"),
}


@dataclass(frozen=True)
class Installed:
    """The package found: ``site`` is the folder that holds it, ``files`` the base's list."""

    site: Path
    base: Base
    files: Entries

    @property
    def folder(self) -> Path:
        """Our own folder: the object database, the lock and the record."""
        return self.site / PACKAGE / ".dsmoe.git"

    def places(self, path: str) -> list[Path]:
        """Where the base's file ``path`` is installed."""
        top, _, rest = path.partition("/")
        return [self.site / place / rest for place in PLACES.get(top, ())]


def find(bases: Sequence[Base]) -> Installed:
    """The ``deepspeed`` package of this environment.

    Raises:
        NotACheckout: none is installed.
        UsageError: no base has a list of files.
        OtherBase: its version is that of no base with a list of files.
    """
    known = [base for base in bases if base.files is not None]
    if not known:
        raise UsageError(
            f"--installed: {', '.join(base.name for base in bases)} has no list of files, by which "
            "an installed package is known; expected a base that has one, or a checkout's path"
        )
    names = " or ".join(f"{PACKAGE}=={base.version}" for base in known)
    try:
        found = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise NotACheckout(
            f"no package {PACKAGE} is installed in this environment; expected {names}: "
            f"python -m pip install --no-build-isolation --no-deps {PACKAGE}=={known[-1].version}"
        ) from None
    site = Path(str(found.locate_file("")))
    if not (site / PACKAGE / "__init__.py").is_file():
        raise NotACheckout(
            f"{PACKAGE} {found.version} is registered in {site} but its files are not there "
            f"(an editable install?); give {program('apply')} the checkout's path instead"
        )
    for base in known:
        if base.version == found.version:
            return Installed(site, base, _read_files(base))
    raise OtherBase(f"{PACKAGE} {found.version} is installed in {site}; expected {names}")


def _read_files(base: Base) -> Entries:
    if base.files is None:
        return {}
    found: Entries = {}
    try:
        for line in read_input(base.files).decode("utf-8").splitlines():
            meta, path = line.split("\t", 1)
            mode, _, oid = meta.split()
            found[path] = (mode, oid)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{base.files} is not a list of files as git ls-tree -r writes it: {error}"
        ) from None
    return found


class Patcher:
    """The package's files against the base and the result; ``git`` is the object database."""

    def __init__(self, package: Installed, git: Git) -> None:
        self.package, self.git = package, git
        self.kept = Records(package.folder / "dsmoe")
        found = (read_record(self.kept.applied), read_record(self.kept.journal))
        self.records: list[Record] = [record for record in found if record is not None]
        absent = [s["path"] for s in package.base.release["steps"] if s["do"] == "index-only"]
        links = [path for path, entry in package.files.items() if entry[0] == "120000"]
        self.files = {p: e for p, e in package.files.items() if p not in absent + links}
        self.found: dict[Path, str | None] = {}
        self._hash(self.files)

    def _hash(self, paths: Iterable[str]) -> None:
        """Note the blob id of every installed file of ``paths`` and keep the blob."""
        files = [place for path in paths for place in self.package.places(path)]
        there = [place for place in files if place.is_file()]
        ids = hash_files(self.git, [str(place) for place in there], write=True)
        self.found.update(dict.fromkeys(files))
        self.found.update(zip(there, ids))

    def look(self, built: Built | None = None) -> None:
        """Hash the files anew, those that the series touches too."""
        self._hash([*self.files, *(p for p in self.touched(built) if p not in self.files)])

    def build(self) -> Built:
        """The result, as for a checkout of the base; the trees prove the list of files first.

        Raises:
            LocalChanges: files that were edited before they were ever patched.
            SeriesBroken: the series does not fit, or changes what pip does not install.
        """
        base = self.package.base
        lacked = self._lacked(entry[1] for entry in self.files.values())
        strange = [path for path, entry in self.files.items() if entry[1] in lacked]
        if strange:
            raise were_edited([str(place) for path in strange for place in self.strange(path, [])])
        with workspace(self._checkout(""), dry=False) as scratch:
            tree = make_tree(scratch, self.package.files)
            tops = read_tops(scratch, tree)
            wrong = [top for top, oid in tops.items() if base.trees.get(top) != oid]
            if wrong:
                raise SeriesBroken(f"{base.files} does not give the base's trees", wrong)
            built = build(scratch, self._checkout(tree, tops), load_series(base))
        homeless = [path for path in built.changes if not self.package.places(path)]
        if homeless:
            raise SeriesBroken("the series changes files that pip does not install", homeless)
        self.look(built)
        return built

    def _lacked(self, oids: Iterable[str]) -> set[str]:
        """Those of ``oids`` whose blobs are not there; one git for all, since each takes 5 ms."""
        asked = "".join(f"{oid}\n" for oid in oids).encode()
        lines = self.git.run("cat-file", "--batch-check", stdin=asked).text.splitlines()
        return {line.split()[0] for line in lines if line.endswith(" missing")}

    def _checkout(self, tree: str, tops: dict[str, str] | None = None) -> Checkout:
        folder, package = self.git.path, self.package
        return Checkout(
            package.site, folder, folder / "objects", package.base, LABEL, "", tree, tops or {},
            self.git,
        )  # fmt: skip

    def touched(self, built: Built | None) -> list[str]:
        """Every path that the series changes, or that one applied before has changed."""
        paths = set(built.changes) if built is not None else set()
        for record in self.records:
            paths.update(record.after)
        return sorted(paths)

    def wanted(self, built: Built | None, applied: bool) -> dict[str, Entry | None]:
        """Path -> entry of all touched paths, with the series applied or without."""
        base = {path: self.package.files.get(path) for path in self.touched(built)}
        after = {p: c[1] for p, c in built.changes.items()} if built is not None else {}
        return {**base, **after} if applied else dict(base)

    def strange(self, path: str, known: Sequence[Mapping[str, Entry | None]]) -> list[Path]:
        """Where ``path`` holds neither the base's content nor one of ``known`` or a record."""
        entries = [self.package.files.get(path)]
        entries += [given[path] for given in known if path in given]
        entries += [record.after[path] for record in self.records if path in record.after]
        ids = [entry[1] if entry else None for entry in entries]
        return [place for place in self.package.places(path) if self.found[place] not in ids]

    def edited(self, built: Built | None, paths: Iterable[str]) -> list[str]:
        """The files of ``paths`` that were changed by somebody else."""
        known = [self.wanted(built, applied=True)]
        return sorted(str(place) for path in paths for place in self.strange(path, known))

    def holds(self, wanted: Mapping[str, Entry | None]) -> bool:
        """Whether every installed file of ``wanted`` has that content."""
        return not self._differing(wanted)

    def _differing(self, wanted: Mapping[str, Entry | None]) -> list[tuple[Path, Entry | None]]:
        return [
            (place, entry)
            for path, entry in wanted.items()
            for place in self.package.places(path)
            if self.found[place] != (entry[1] if entry else None)
        ]

    def write(self, wanted: Mapping[str, Entry | None]) -> list[str]:
        """Bring the installed files to ``wanted``, each by a rename; what was changed."""
        todo = self._differing(wanted)
        for place, entry in todo:
            if entry is None:
                _forget_bytecode(place)
                remove_file(self.package.site, place.relative_to(self.package.site).as_posix())
                continue
            mode = place.stat().st_mode & 0o777 if place.exists() else 0o644
            write_atomically(place, self.git.run("cat-file", "blob", entry[1]).out, mode)
            _forget_bytecode(place)
        return sorted(str(place) for place, _ in todo)


def _forget_bytecode(place: Path) -> None:
    """Drop the compiled form; Python makes it anew. An emptied cache folder goes too."""
    cache = place.parent / "__pycache__"
    for compiled in cache.glob(f"{place.stem}.*.pyc"):
        compiled.unlink()
    if cache.is_dir() and not any(cache.iterdir()):
        cache.rmdir()


def were_edited(places: Sequence[str]) -> LocalChanges:
    """The refusal that lists ``places``."""
    return LocalChanges(
        f"{len(places)} files of the installed {PACKAGE} were edited; nothing was changed; undo "
        f"the edits, or install the package anew: python -m pip install --force-reinstall "
        f"--no-build-isolation --no-deps {PACKAGE}==VERSION",
        places,
    )
