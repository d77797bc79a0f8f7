"""Kinds by name: ours, and those that other packages offer by entry point."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import Any

from pydantic.dataclasses import is_pydantic_dataclass

from twinpass.errors import ExtensionError


@dataclass(frozen=True, eq=False)
class Family(Mapping[str, type[Any]]):
    """The kinds of one family, such as estimators. A kind is imported when it is asked for; names are had without.

    Args:
        base: the abstract class that all kinds have in common, as "module:Class".
        group: the entry points by which other packages offer kinds. A name of ours is ours.
        own: our kinds by name, as "module:Class".
    """

    base: str
    group: str
    own: Mapping[str, str]

    def __getitem__(self, name: str) -> type[Any]:
        """The class called ``name``.

        Raises:
            KeyError: there is none.
            ExtensionError: another package offers one that cannot be used.
        """
        if name in self.own:
            return _imported(self.own[name])
        offered = self._offered(name)
        if not offered:
            raise KeyError(name)
        return self._extension(name, offered)

    def __contains__(self, name: object) -> bool:
        return name in self.own or bool(isinstance(name, str) and self._offered(name))

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from sorted(set(entry_points(group=self.group).names) - set(self.own))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _offered(self, name: str) -> list[EntryPoint]:
        return list(entry_points(group=self.group, name=name))

    def _extension(self, name: str, offered: list[EntryPoint]) -> type[Any]:
        packages = " and ".join(sorted(_package(entry) for entry in offered))
        if len({entry.value for entry in offered}) > 1:
            raise ExtensionError(f"{name!r} is offered by {packages}; uninstall all but one")
        entry = offered[0]
        what = f"{name!r} is {entry.value} of {packages}"
        try:
            kind = entry.load()
        except (ImportError, AttributeError, TypeError) as error:
            raise ExtensionError(
                f"{what}, which cannot be imported: {error}; mend that package, or uninstall it"
            ) from error
        return self._checked(what, kind)

    def _checked(self, what: str, kind: Any) -> type[Any]:
        """``kind``, if it is a complete member of the family."""
        base = _imported(self.base)
        if not (isinstance(kind, type) and issubclass(kind, base)) or isabstract(kind):
            raise ExtensionError(
                f"{what}, which is no complete {base.__module__}.{base.__name__}; its entry point in {self.group!r} has to "
                "name a subclass that has every abstract method"
            )
        settings: Any = kind
        declared = is_pydantic_dataclass(settings) and "__pydantic_validator__" in vars(settings)
        if not declared or not settings.__dataclass_params__.frozen:
            raise ExtensionError(
                f"{what}, which does not check its settings; declare it with "
                "@pydantic.dataclasses.dataclass(frozen=True, config=twinpass.settings.STRICT)"
            )
        checked: type[Any] = settings
        return checked


def _imported(place: str) -> type[Any]:
    module, _, name = place.partition(":")
    kind: type[Any] = getattr(import_module(module), name)
    return kind


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
