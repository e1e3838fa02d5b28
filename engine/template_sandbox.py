"""Jinja for templates from strangers: its sandbox, with bounds on steps, calls and text as well."""

import json
from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_TEXT = 4 << 20
MAX_STEPS = 100_000
MAX_SEPARATOR = 16

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse",
    "round", "safe", "select", "selectattr", "sort", "title", "trim", "unique", "upper",
)  # fmt: skip
_FORBIDDEN_METHODS = frozenset(
    (
        "center",
        "encode",
        "expandtabs",
        "format",
        "format_map",
        "ljust",
        "rjust",
        "translate",
        "zfill",
    )
)
_SCALARS = (str, int, float, bool, type(None), Undefined)


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise SecurityError(f"the template makes a text of more than {MAX_TEXT} characters")
    return text


def _scalar(value: Any) -> Any:
    if not isinstance(value, _SCALARS):
        raise SecurityError(f"the template writes out a {type(value).__name__}; use tojson")
    return value


def _string(value: Any) -> str:
    return _bounded(str(_scalar(value)))


def _join(values: Iterable[Any], separator: str = "") -> str:
    pieces: list[str] = []
    size = 0
    for value in values:
        pieces.append(_string(value))
        size += len(pieces[-1]) + len(separator)
        if size > MAX_TEXT:
            raise SecurityError(f"the template joins more than {MAX_TEXT} characters")
    return separator.join(pieces)


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    text = _string(text)
    if (text.count(old) if old else len(text) + 1) * len(new) > MAX_TEXT:
        raise SecurityError(f"the template replaces into more than {MAX_TEXT} characters")
    return text.replace(old, new, -1 if count is None else count)


def _short(text: Any) -> str:
    """A separator or one level of indentation, which JSON repeats many times."""
    if not isinstance(text, str) or len(text) > MAX_SEPARATOR:
        raise SecurityError(f"tojson takes separators of at most {MAX_SEPARATOR} characters")
    return text


def _indent(indent: Any) -> int | str | None:
    if indent is None or (isinstance(indent, int) and indent <= MAX_SEPARATOR):
        return indent
    return _short(indent)


class _Namespace(Namespace):
    """Jinja's namespace, less the names by which Python itself would ask an object."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *more = args
        Namespace.__init__(self, *more, **attributes)
        for name in dict(*more, **attributes):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {str(name)[:40]!r}")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's own words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it without ClassVar)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end: at most MAX_STEPS loop turns and calls a rendering.

    `start` resets the count; one rendering at a time.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            finalize=_scalar,
            optimized=False,
        )
        self.filters = {name: self.filters[name] for name in _FILTERS} | {
            "join": _join,
            "replace": _replace,
            "string": _string,
            "tojson": self._tojson,
            "counted": self._counted,
            "concatenated": _join,
            "bounded": _bounded,
        }
        self.globals = {name: self.globals[name] for name in ("range", "dict")} | {
            "namespace": _Namespace
        }
        self._steps = 0

    def start(self) -> None:
        """Begin a rendering: the budget is whole again."""
        self._steps = 0

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            raise SecurityError(f"the template takes more than {MAX_STEPS} steps")

    def _counted(self, values: Iterable[Any]) -> list[Any]:
        items = []
        for value in values:
            self._step()
            items.append(value)
        return items

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """The filter of `transformers`, which escapes nothing for HTML."""
        encoder = json.JSONEncoder(
            ensure_ascii=bool(ensure_ascii),
            indent=_indent(indent),
            separators=separators and (_short(separators[0]), _short(separators[1])),
            sort_keys=bool(sort_keys),
        )
        return _join(self._counted(encoder.iterencode(value)))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _with_bounds(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Jinja's rule, less the string methods that can make endless text."""
        return attr not in _FORBIDDEN_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call within the budget; str.join and str.replace by their bounded forms."""
        __self._step()
        owner, method = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and method == "join":
            return _join(args[0], owner)
        if isinstance(owner, str) and method == "replace":
            return _replace(owner, *args)
        result = super().call(__context, __obj, *args, **kwargs)
        return _bounded(result) if isinstance(result, str) else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on numbers; of text only `+`."""
        self._step()
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator != "+" and not numbers):
            raise SecurityError(f"the template uses {operator} on {type(left).__name__}")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, list | tuple):
            self._step(len(result))
        return _bounded(result) if isinstance(result, str) else result


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _with_bounds(template: nodes.Template) -> nodes.Template:
    """Count every loop turn, and bound every text built by `~` or by a block assignment."""
    for loop in template.find_all(nodes.For):
        loop.iter = _filter(loop.iter, "counted")
    for block in template.find_all(nodes.AssignBlock):
        block.filter = _filter(block.filter, "bounded")
    _rewrite_concats(template)
    return template


def _rewrite_concats(node: nodes.Node) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, name, [_rewritten(item) for item in value])
        else:
            setattr(node, name, _rewritten(value))


def _rewritten(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _rewrite_concats(value)
    if isinstance(value, nodes.Concat):
        pieces = nodes.List(value.nodes, lineno=value.lineno)
        return _filter(pieces, "concatenated").set_lineno(value.lineno)
    return value
