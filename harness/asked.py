"""What a pytest command line asks for: a gate, areas of the gates, or nothing of ours."""

from collections.abc import Collection
from dataclasses import dataclass

from harness.checklist import GATES, Checklists

_GATE_NAMES = {f"gate{gate}": gate for gate in GATES}


@dataclass(frozen=True)
class Asked:
    """The gate to judge, or where only areas were named, those areas."""

    gate: int
    areas: tuple[str, ...] = ()


def asked_for(markexpr: str, checklists: Checklists) -> Asked | None:
    """Read pytest's `-m` expression; None where it selects no gate and no area."""
    from _pytest.mark.expression import Expression  # pytest's own parser of -m

    if not markexpr:
        return None
    try:
        expression = Expression.compile(markexpr)
    except SyntaxError:  # pytest itself refuses it, with its own message
        return None

    def selects(marks: Collection[str]) -> bool:
        return expression.evaluate(lambda name, /, **_: name in marks)

    words = set(markexpr.replace("(", " ").replace(")", " ").split())
    for name, gate in sorted(_GATE_NAMES.items(), reverse=True):
        above = {other for other, number in _GATE_NAMES.items() if number >= gate}
        if name in words and (selects(above) or selects(above | checklists.areas)):
            return Asked(gate)
    areas = tuple(a for a in sorted(checklists.areas & words) if selects({a, *_GATE_NAMES}))
    if areas and not words & set(_GATE_NAMES):
        return Asked(max(GATES), areas)
    return None
