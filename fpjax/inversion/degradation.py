"""What was done to a picture before it was written, with parameters that the inversion looks for.

A `Degradation` stands between the generator's picture and the observation. It is a turn about the
picture's centre, a window of it, brought to the picture's size (crop, shift, change of scale), a
symmetric kernel along rows and columns (blur, sharpening), and a map of colours (gain, offset,
saturation). Its ten or so parameters are zero where nothing was done, and are unknowns of the
inversion like alpha: a solver finds all of them at once, and the information about the key has them
profiled out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fpjax.attacks.linear import cubic, rotate
from fpjax.errors import InputError

Array = jax.Array

PARTS = {
    "turn": ("degrees",),
    "window": ("top", "left", "bottom", "right"),
    "kernel": ("tap 1", "tap 2", "tap 3"),
    "colours": ("gain", "offset", "saturation"),
}
"""Parameters of each part."""

_STD = {
    "degrees": 5.0,
    # Of the picture's side.
    "top": 0.06, "left": 0.06, "bottom": 0.06, "right": 0.06,
    "tap 1": 0.2, "tap 2": 0.1, "tap 3": 0.05,
    "gain": 0.3, "offset": 0.3, "saturation": 0.3,
}  # fmt: skip

_LUMA = (0.299, 0.587, 0.114)
_MARGIN = 3
"""Pixels around a picture that a window may reach into: they repeat its edge."""


@dataclasses.dataclass(frozen=True)
class Degradation:
    """A turn, a window, a kernel and a map of colours whose parameters are unknown.

    Attributes:
      parts: which of "turn", "window", "kernel" and "colours" are looked for, in that order of
        application; a turn with a window only, as starts are tried for both.

    Raises:
      InputError: for other parts, or another order.

    >>> degradation = Degradation(("kernel",))
    >>> degradation.names
    ('tap 1', 'tap 2', 'tap 3')
    >>> picture = jnp.zeros((8, 8, 1)).at[4, 4].set(1.0)
    >>> blurred = degradation(picture, jnp.asarray([0.25, 0.0, 0.0]))
    >>> blurred[3:6, 3:6, 0].tolist()
    [[0.0625, 0.125, 0.0625], [0.125, 0.25, 0.125], [0.0625, 0.125, 0.0625]]
    """

    parts: tuple[str, ...] = ("window", "kernel", "colours")

    def __post_init__(self):
        if not self.parts or list(self.parts) != [name for name in PARTS if name in self.parts]:
            raise InputError(
                f"parts {self.parts}: expected some of {', '.join(PARTS)}, in that order"
            )
        if "turn" in self.parts and "window" not in self.parts:
            raise InputError(f"parts {self.parts}: a turn is looked for with a window only")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(name for part in self.parts for name in PARTS[part])

    @property
    def std(self) -> Float[np.ndarray, " parameters"]:
        """Standard deviations of the parameters beforehand; their means are 0."""
        return np.asarray([_STD[name] for name in self.names], np.float32)

    def __call__(
        self,
        image: Float[Array, "height width channels"],
        parameters: Float[Array, " parameters"],
    ) -> Float[Array, "height width channels"]:
        """The degraded picture, neither clipped nor rounded.

        Args:
          image: (H, W, C) in [-1, 1].
          parameters: those of `names`. Turn: degrees, counter-clockwise about the centre; what
            comes from outside is black. (Its kernel's slopes are not the picture's: up to twice as
            steep at 0 degrees.) Window: its edges' distances from the picture's, in sides of the
            picture, downwards and to the right. Kernel: its weights 1, 2 and 3 pixels from its
            middle, the middle has the rest. Colours: gain - 1, offset, saturation - 1.
        """
        given = dict(zip(self.names, parameters, strict=True))
        height, width, channels = image.shape
        highest = jax.lax.Precision.HIGHEST
        if "turn" in self.parts:
            image = rotate(image, given["degrees"])
        rows, columns = (jnp.eye(length, dtype=image.dtype) for length in (height, width))
        if "window" in self.parts:
            rows = _window(height, given["top"], given["bottom"])
            columns = _window(width, given["left"], given["right"])
        if "kernel" in self.parts:
            taps = [given[name] for name in PARTS["kernel"]]
            rows = jnp.matmul(_kernel(height, taps), rows, precision=highest)
            columns = jnp.matmul(_kernel(width, taps), columns, precision=highest)
        if "window" in self.parts or "kernel" in self.parts:
            image = jnp.einsum("ih,hwc->iwc", rows, image, precision=highest)
            image = jnp.einsum("jw,iwc->ijc", columns, image, precision=highest)
        if "colours" in self.parts:
            if channels == 3:
                grey = jnp.einsum(
                    "ijc,c->ij", image, jnp.asarray(_LUMA, image.dtype), precision=highest
                )
                image = image + given["saturation"] * (image - grey[..., None])
            image = (1 + given["gain"]) * image + given["offset"]
        return image

    def words(self, parameters: Float[np.ndarray, " parameters"]) -> str:
        """What the parameters say, for people; empty where they say next to nothing.

        >>> Degradation(("colours",)).words(np.asarray([0.1, 0.1, 0.0]))
        'gain 1.10 and offset 0.10'
        """
        given = dict(zip(self.names, np.asarray(parameters, float).tolist(), strict=True))
        said = []
        if abs(given.get("degrees", 0.0)) >= 0.5:
            said.append(f"a turn by {given['degrees']:.1f} degrees")
        edges = [given.get(name, 0.0) for name in PARTS["window"]]
        if max(abs(edge) for edge in edges) >= 0.005:
            top, left, bottom, right = edges
            window = [1 + bottom - top, 1 + right - left, (top + bottom) / 2, (left + right) / 2]
            window = [round(value, 3) + 0.0 for value in window]  # no negative zero
            said.append(
                "a window of {:.2f} x {:.2f} of its sides, {:+.3f} down and {:+.3f} right".format(
                    *window
                )
            )
        taps = [given.get(name, 0.0) for name in PARTS["kernel"]]
        if max(abs(tap) for tap in taps) >= 0.01:
            middle = 1 - 2 * sum(taps)
            said.append(
                f"a {'blur' if sum(taps) > 0 else 'sharpening'} with weights "
                f"{middle:.2f}, {taps[0]:.2f}, {taps[1]:.2f}"
            )
        for name, neutral in (("gain", 1.0), ("offset", 0.0), ("saturation", 1.0)):
            if abs(given.get(name, 0.0)) >= 0.01:
                said.append(f"{name} {neutral + given[name]:.2f}")
        return " and ".join(said)


def _window(length: int, start: Array, stop: Array) -> Array:
    """(length, length): samples of [start, 1 + stop] of an axis, by cubic convolution."""
    step = 1 + stop - start
    centre = (jnp.arange(length, dtype=step.dtype) + 0.5) * step + start * length
    place = jnp.clip(centre - 0.5, 1 - _MARGIN, length + _MARGIN - 2)
    pixel = jnp.arange(-_MARGIN, length + _MARGIN, dtype=step.dtype)
    weights = cubic(pixel[None, :] - place[:, None])
    inner = weights[:, _MARGIN:-_MARGIN]
    first = weights[:, :_MARGIN].sum(1)
    last = weights[:, -_MARGIN:].sum(1)
    return inner.at[:, 0].add(first).at[:, -1].add(last)


def _kernel(length: int, taps: list[Array]) -> Array:
    """(length, length): a symmetric kernel, edges mirrored without repetition."""
    matrix = jnp.eye(length, dtype=taps[0].dtype)
    place = np.arange(length)
    period = max(1, 2 * (length - 1))
    for distance, tap in enumerate(taps, 1):
        both = np.zeros((length, length), np.float32)
        for side in (place - distance, place + distance):
            folded = np.mod(side, period)
            np.add.at(both, (place, np.minimum(folded, period - folded)), 1)
        matrix = matrix + tap * jnp.asarray(both - 2 * np.eye(length, dtype=np.float32))
    return matrix
