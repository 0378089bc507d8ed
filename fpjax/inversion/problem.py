"""The inversion problem: which latent and key explain an image. Solvers are elsewhere.

A problem is composed of a scheme (how unknowns become an image), an observation (how far an image
is from a file), a prior (what is assumed beforehand), and how symbols are kept near their levels.
The unknowns are one vector: alpha (K - L coordinates along U), then the parameters of a degradation
where one is looked for, then the symbols (L along V). A problem is a pytree: all its arrays are
arguments of the programs that take it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fpjax.errors import InputError
from fpjax.fingerprint.keys import level_range
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.degradation import Degradation
from fpjax.inversion.observation import Observation, Rounded8Bit, leaky_clip
from fpjax.inversion.prior import BoundsPrior, GaussianPrior, Prior
from fpjax.models.generator import static
from fpjax.precision import full_precision
from fpjax.programs import droppable, program

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is minimised: half the squared residual of the observation, plus the prior's penalty.

    Attributes:
      scheme: generator, directions, strength and levels.
      observation: how the generator's output became the file; by default `Rounded8Bit`. With
        `PerImage` each image has its own.
      prior: by default `GaussianPrior`.
      symbols: "relaxed" lets symbols be real numbers, bounded to one spacing beyond the two levels;
        "sigmoid" writes them as a sigmoid of the unknown, as published.
      degradation: what was done to the picture before the observation, with parameters that are
        unknowns too, or None for nothing.
      average_rows: (K, F) derivatives of low-passed pixels by the unknowns, on average over natural
        images, or None; `prepared` takes them from the scheme's calibration.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> problem = Problem(scheme, fpjax.Gaussian(0.05))
    >>> problem.num_unknowns, problem.image(jnp.zeros(16)).shape
    (16, (8, 8, 1))
    """

    scheme: Scheme
    observation: Observation = dataclasses.field(default_factory=Rounded8Bit)
    prior: Prior = dataclasses.field(default_factory=GaussianPrior)
    symbols: Literal["relaxed", "sigmoid"] = static(default="relaxed")
    degradation: Degradation | None = static(default=None)
    average_rows: Array | np.ndarray | None = None

    def __post_init__(self):
        if self.symbols not in ("relaxed", "sigmoid"):
            raise InputError(f"symbols {self.symbols!r}: choose 'relaxed' or 'sigmoid'")

    @classmethod
    def paper(cls, scheme: Scheme, penalty_weight: float = 0.1) -> Problem:
        """The published StyleGAN2 protocol: LPIPS-VGG16, bounds penalty, sigmoid.

        The weights of LPIPS are read when the problem is solved.
        """
        from fpjax.inversion.perceptual_distance import LPIPSDistance

        return cls(scheme, LPIPSDistance(), BoundsPrior(penalty_weight), symbols="sigmoid")

    @classmethod
    def paper_ldm(cls, scheme: Scheme) -> Problem:
        """The published protocol for latent diffusion: as `paper`, with penalty weight 0.005.

        Its latents are drawn by DDIM with 50 steps and eta 1, which is what `sample_latents` of a
        generator with a diffusion prior does by default; its bases are in
        `fpjax.fingerprint.tied_pca`.
        """
        return cls.paper(scheme, penalty_weight=0.005)

    @property
    def num_unknowns(self) -> int:
        """Coordinates of alpha, parameters of the degradation and symbols together, K."""
        return self.num_nuisances + self.scheme.num_symbols

    @property
    def num_nuisances(self) -> int:
        """Unknowns before the symbols: alpha, and the parameters of the degradation."""
        extra = 0 if self.degradation is None else len(self.degradation.names)
        return len(self.scheme.basis) - self.scheme.num_symbols + extra

    def prepared(self) -> Problem:
        """The problem as programs take it: without calibration, with all its weights loaded."""
        loaded = getattr(self.observation, "loaded", None)
        observation = self.observation if loaded is None else loaded()
        calibration, scheme = self.scheme.calibration, self.scheme.without_calibration()
        start = None if calibration is None else calibration.start
        rows = self.average_rows if start is None else start.forward
        if self.degradation is not None:
            rows = None  # of pictures to which nothing was done
        return dataclasses.replace(
            self,
            scheme=scheme,
            observation=observation,
            average_rows=None if rows is None else np.asarray(rows, np.float32),
        )

    def symbols_of(
        self, unknowns: Float[Array, "*lanes unknowns"]
    ) -> Float[Array, "*lanes symbols"]:
        """Symbols (..., L) that unknowns (..., K) stand for."""
        raw = unknowns[..., self.num_nuisances :]
        if self.symbols == "relaxed":
            return raw
        centre, half = level_range(self.scheme.levels)
        return centre + half * (2 * jax.nn.sigmoid(raw) - 1)

    def bits_of(self, unknowns: Float[Array, "*lanes unknowns"]) -> Float[Array, "*lanes symbols"]:
        """Soft bits (..., L): 0 and 1 are the two levels, 0.5 is undecided."""
        centre, half = level_range(self.scheme.levels)
        return 0.5 + (self.symbols_of(unknowns) - centre) / (2 * half)

    def bounded(self, unknowns: Float[Array, " unknowns"]) -> Float[Array, " unknowns"]:
        """Unknowns (K,) with relaxed symbols kept within one spacing of the two levels."""
        if self.symbols != "relaxed":
            return unknowns
        centre, half = level_range(self.scheme.levels)
        free = self.num_nuisances
        symbols = jnp.clip(unknowns[free:], centre - 3 * half, centre + 3 * half)
        return jnp.concatenate([unknowns[:free], symbols])

    def image(self, unknowns: Float[Array, " unknowns"]) -> Float[Array, "height width channels"]:
        """The generator's image (H, W, C) of unknowns (K,), not clipped."""
        alpha = unknowns[None, : self.scheme.num_alpha]
        return self.scheme.decode(self.scheme.latents_of(alpha, self.symbols_of(unknowns)[None]))[0]

    def degraded(
        self, unknowns: Float[Array, " unknowns"], leak: Array | float = 0.0
    ) -> Float[Array, "height width channels"]:
        """What is observed: `image`, or that clipped and degraded."""
        image = self.image(unknowns)
        if self.degradation is None:
            return image
        parameters = unknowns[self.scheme.num_alpha : self.num_nuisances]
        return self.degradation(leaky_clip(image, jnp.asarray(leak, image.dtype)), parameters)

    def parameters_of(
        self, unknowns: Float[np.ndarray, "batch unknowns"]
    ) -> Float[np.ndarray, "batch parameters"] | None:
        """The degradation's parameters (B, P) in unknowns (B, K); None where none is looked for."""
        if self.degradation is None:
            return None
        return unknowns[:, self.scheme.num_alpha : self.num_nuisances]

    def unknowns_of(
        self,
        alpha: Float[np.ndarray, "batch free"],
        soft_bits: Float[np.ndarray, "batch symbols"],
        parameters: Float[np.ndarray, "batch parameters"] | None = None,
    ) -> Float[np.ndarray, "batch unknowns"]:
        """Unknowns (B, K) float32 of what a solution of relaxed symbols has.

        Args:
          alpha: (B, A).
          soft_bits: (B, L), see `bits_of`.
          parameters: (B, P) of the degradation; zeros where there are none.
        """
        centre, half = level_range(self.scheme.levels)
        symbols = centre + 2 * half * (soft_bits - 0.5)
        if self.degradation is None:
            return np.concatenate([alpha, symbols], axis=1).astype(np.float32)
        if parameters is None:
            parameters = np.zeros((len(alpha), len(self.degradation.names)), np.float32)
        return np.concatenate([alpha, parameters, symbols], axis=1).astype(np.float32)

    def undegraded(self, unknowns: np.ndarray) -> np.ndarray:
        """Unknowns (..., K) that may lack the degradation's parameters, with zeros for them."""
        plain, free = len(self.scheme.basis), self.scheme.num_alpha
        if not unknowns.ndim or unknowns.shape[-1] != plain or plain == self.num_unknowns:
            return unknowns
        neutral = np.zeros((*unknowns.shape[:-1], self.num_unknowns - plain), unknowns.dtype)
        return np.concatenate([unknowns[..., :free], neutral, unknowns[..., free:]], axis=-1)

    def mean_and_std(self) -> tuple[Float[Array, " unknowns"], Float[Array, " unknowns"]]:
        """Mean and standard deviation (K,) of the unknowns beforehand.

        Raises:
          InputError: if the prior is not Gaussian.
        """
        if not isinstance(self.prior, GaussianPrior):
            raise InputError(f"the prior is {type(self.prior).__name__}, not GaussianPrior")
        mean, std = self.prior.mean_and_std(self.scheme)
        if self.degradation is None:
            return mean, std
        own, free = jnp.asarray(self.degradation.std), self.scheme.num_alpha
        mean = jnp.concatenate([mean[:free], jnp.zeros_like(own), mean[free:]])
        return mean, jnp.concatenate([std[:free], own, std[free:]])

    def penalty(self, unknowns: Float[Array, " unknowns"]) -> Float[Array, ""]:
        """What the prior adds to the cost of unknowns (K,), ()."""
        if self.degradation is None:
            return self.prior.penalty(self.scheme, unknowns)
        free, end = self.scheme.num_alpha, self.num_nuisances
        plain = jnp.concatenate([unknowns[:free], unknowns[end:]])
        own = unknowns[free:end] / jnp.asarray(self.degradation.std)
        return self.prior.penalty(self.scheme, plain) + 0.5 * jnp.sum(own**2)

    def residual(
        self,
        unknowns: Float[Array, " unknowns"],
        target: Float[Array, "height width channels"],
        leak: Array | float = 0.0,
    ) -> Float[Array, " residuals"]:
        """Residual (M,) of unknowns (K,) and a file (H, W, C), in units of the noise."""
        return self.observation.residual(self.degraded(unknowns, leak), target, leak)

    def cost(
        self, unknowns: Float[Array, " unknowns"], target: Float[Array, "height width channels"]
    ) -> Float[Array, ""]:
        """What is minimised, in nats up to a constant, ()."""
        image = self.degraded(unknowns)
        measure = getattr(self.observation, "distance", None)
        if measure is not None:
            distance = measure(image, target)
        else:
            distance = 0.5 * jnp.sum(self.observation.residual(image, target) ** 2)
        return distance + self.penalty(unknowns)


