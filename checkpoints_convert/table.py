"""The engine of every mapping: rename tables as data, and a check that nothing is left over.

A mapping is a list of `Rule` (source name pattern, target path, transform name) with a list of
`Ignorable` (pattern, reason) for tensors that no model of ours needs. `convert` matches one against
a checkpoint and a target parameter tree. It is strict both ways: each source tensor takes part in
exactly one rule or is ignorable, each target parameter is filled exactly once, and shapes agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.printable import name
from fpjax.errors import FpjaxError
from fpjax.models.checkpoint import flatten, unflatten

Transform = Callable[[np.ndarray], Any]

SHOWN = 10  # problems in one message; the error has all
MAX_TENSORS = 50_000  # of one network; the largest known has 2,000


class ConversionError(FpjaxError, ValueError):
    """A checkpoint does not fit the mapping; `problems` holds one line for each fault."""

    def __init__(self, message: str, problems: Sequence[str] = ()):
        super().__init__(message)
        self.problems = tuple(problems)


class Rule(NamedTuple):
    r"""One line of a rename table.

    `pattern` is a regular expression that must match a whole source name. `target` is the
    parameter's path, parts separated by "/", and may refer to groups of the pattern (`\1`,
    `\g<name>`), whose dots become separators too. A tuple of targets goes with a transform that
    returns that many arrays.
    """

    pattern: str
    target: str | tuple[str, ...]
    transform: str = "identity"


class Ignorable(NamedTuple):
    """Source tensors that are left out on purpose: a whole-name pattern, and why."""

    pattern: str
    reason: str


class Step(NamedTuple):
    """One filled parameter: where it came from, where it goes, and how."""

    source: str
    target: str
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    transform: str


def _squeeze(x: np.ndarray) -> np.ndarray:
    return x.reshape([n for n in x.shape if n != 1])


def _conv1x1_to_linear(x: np.ndarray) -> np.ndarray:
    if any(n != 1 for n in x.shape[2:]):
        raise ValueError(f"a 1x1 convolution was expected, the kernel is {x.shape[2:]}")
    return x.reshape(x.shape[:2]).T


TRANSFORMS: dict[str, Transform] = {
    "identity": lambda x: x,
    "oihw_to_hwio": lambda x: np.transpose(x, (2, 3, 1, 0)),
    "transpose": lambda x: np.transpose(x, (1, 0)),
    "squeeze": _squeeze,
    "conv1x1_to_linear": _conv1x1_to_linear,
}
"""Transforms every table may name. A mapping passes its own beside these to `convert`."""


@dataclass(frozen=True)
class Plan:
    """What a conversion will do; nothing has been read from the file yet but names and shapes."""

    steps: tuple[Step, ...]
    ignored: tuple[tuple[str, str], ...]
    _tensors: Mapping[str, Any] = field(repr=False)
    _transforms: Mapping[str, Transform] = field(repr=False)

    def arrays(self) -> Iterator[tuple[Step, np.ndarray]]:
        """Each step with its transformed array, in the source's dtype, one tensor at a time.

        An array may be a view of the file's memory map: use it before the next one, or copy it.
        """
        targets: dict[str, list[Step]] = {}
        for step in self.steps:
            targets.setdefault(step.source, []).append(step)
        for source, steps in targets.items():
            value = as_numpy(self._tensors[source])
            parts = _parts(self._transforms[steps[0].transform](value))
            yield from zip(steps, parts, strict=True)

    def apply(self, dtype: Any = np.float32) -> dict[str, Any]:
        """Read, transform and cast every tensor, and return the nested parameter tree.

        `dtype` is that of the parameters; None keeps each tensor's own.
        """
        return unflatten(
            {
                # Contiguous and owned, so that the checkpoint's memory can be released.
                step.target: np.array(part, dtype=dtype or part.dtype, order="C")
                for step, part in self.arrays()
            }
        )

    def source(self, name: str) -> Any:
        """The source tensor of this name, unread."""
        return self._tensors[name]

    def transformed(self, step: Step, value: np.ndarray) -> np.ndarray:
        """What `step` makes of another value of its source tensor."""
        parts = _parts(self._transforms[step.transform](value))
        same = [other.target for other in self.steps if other.source == step.source]
        return parts[same.index(step.target)]

    def part(self, prefix: str) -> Plan:
        """The steps whose targets are below `prefix`, which is removed from them."""
        steps = [step for step in self.steps if step.target.startswith(prefix)]
        moved = tuple(step._replace(target=step.target.removeprefix(prefix)) for step in steps)
        return replace(self, steps=moved)

    def __str__(self) -> str:
        """One line for each parameter and each ignored tensor."""
        lines = [
            f"{s.source} {s.source_shape} -> {s.target} {s.shape} [{s.transform}]"
            for s in self.steps
        ]
        return "\n".join(lines + [f"{name} ignored: {reason}" for name, reason in self.ignored])


@dataclass(frozen=True)
class Conversion:
    """A checkpoint understood: the model it is, its config, the plan, and what was assumed.

    `architecture` names the fpjax model module ("autoencoder", "unet", ...). `notes` are sentences
    for the person who runs the conversion: what was inferred, preferred or could not be known.
    """

    architecture: str
    config: Any
    plan: Plan
    notes: tuple[str, ...] = ()


def convert(
    tensors: Mapping[str, Any],
    rules: Iterable[Rule],
    ignorable: Iterable[Ignorable],
    target_shapes: Mapping[str, Any],
    transforms: Mapping[str, Transform] | None = None,
) -> Plan:
    r"""Match a checkpoint with a rename table, and refuse anything left over on either side.

    Args:
      tensors: source name -> array, or anything with `.shape` and `.numpy()`.
      rules: the table; exactly one rule (or ignorable pattern) may match a source name.
      ignorable: patterns of tensors that may be left out, with the reason.
      target_shapes: the parameter tree, nested or with "/"-joined paths, whose leaves are shapes
        or have `.shape` (as `jax.eval_shape` of an `init` gives).
      transforms: further transforms by name; a name of `TRANSFORMS` cannot be redefined.

    Returns:
      The `Plan`, whose `.apply()` reads the tensors and returns the nested parameters.

    Raises:
      ConversionError: listing every unmapped, doubly mapped or misshapen source tensor and every
        unfilled parameter.

    >>> rules = [Rule(r"fc(\d)\.weight", r"layer/\1/weight", "transpose")]
    >>> plan = convert({"fc0.weight": np.ones((2, 3))}, rules, [], {"layer/0/weight": (3, 2)})
    >>> print(plan)
    fc0.weight (2, 3) -> layer/0/weight (3, 2) [transpose]
    >>> plan.apply()["layer"]["0"]["weight"].shape
    (3, 2)
    """
    if len(tensors) > MAX_TENSORS:
        raise ConversionError(
            f"{len(tensors):,} tensors: no network that fpjax has is made of more than "
            f"{MAX_TENSORS:,}"
        )
    rules = [Rule(*rule) for rule in rules]
    available = _all_transforms(rules, transforms or {})
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    skip = [(re.compile(pattern), reason) for pattern, reason in ignorable]
    expected = {path: _shape(leaf) for path, leaf in flatten(target_shapes).items()}

    steps: list[Step] = []
    ignored: list[tuple[str, str]] = []
    problems: list[str] = []
    filled: dict[str, str] = {}
    for source in tensors:
        matches = [(m, rule) for regex, rule in compiled if (m := regex.fullmatch(source))]
        reasons = [reason for regex, reason in skip if regex.fullmatch(source)]
        if not matches and reasons:
            ignored.append((source, reasons[0]))
            continue
        shape = _shape(tensors[source])
        if not matches:
            problems.append(f"no rule for source tensor {name(source)} {shape}")
            continue
        if not _is_float(tensors[source]):
            dtype = tensors[source].dtype
            problems.append(f"source tensor {name(source)} {shape} is of {dtype}, expected floats")
        if len(matches) > 1 or reasons:
            which = [rule.pattern for _, rule in matches] + ["(ignorable)"] * bool(reasons)
            problems.append(
                f"source tensor {name(source)} matches several rules: {', '.join(which)}"
            )
            continue
        match, rule = matches[0]
        templates = (rule.target,) if isinstance(rule.target, str) else rule.target
        targets = [match.expand(template).replace(".", "/") for template in templates]
        try:
            given = [part.shape for part in _parts(available[rule.transform](_dummy(shape)))]
        except (ValueError, IndexError, ArithmeticError) as error:
            problems.append(f"{name(source)} {shape} does not suit {rule.transform}: {error}")
            filled.update((target, source) for target in targets)
            continue
        if len(given) != len(targets):
            problems.append(
                f"{rule.transform} gives {len(given)} arrays for {name(source)}, "
                f"the rule names {len(targets)} targets"
            )
            continue
        for target, part in zip(targets, given, strict=True):
            if target in filled:
                both = f"{name(filled[target])} and {name(source)}"
                problems.append(f"{name(target)} is filled by both {both}")
            elif target not in expected:
                problems.append(
                    f"{name(source)} {shape} maps to {name(target)}, which this model lacks"
                )
            elif part != expected[target]:
                problems.append(
                    f"{name(source)} {shape} gives {target} {part}, the model needs "
                    f"{expected[target]}"
                )
            else:
                steps.append(Step(source, target, shape, part, rule.transform))
            filled.setdefault(target, source)
    problems += [
        f"nothing fills parameter {target} {shape}"
        for target, shape in expected.items()
        if target not in filled
    ]
    if problems:
        raise ConversionError(_message(len(tensors), len(expected), problems), problems)
    return Plan(tuple(steps), tuple(ignored), tensors, available)


def conv(source: str, target: str, *, bias: bool = True) -> list[Rule]:
    r"""Rules of a 2-D convolution: weight OIHW -> HWIO, and its bias.

    >>> conv(r"conv(\d)", r"conv/\1", bias=False)
    [Rule(pattern='conv(\\d)\\.weight', target='conv/\\1/weight', transform='oihw_to_hwio')]
    """
    return _layer(source, target, "oihw_to_hwio", bias)


def linear(source: str, target: str, *, bias: bool = True) -> list[Rule]:
    r"""Rules of a linear layer: weight (out, in) -> (in, out), and its bias.

    >>> [rule.target for rule in linear("fc", "fc")]
    ['fc/weight', 'fc/bias']
    """
    return _layer(source, target, "transpose", bias)


def conv1x1(source: str, target: str, *, bias: bool = True) -> list[Rule]:
    r"""Rules of a 1x1 convolution (1-D or 2-D) that becomes a linear layer.

    >>> conv1x1("q", "q")[0].transform
    'conv1x1_to_linear'
    """
    return _layer(source, target, "conv1x1_to_linear", bias)


def norm(source: str, target: str) -> list[Rule]:
    r"""Rules of a normalisation layer: weight and bias as they are.

    >>> [rule.target for rule in norm("norm", "norm")]
    ['norm/weight', 'norm/bias']
    """
    return _layer(source, target, "identity", True)


def under(rules: Iterable[Rule], source: str, target: str) -> list[Rule]:
    r"""The same rules with a prefix (a pattern) on the sources, and a path before the targets.

    >>> under([Rule("bias", "bias")], r"model\.", "generator/")
    [Rule(pattern='model\\.(?:bias)', target='generator/bias', transform='identity')]
    """
    moved = []
    for pattern, targets, transform in rules:
        several = isinstance(targets, tuple)
        paths = tuple(target + path for path in (targets if several else (targets,)))
        moved.append(Rule(f"{source}(?:{pattern})", paths if several else paths[0], transform))
    return moved


def as_numpy(tensor: Any) -> np.ndarray:
    """A numpy array from an array or from anything with `.numpy()`.

    >>> as_numpy([1.0, 2.0]).shape
    (2,)
    """
    return np.asarray(tensor.numpy() if callable(getattr(tensor, "numpy", None)) else tensor)


def real_numbers(tensor: Any, what: str) -> np.ndarray:
    """A small tensor's values in float64, for what a conversion computes with.

    Raises:
      ConversionError: if they are no real floating-point numbers.

    >>> real_numbers(np.ones(2, np.float16), "betas")
    array([1., 1.])
    """
    if not _is_float(tensor):
        raise ConversionError(f"{what} is of {tensor.dtype}, expected floats")
    return as_numpy(tensor).astype(np.float64)


def select(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The tensors whose names start with `prefix`, with the prefix removed.

    >>> select({"model.a": 1, "ema.a": 2}, "model.")
    {'a': 1}
    """
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _layer(source: str, target: str, transform: str, bias: bool) -> list[Rule]:
    rules = [Rule(rf"{source}\.weight", f"{target}/weight", transform)]
    return rules + [Rule(rf"{source}\.bias", f"{target}/bias")] * bias


