"""Find methods, tasks and metrics by name, in petransfer and in other installed packages.

A file of petransfer adds an entry by assigning the entry to a module-level name. Another package declares an entry
point, which has the name of the entry and the value `module:object`:

    [project.entry-points."petransfer.methods"]
    my-method = "my_package.my_method:METHOD"
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeVar

from petransfer.errors import UserError, reason_of, unknown

_log = logging.getLogger(__name__)


class Named(Protocol):
    """The interface of an entry of a registry. `name` is the name in recipes."""

    @property
    def name(self) -> str: ...


Entry = TypeVar("Entry", bound=Named)


class Registry(Mapping[str, Entry]):
    """Entries of one kind, such as methods, by name. Nothing is imported before the first lookup.

    Listing the names does not import other packages. A built-in entry has priority over an entry of another package
    with the same name.

    Args:
        noun: Word for an entry in error messages, such as `method`.
        kind: Class of the entries.
        package: Package with the built-in entries. All its modules are imported, except subpackages and modules whose
            names begin with `_`.
        group: Group of the entry points in other packages, such as `petransfer.methods`.
    """

    def __init__(self, noun: str, kind: type[Entry], package: str, group: str) -> None:
        self.noun, self.kind, self.package, self.group = noun, kind, package, group

    @functools.cached_property
    def _built_in(self) -> dict[str, Entry]:
        package = importlib.import_module(self.package)
        found: dict[str, Entry] = {}
        for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
            if not module.ispkg and not module.name.rpartition(".")[2].startswith("_"):
                values = vars(importlib.import_module(module.name)).values()
                found |= {value.name: value for value in values if isinstance(value, self.kind)}
        return found

    @functools.cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._built_in or point.name in found:
                _log.warning("%s: %s '%s' is ignored: the name is taken", _origin(point), self.noun, point.name)
            else:
                found[point.name] = point
        return found

    @functools.cached_property
    def _loaded(self) -> dict[str, Entry]:
        return {}

    def __getitem__(self, name: str) -> Entry:
        """Return the entry called `name`.

        Raises:
            KeyError: There is no entry with this name.
            UserError: The package of the entry cannot be imported, or has no valid entry with this name.
        """
        if name in self._built_in:
            return self._built_in[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(self._installed[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._installed

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from self._installed

    def __len__(self) -> int:
        return len(self._built_in) + len(self._installed)

    def of_package(self) -> list[Entry]:
        """Return the built-in entries without importing other packages."""
        return list(self._built_in.values())

    def lookup(self, name: str) -> Entry:
        """Return the entry with a name that a user gave.

        Raises:
            UserError: The name is unknown, or the package of the entry cannot be imported or has no valid entry.
        """
        if name not in self:
            raise unknown(self.noun, name, self)
        return self[name]

    def _load(self, point: EntryPoint) -> Entry:
        where = f"{self.noun} '{point.name}' of the installed package {_origin(point)}"
        try:
            entry = point.load()
        except Exception as error:  # another package can raise any error
            reason = reason_of(f"{type(error).__name__}: {error}")
            raise UserError(
                f"{where} cannot be imported from {point.value} ({reason:.200}); repair or remove it"
            ) from error
        if not isinstance(entry, self.kind):
            raise UserError(f"{where}: {point.value} is a {type(entry).__name__}; it must be a {self.kind.__name__}")
        if entry.name != point.name:
            raise UserError(f"{where} is named '{entry.name}' in {point.value}; the two names must be the same")
        return entry


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module
