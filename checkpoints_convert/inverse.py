"""Rename tables read backwards: parameters under a publisher's names, in its shapes.

A table of `table.Rule` is a bijection between names, so that it says both ways which tensor is
which. Each transform of shapes needs its inverse beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from checkpoints_convert.table import Ignorable, Rule, Transform, convert
from fpjax.models.checkpoint import flatten

INVERSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "oihw_to_hwio": lambda x: np.transpose(x, (3, 2, 0, 1)),
    "transpose": lambda x: np.transpose(x, (1, 0)),
    "conv1x1_to_linear": lambda x: x.T[:, :, None, None],
}
"""Inverses of `table.TRANSFORMS`, those that have one."""

_GROUP = r"\((?!\?)[^()]*\)"
_PIECE = re.compile(rf"(?P<group>{_GROUP})|\\(?P<escaped>\W)|(?P<plain>[\w-])")


def published(
    params: Mapping[str, Any],
    rules: Iterable[Rule],
    transforms: Mapping[str, Transform],
    inverses: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    ignorable: Iterable[Ignorable] = (),
) -> dict[str, np.ndarray]:
    r"""A parameter tree under the names, and in the shapes, that a table converts from.

    The result is converted forth again and compared: it is bit for bit what `convert` reads.

    Args:
      params: the tree.
      rules: the publisher's table, of rules with one target each.
      transforms: the publisher's transforms, as for `convert`.
      inverses: their inverses, beside `INVERSES`.
      ignorable: as for `convert`.

    Returns:
      Contiguous arrays by source name, in the parameters' dtype.

    Raises:
      ValueError: for a table that cannot be read backwards.

    >>> rules = [Rule(r"fc(\d)\.weight", r"layer/\1/weight", "transpose")]
    >>> made = published({"layer": {"0": {"weight": np.ones((3, 2))}}}, rules, {}, {})
    >>> {name: array.shape for name, array in made.items()}
    {'fc0.weight': (2, 3)}
    """
    rules, inverses = list(rules), {**INVERSES, **inverses}
    backwards = [(*_backwards(rule), rule) for rule in rules]
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in leaves.items():
        matches = [
            (match.expand(source), rule)
            for regex, source, rule in backwards
            if (match := regex.fullmatch(path))
        ]
        if len(matches) != 1:
            raise ValueError(f"{len(matches)} rules fill {path}: expected one")
        source, rule = matches[0]
        if source in tensors:
            raise ValueError(f"two parameters come from {source}")
        if rule.transform not in inverses:
            raise ValueError(f"transform {rule.transform} of {source} has no inverse")
        # (np.ascontiguousarray would turn scalars into vectors.)
        tensors[source] = np.array(inverses[rule.transform](leaf), order="C")
    plan = convert(tensors, rules, ignorable, leaves, transforms)
    for step, part in plan.arrays():
        if np.array(part, order="C").tobytes() != leaves[step.target].tobytes():
            raise ValueError(f"transform {step.transform} of {step.source} is no bijection")
    return tensors


def _backwards(rule: Rule) -> tuple[re.Pattern[str], str]:
    """A pattern of the rule's targets, and a template of their sources."""
    if not isinstance(rule.target, str):
        raise ValueError(f"{rule.pattern} has several targets: not to be read backwards")
    groups: list[str] = []
    source, position = "", 0
    while position < len(rule.pattern):
        piece = _PIECE.match(rule.pattern, position)
        if piece is None:
            raise ValueError(f"{rule.pattern}: names and groups alone can be read backwards")
        if piece["group"]:
            groups.append(piece["group"])
            source += rf"\g<g{len(groups)}>"
        else:
            source += piece["escaped"] or piece["plain"]
        position = piece.end()
    target, used = "", []
    for part in re.split(r"(\\\d)", rule.target):
        if re.fullmatch(r"\\\d", part):
            used.append(int(part[1:]))
            target += f"(?P<g{used[-1]}>{groups[used[-1] - 1][1:-1]})"
        else:
            target += re.escape(part)
    if sorted(used) != list(range(1, len(groups) + 1)):
        raise ValueError(f"{rule.target} does not name each group of {rule.pattern} once")
    return re.compile(target), source
