"""The settings of a part, read off its constructor: what stands after the star is what a config may say."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from functools import cache, cached_property, reduce
from operator import or_
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, create_model
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import no_info_wrap_validator_function, plain_serializer_function_ser_schema

from visionlab.choices import OneOf
from visionlab.settings import groups_of


class Section(BaseModel):
    """Settings that belong together: frozen, complete, and closed to keys it does not know."""

    # Strict, because a config says what it means; JSON mode lets an integer stand for a float and a list for a tuple.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Part(Section):
    """The settings of one constructor or function."""

    constructor: ClassVar[Callable[..., Any]]
    chosen_by_name: ClassVar[bool] = False

    if TYPE_CHECKING:  # which settings a part has, only its constructor knows

        def __getattr__(self, name: str) -> Any: ...

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments this part is built with; sections inside it as dictionaries."""
        plain = {key: value.model_dump() if isinstance(value, Part) else value for key, value in self}
        if self.chosen_by_name:
            del plain["name"]
        return plain

    def build(self, *parts: Any) -> Any:
        """Call the constructor with the parts the program gives and the settings the config gave."""
        return type(self).constructor(*parts, **self.arguments())


@dataclass(frozen=True, eq=False)
class From:
    """Says in an annotation where a section's settings come from: ``head: Annotated[Part, From(FastRCNNHead)]``.

    Args:
        source: a constructor or function; or a choice, whose table, or a plain table of them, has the constructors
            that the section's key ``name`` chooses from. A choice also takes constructors of one's own.
        without: parameters after the star that the program gives.
        unnamed: the choice where the section has no ``name``; the only one there is, by default.
    """

    source: Callable[..., Any] | Mapping[str, Callable[..., Any]] | OneOf
    without: tuple[str, ...] = ()
    unnamed: str | None = None

    @property
    def parts(self) -> list[type[Part]]:
        """The sections that may stand here, those of one's own aside."""
        table = self.source.table if isinstance(self.source, OneOf) else self.source
        if isinstance(table, Mapping):
            unnamed = next(iter(table)) if len(table) == 1 else self.unnamed
            return [part_of(made, name, self.without, name == unnamed) for name, made in table.items()]
        return [part_of(table, None, self.without)]

    def own(self, value: Any) -> type[Part] | None:
        """Return the section that a value chooses beside the table, if its ``name`` is none of the table's.

        Raises:
            ValueError: there is nothing of that name, or it cannot be a section.
        """
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(self.source, OneOf) or not isinstance(name, str) or name in self.source.table:
            return None
        if ":" not in name and self.source.others(name) is None:
            return None
        try:
            return part_of(self.source.find(name), name, self.without)
        except (TypeError, NameError) as error:
            raise ValueError(f"name: {name} has settings that a config cannot give: {error}") from error

    def default(self, **settings: Any) -> Any:
        """Return a field that holds these settings, and the defaults of the others, when the section is left out."""
        return Field(default_factory=lambda: TypeAdapter(Annotated[Part, self]).validate_python(settings))

    @cached_property
    def _union(self) -> Any:
        parts = self.parts
        if len(parts) == 1:
            return parts[0]
        if self.unnamed is None:
            return Annotated[reduce(or_, parts), Field(discriminator="name")]  # type: ignore[arg-type]
        tagged = [Annotated[part, Tag(get_args(part.model_fields["name"].annotation)[0])] for part in parts]
        return Annotated[reduce(or_, tagged), Discriminator(self._name)]  # type: ignore[arg-type]

    def _name(self, section: Any) -> Any:
        return section.get("name", self.unnamed) if isinstance(section, Mapping) else getattr(section, "name", None)

    @cached_property
    def _adapter(self) -> TypeAdapter:
        return TypeAdapter(self._union)

    def __get_pydantic_core_schema__(self, source_type: Any, handler: Any) -> Any:
        schema = handler.generate_schema(self._union)
        if not isinstance(self.source, OneOf):
            return schema
        return no_info_wrap_validator_function(
            self._choose,
            schema,
            serialization=plain_serializer_function_ser_schema(
                lambda part, info: part.model_dump(mode=info.mode), info_arg=True
            ),
        )

    def _choose(self, value: Any, _inner: Any) -> Any:
        try:
            own = self.own(value)
        except ValueError as error:
            raise PydanticCustomError("own_part", "{what}", {"what": str(error).removeprefix("name: ")}) from error
        # As JSON, in which a list may stand for a tuple: what reaches a wrapping validator is Python.
        text = json.dumps(value)
        return self._adapter.validate_json(text) if own is None else own.model_validate_json(text)

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Any:
        schema = handler(core_schema)
        if not isinstance(self.source, OneOf):
            return schema
        name = {"type": "string", "not": {"enum": list(self.source.table)}, "pattern": self.source.pattern}
        own = {"type": "object", "properties": {"name": name}, "required": ["name"]}
        return {"anyOf": [schema, own], "description": "Chosen by name, or one's own as package.module:Name."}