def _is_float(tensor: Any) -> bool:
    # bfloat16 and its like have no kind of their own in NumPy.
    return getattr(getattr(tensor, "dtype", None), "kind", "f") not in "biucSUOmM"


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in getattr(leaf, "shape", leaf))


def _dummy(shape: tuple[int, ...]) -> np.ndarray:
    # Zero strides: the shape of a large tensor without its memory.
    return np.broadcast_to(np.float32(0), shape)


def _parts(value: Any) -> tuple[np.ndarray, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _all_transforms(rules: Sequence[Rule], extra: Mapping[str, Transform]) -> dict[str, Transform]:
    if redefined := TRANSFORMS.keys() & extra.keys():
        raise ValueError(f"transforms {sorted(redefined)} are built in and cannot be redefined")
    available = {**TRANSFORMS, **extra}
    if unknown := {rule.transform for rule in rules} - available.keys():
        raise ValueError(f"rules name unknown transforms {sorted(unknown)}; have {list(available)}")
    return available


def _message(num_sources: int, num_targets: int, problems: Sequence[str]) -> str:
    shown = list(problems[:SHOWN])
    if more := len(problems) - len(shown):
        shown.append(f"... and {more} more (see the error's `problems`)")
    return (
        f"the checkpoint ({num_sources} tensors) does not fit the model ({num_targets} "
        f"parameters), {len(problems)} problems; is it the architecture you named?\n  "
        + "\n  ".join(shown)
    )
