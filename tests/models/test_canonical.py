"""Kernels that backward passes exchange are put in order, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from fpjax.models.canonical import canonical_convolutions


def test_the_slope_is_the_same_and_its_kernels_are_in_order():
    generator = fpjax.load_generator("avatars-stylegan2")
    latents = generator.natural_latents(jax.random.key(0), 2)

    def cost(latents, params):
        return jnp.square(generator.decode(params, latents)).mean()

    plain = jax.value_and_grad(cost)
    ordered = canonical_convolutions(plain)
    expected = jax.jit(plain)(latents, generator.params)
    found = jax.jit(ordered)(latents, generator.params)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-7)
    program = jax.jit(ordered).lower(latents, generator.params).as_text()
    kernels = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert kernels and all("x[0, 1, i, o]->" in line for line in kernels)


def test_transposed_linear_maps_and_lanes_go_through():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))

    def blur(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = jax.random.normal(jax.random.key(1), (5, 1, 8, 8, 2))
    pull = jax.linear_transpose(blur, x[0])
    ordered = canonical_convolutions(lambda y: pull(y)[0])
    y = jax.vmap(blur)(x)
    expected = jnp.stack([pull(lane)[0] for lane in y])
    np.testing.assert_allclose(jax.vmap(ordered)(y), expected, rtol=1e-4, atol=1e-5)


def test_loops_and_functions_with_rules_of_their_own_stay_what_they_are():
    @jax.custom_jvp
    def steep(x):
        return x

    steep.defjvp(lambda primals, tangents: (primals[0], 3 * tangents[0]))

    def cost(x):
        x = jax.lax.fori_loop(0, 3, lambda i, x: x + 1, x)
        return jax.lax.cond(x.sum() > 0, lambda: (steep(x) ** 2).sum(), lambda: 0.0)

    x = jnp.arange(3.0)
    np.testing.assert_allclose(canonical_convolutions(cost)(x), cost(x))
    np.testing.assert_allclose(canonical_convolutions(jax.jacfwd(cost))(x), 6 * (x + 3))
