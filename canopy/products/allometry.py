"""Formulas of biomass from heights: the user's own, parsed and never evaluated as code.

A formula is arithmetic of numbers and of the figures of a cell: `mean` and `top` height in metres, `cover` above 2 m as
a share. It may add, subtract, multiply, divide, raise to a power, and take exp, log and sqrt.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canopy.errors import ProductError

Figures = Mapping[str, NDArray[np.float64]]

FIGURES = ("mean", "top", "cover")
"""Figures of a cell that a formula may use."""
_FORESTS = {
    "mean": np.array([0.0, 1.0, 5.0, 10.0, 20.0, 40.0]),
    "top": np.array([0.0, 3.0, 10.0, 20.0, 35.0, 60.0]),
    "cover": np.array([0.0, 0.1, 0.3, 0.6, 0.9, 1.0]),
}
"""Figures of cells from bare ground to tall forest: a formula without value in any of them has none of use."""
_MAX_CHARACTERS, _MAX_NODES = 300, 100
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: np.power,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt}


@dataclass(frozen=True)
class Formula:
    """A formula that was checked."""

    text: str
    """Formula as the user wrote it."""
    tree: ast.expr
    """Its expression."""

    def __call__(self, figures: Figures) -> NDArray[np.float64]:
        """Return the biomass of cells: megagrams a hectare, never below 0, NaN where the formula has no value."""
        with np.errstate(all="ignore"):
            values = np.asarray(_value(self.tree, figures), dtype=np.float64)
        shape = np.shape(figures[FIGURES[0]])
        values = np.broadcast_to(values, shape).copy()
        values[~np.isfinite(values) | np.isnan(figures[FIGURES[0]])] = np.nan
        return np.maximum(values, 0)


def parse_formula(text: str) -> Formula:
    """Check a formula.

    Raises:
        ProductError: It is no arithmetic of the figures of a cell.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ProductError(f"the allometry has {len(text)} characters: at most {_MAX_CHARACTERS} expected")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refusal(text, "cannot be read") from error
    nodes = list(ast.walk(tree))
    if len(nodes) > _MAX_NODES:
        raise _refusal(text, f"has {len(nodes)} parts, more than {_MAX_NODES}")
    _check(tree, text)
    if not any(isinstance(node, ast.Name) and node.id in FIGURES for node in nodes):
        raise _refusal(text, "uses no figure of a cell")
    formula = Formula(text, tree)
    if np.isnan(formula(_FORESTS)).all():
        raise _refusal(text, "has no finite value in any forest")
    return formula


def _refusal(text: str, reason: str) -> ProductError:
    return ProductError(
        f"the allometry {text[:80]!r} {reason}: arithmetic of {', '.join(FIGURES)} and numbers expected, such as "
        "0.8 * mean ** 1.6, with exp, log and sqrt"
    )


def _check(node: ast.AST, text: str) -> None:
    """Refuse whatever is not in the grammar of the module."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _check(node.left, text)
        _check(node.right, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _check(node.operand, text)
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else "a method"
        if name not in _FUNCTIONS or len(node.args) != 1 or node.keywords:
            raise _refusal(text, f"calls {name}")
        _check(node.args[0], text)
    elif isinstance(node, ast.Name):
        if node.id not in FIGURES:
            raise _refusal(text, f"names {node.id!r}")
    elif not (isinstance(node, ast.Constant) and _is_number(node.value)):
        raise _refusal(text, "has a part that is no arithmetic")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _value(node: ast.expr, figures: Figures) -> Any:
    """Return the value of a checked expression, in floating point: whole numbers could grow without bound."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, figures), _value(node.right, figures))
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, figures)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _FUNCTIONS[node.func.id](_value(node.args[0], figures))
    if isinstance(node, ast.Name):
        return figures[node.id]
    assert isinstance(node, ast.Constant)
    return np.float64(float(node.value))  # type: ignore[arg-type]