def shown(
    problem: Problem,
    unknowns: Float[np.ndarray, " unknowns"],
    filter: Callable[[Array], Array] | None = None,
) -> Float[np.ndarray, "rows columns channels"]:
    """What a file shows of unknowns (K,), before its own noise, in [-1, 1].

    Args:
      problem: without calibration; put it on the device where many are asked for.
      unknowns: (K,).
      filter: a pytree that brings pictures to the file's size, or None.

    >>> from fpjax.fingerprint.scheme import load_scheme
    >>> problem = Problem(load_scheme("avatars-stylegan2").without_calibration())
    >>> shown(problem, np.zeros(problem.num_unknowns, np.float32)).shape
    (32, 32, 3)
    """
    given = jax.device_put((problem, filter, unknowns))
    return np.asarray(jax.device_get(_shown(*given)))


@droppable
@program()
@full_precision
def _shown(problem: Problem, filter: Callable[[Array], Array] | None, unknowns: Array) -> Array:
    image = jnp.clip(problem.degraded(unknowns), -1, 1)
    return image if filter is None else jnp.clip(filter(image), -1, 1)


def check_images(problem: Problem, images) -> Float[np.ndarray, "batch height width channels"]:
    """Images as (B, H, W, C) float32 in [-1, 1], or what does not fit.

    Raises:
      InputError: for another shape or type, or floats outside [-1, 1].
    """
    images = np.asarray(jax.device_get(images))
    shape = problem.scheme.generator.image_shape
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f"images have shape {images.shape}: expected (B, {', '.join(map(str, shape))})"
        )
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(127.5) - 1
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"images are {images.dtype}: expected uint8, or float in [-1, 1]")
    with np.errstate(invalid="ignore"):
        outside = np.abs(images) > 1 + 1e-3
    if outside.any() and not np.isinf(images[outside]).all():
        raise InputError("float images have values outside [-1, 1]; pass 0..255 as uint8")
    return images.astype(np.float32)