@cache
def part_of(
    constructor: Callable[..., Any], name: str | None = None, without: tuple[str, ...] = (), unnamed: bool = False
) -> type[Part]:
    """Read the settings of a constructor or function off its keyword-only parameters.

    Args:
        constructor: a class or function; every parameter after the star is annotated.
        name: the value of the key ``name`` that chooses this part from a table; None where there is no choice.
        without: parameters after the star that are no settings.
        unnamed: this is what is meant where ``name`` is left out.

    Returns:
        A pydantic model with the parameters' annotations and defaults, described by the docstring.

    Raises:
        TypeError: a parameter after the star has no annotation, or is called ``name`` where a table already is.
    """
    title, doc = constructor.__name__, inspect.getdoc(constructor) or ""
    function: Any = constructor.__init__ if inspect.isclass(constructor) else constructor  # type: ignore[misc]
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in without
    ]
    for parameter in parameters:
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{title}: setting {parameter.name} has no annotation")
        if parameter.name == "name" and name is not None:
            raise TypeError(f'{title}: a setting cannot be called "name" in a table, where it chooses the part')
    # Only the settings are resolved: what stands before the star may be known to type checkers alone.
    holder = SimpleNamespace(__annotations__={p.name: p.annotation for p in parameters})
    hints = get_type_hints(holder, globalns=inspect.unwrap(function).__globals__, include_extras=True)
    helps = argument_help(doc) | argument_help(inspect.getdoc(function) or "")
    for group in groups_of(constructor).values():
        of_group = reduce(or_, (argument_help(inspect.getdoc(kind) or "") for kind in reversed(group.kind.__mro__)))
        helps |= {field.name: of_group[field.name] for field in dataclass_fields(group.kind) if field.name in of_group}

    fields: dict[str, Any] = {} if name is None else {"name": (Literal[name], name if unnamed else ...)}  # type: ignore[valid-type]
    for parameter in parameters:
        default = ... if parameter.default is parameter.empty else parameter.default
        kind = hints[parameter.name]
        for choice in (m for m in getattr(kind, "__metadata__", ()) if isinstance(m, OneOf)):
            kind, default = _section_of(choice, kind, default)
        fields[parameter.name] = (kind, Field(default, description=helps.get(parameter.name)))
    part = create_model(title, __base__=Part, __module__=constructor.__module__, __doc__=doc.split("\n\n")[0], **fields)
    part.constructor = staticmethod(constructor)
    part.chosen_by_name = name is not None
    return part


def _section_of(choice: OneOf, kind: Any, default: Any) -> tuple[Any, Any]:
    """Return the type and the default of a setting that is a choice from a table."""
    section: Any = Annotated[Part, From(choice)]
    if isinstance(default, Mapping):
        default = TypeAdapter(section).validate_python(default)
    optional = NoneType in get_args(get_args(kind)[0])
    return (section | None if optional else section), default


def argument_help(doc: str) -> dict[str, str]:
    """Return what the ``Args:`` lines of a docstring say, by argument.

    Args:
        doc: a docstring without common indentation.
    """
    found = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    if not found:
        return {}
    lines = inspect.cleandoc("\n" + found[1]).split("\n")
    helps: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        start = re.match(r"(\w+(?:, \w+)*): +(.*)", line)
        if start:
            names = start[1].split(", ")
            helps |= dict.fromkeys(names, start[2])
        else:
            helps |= {name: f"{helps[name]} {line.strip()}".strip() for name in names}
    return helps
