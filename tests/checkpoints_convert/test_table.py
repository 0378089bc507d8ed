"""The rename engine: strict on both sides, exact in its transforms, lazy about data."""

import numpy as np
import pytest

from checkpoints_convert.table import (
    ConversionError,
    Ignorable,
    Rule,
    conv,
    conv1x1,
    convert,
    linear,
    norm,
)


class Lazy:
    """Stands for a reader's tensor: shape known, data counted when read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, 0

    def numpy(self):
        self.reads += 1
        return self.array


def test_each_transform_places_every_element():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3, 2, 5)).astype(np.float32)
    fc = rng.standard_normal((4, 3)).astype(np.float32)
    tensors = {
        "c.weight": w,
        "f.weight": fc,
        "p.weight": fc[:, :, None],
        "s": w[None, :, :1, None],
        "n.weight": fc[0],
        "n.bias": fc[1],
    }
    rules = [
        *conv("c", "conv", bias=False),
        *linear("f", "fc", bias=False),
        *conv1x1("p", "point", bias=False),
        *norm("n", "norm"),
        Rule("s", "squeezed", "squeeze"),
    ]
    shapes = {
        "conv": {"weight": (2, 5, 3, 4)},
        "fc": {"weight": (3, 4)},
        "point": {"weight": (3, 4)},
        "norm": {"weight": (3,), "bias": (3,)},
        "squeezed": (4, 2, 5),
    }
    params = convert(tensors, rules, [], shapes).apply()
    for o, i, y, x in np.ndindex(w.shape):
        assert params["conv"]["weight"][y, x, i, o] == w[o, i, y, x]
    np.testing.assert_array_equal(params["fc"]["weight"], fc.T)
    np.testing.assert_array_equal(params["point"]["weight"], fc.T)
    np.testing.assert_array_equal(params["squeezed"], w[:, 0])
    np.testing.assert_array_equal(params["norm"]["bias"], fc[1])


def test_one_source_can_fill_several_targets():
    plan = convert(
        {"qkv": np.arange(6.0)},
        [Rule("qkv", ("q", "k", "v"), "split3")],
        [],
        {"q": (2,), "k": (2,), "v": (2,)},
        transforms={"split3": lambda x: np.split(x, 3)},
    )
    params = plan.apply()
    assert [list(params[n]) for n in "qkv"] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("tensors", "shapes", "problem"),
    [
        ({"a": (2,), "b": (2,)}, {"a": (2,)}, "no rule for source tensor b"),
        ({"a": (2,)}, {"a": (2,), "b": (2,)}, "nothing fills parameter b"),
        ({"a": (3,)}, {"a": (2,)}, r"a \(3,\) gives a \(3,\), the model needs \(2,\)"),
        ({"a": (2,), "twice": (2,)}, {"a": (2,)}, "filled by both a and twice"),
        ({"a": (2,), "ambiguous": (2,)}, {"a": (2,)}, "matches several rules"),
        ({"a": (2,), "extra": (2,)}, {"a": (2,)}, "which this model lacks"),
        ({"c": (2,)}, {"c": (2,)}, "does not suit oihw_to_hwio"),
        ({"both": (2,)}, {"both": (2,)}, "matches several rules"),
    ],
)
def test_every_misfit_is_refused_and_named(tensors, shapes, problem):
    rules = [
        Rule("a", "a"),
        Rule("twice", "a"),
        Rule("ambig.*", "a"),
        Rule("ambiguous", "a"),
        Rule("extra", "extra"),
        Rule("c", "c", "oihw_to_hwio"),
        Rule("both", "both"),
    ]
    tensors = {name: np.zeros(shape) for name, shape in tensors.items()}
    with pytest.raises(ConversionError, match=problem):
        convert(tensors, rules, [Ignorable("both", "x")], shapes)


def test_error_keeps_every_problem_when_the_message_is_cut():
    with pytest.raises(ConversionError, match="and 30 more") as error:
        convert({}, [], [], {str(i): (1,) for i in range(40)})
    assert len(error.value.problems) == 40


def test_ignored_tensors_are_reported_with_the_reason():
    plan = convert({"step": np.zeros(())}, [], [Ignorable("step", "a counter")], {})
    assert plan.ignored == (("step", "a counter"),)
    assert "a counter" in str(plan)


def test_data_is_read_once_and_only_on_apply():
    lazy, skipped = Lazy(np.ones((2, 3), np.float16)), Lazy(np.ones(1))
    rules = [Rule("a", ("x", "y"), "halves")]
    plan = convert(
        {"a": lazy, "b": skipped},
        rules,
        [Ignorable("b", "unused")],
        {"x": (1, 3), "y": (1, 3)},
        transforms={"halves": lambda x: (x[:1], x[1:])},
    )
    assert lazy.reads == 0
    params = plan.apply()
    assert (lazy.reads, skipped.reads) == (1, 0)
    assert params["x"].dtype == np.float32 and params["x"].flags.owndata
    assert plan.apply(dtype=None)["x"].dtype == np.float16


def test_a_table_with_an_unknown_or_redefined_transform_is_a_programming_error():
    with pytest.raises(ValueError, match="unknown transforms"):
        convert({}, [Rule("a", "a", "rotate")], [], {})
    with pytest.raises(ValueError, match="cannot be redefined"):
        convert({}, [], [], {}, transforms={"identity": lambda x: -x})
