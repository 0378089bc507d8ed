"""Copies to hand out: all their images carry one key, and nothing beside tells of the scheme."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.attribution.decision import attribute
from fpjax.errors import InputError
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import generate
from fpjax.fingerprint.fit import fit_basis
from fpjax.fingerprint.issued import issue_model
from fpjax.fingerprint.keys import to_hex
from fpjax.fingerprint.scheme import Scheme
from fpjax.io.images import to_uint8
from fpjax.models.parameters import flatten
from fpjax.zoo.load import load_generator
from tests import toys
from tests.reference import relative_error

KEY = np.array([1, 0, 0, 1, 1, 0], np.uint8)
# The bound of every parity test: 1e-4 of the output's standard deviation, in float32.
BOUND = 1e-4


@pytest.fixture(scope="module")
def image_metric_scheme(tiny_generator):
    """Directions that are not orthonormal; four are left out, along which latents keep the mean."""
    basis = fit_basis(tiny_generator, jax.random.key(1), 2000, num_jacobians=8)
    scheme = Scheme.create(tiny_generator, basis.select(np.arange(12)), 6, keep_all=True)
    assert len(scheme.basis) < scheme.basis.dimension
    return scheme


@pytest.fixture(params=["orthonormal", "image metric", "no noise"])
def scheme(request, tiny_scheme, image_metric_scheme):
    if request.param == "no noise":
        return tiny_scheme.replace(generator=tiny_scheme.generator.with_noise("none"))
    return tiny_scheme if request.param == "orthonormal" else image_metric_scheme


def with_key(scheme, latents):
    """Images of the scheme's own generator, from latents that were projected and given the key."""
    keys = np.repeat(KEY[None], len(latents), axis=0)
    return scheme.generator.decode(
        scheme.generator.params, scheme.embed(scheme.project(latents), keys)
    )


def test_a_copy_makes_the_images_that_generate_makes(scheme):
    made = generate(scheme, jax.random.key(5), np.repeat(KEY[None], 6, axis=0))
    copy = issue_model(scheme, KEY)
    natural = copy.natural_latents(jax.random.key(5), 6)
    assert relative_error(decode_images(copy, natural), made.float_images) <= BOUND
    assert relative_error(decode_images(scheme.generator, natural), made.float_images) > 0.01


@pytest.mark.parametrize("psi", [0.0, 0.5])
def test_truncation_leaves_the_key_as_strong_as_it_was(scheme, psi):
    copy = issue_model(scheme, KEY)
    z = jax.random.normal(jax.random.key(0), (4, 16))
    w = copy.map(copy.params, z, psi)
    np.testing.assert_array_equal(w, scheme.generator.map(scheme.generator.params, z, psi))
    assert relative_error(copy.decode(copy.params, w), with_key(scheme, w)) <= BOUND


def test_with_mixed_styles_every_layer_carries_the_key(scheme):
    copy = issue_model(scheme, KEY)
    layers = copy.config.num_layers
    natural = copy.natural_latents(jax.random.key(0), 4 * layers)
    keys = np.repeat(KEY[None], len(natural), axis=0)
    embedded = scheme.embed(scheme.project(natural), keys).reshape(4, layers, -1)
    expected = scheme.generator.decode(scheme.generator.params, embedded)
    mixed = copy.decode(copy.params, natural.reshape(4, layers, -1))
    assert relative_error(mixed, expected) <= BOUND


def test_the_key_is_read_from_a_copys_pictures_truncated_or_not(calibrated_scheme):
    copy = issue_model(calibrated_scheme, KEY)
    psi = jnp.asarray([1.0, 1.0, 0.5, 0.5])[:, None]
    w = copy.map(copy.params, jax.random.normal(jax.random.key(9), (4, 16)), psi)
    found = attribute(calibrated_scheme, to_uint8(decode_images(copy, w)))
    np.testing.assert_array_equal(found.keys, np.repeat(KEY[None], 4, axis=0))


def test_a_copy_differs_from_its_original_in_the_style_layers_alone(tiny_scheme):
    before, after = (
        flatten(generator.params)
        for generator in (tiny_scheme.generator, issue_model(tiny_scheme, KEY))
    )
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if "/affine/" in path}
    assert all(after[path].dtype == np.float32 for path in changed)


def test_the_folder_of_a_copy_is_a_plain_generators_and_tells_nothing(tiny_scheme, tmp_path):
    original = tiny_scheme.generator
    info = {"licence": "CC0 1.0", "sha256": original.sha256, "recipe": {"seed": 0}}
    known = tiny_scheme.replace(
        generator=original.create(original.name, original.config, original.params, info)
    )
    copy = issue_model(known, KEY)
    assert copy.sha256 not in (original.sha256, issue_model(known, 1 - KEY).sha256)
    copy.save(tmp_path / "copy")
    opened = load_generator(tmp_path / "copy")
    assert opened.sha256 == copy.sha256 and opened.config == original.config
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "config.json",
        "params.safetensors",
    ]
    header = json.loads((tmp_path / "copy" / "config.json").read_text("utf-8"))
    assert header["info"] == {"licence": "CC0 1.0"}
    for path in (tmp_path / "copy").iterdir():
        for secret in (tiny_scheme.id, original.sha256, to_hex(KEY), "scheme"):
            # (Two hexadecimal digits would be found by accident in weights.)
            if len(secret) > 2 or path.suffix == ".json":
                assert secret.encode() not in path.read_bytes()


def test_c_copies_compared_show_c_minus_one_dimensions_of_the_keys_shift(tiny_scheme):
    """What `docs/security.md` says of c holders who compare biases: c - 1 dimensions."""
    keys = np.eye(6, dtype=np.uint8)
    biases = [
        np.concatenate(
            [
                np.asarray(leaf, np.float64)
                for path, leaf in flatten(issue_model(tiny_scheme, key).params).items()
                if path.endswith("affine/bias")
            ]
        )
        for key in keys
    ]
    for count in range(2, 7):
        differences = np.stack(biases[1:count]) - biases[0][None]
        # Rounding of float32 biases around 1 is 1e-7; the differences are around 0.1.
        assert np.linalg.matrix_rank(differences, tol=1e-5) == count - 1


@pytest.fixture(params=["complete", "partial"])
def toy(request):
    scheme = toys.scheme(toys.generator(toys.curved_decode), strength=0.3)
    if request.param == "complete":
        return scheme
    return Scheme.create(scheme.generator, scheme.basis.select(np.arange(4, 16)), 6, strength=0.3)


def test_any_other_generator_is_wrapped(toy):
    copy = issue_model(toy, KEY)
    made = generate(toy, jax.random.key(5), np.repeat(KEY[None], 6, axis=0))
    natural = copy.natural_latents(jax.random.key(5), 6)
    assert relative_error(decode_images(copy, natural), made.float_images) <= BOUND
    assert copy.sha256 != toy.generator.sha256
    # Another copy is other arrays for the same program.
    other = issue_model(toy, 1 - KEY)
    assert jax.tree.structure(other) == jax.tree.structure(copy)


def test_a_wrapper_does_not_show_which_direction_is_which_bit(toy):
    """Copies of schemes that differ in the order of their bits have the same arrays."""
    order = np.array([3, 0, 5, 1, 2, 4])
    rows = np.arange(len(toy.basis))
    first = toy.shift
    rows[first : first + 6] = first + order
    arrays, others = (
        issue_model(scheme, key).params
        for scheme, key in [(toy, KEY), (toy.replace(basis=toy.basis.select(rows)), KEY[order])]
    )
    for name in ("left", "right", "offset"):
        np.testing.assert_allclose(arrays[name], others[name], atol=1e-6)


@pytest.mark.parametrize(
    ("key", "message"),
    [([0, 1], "6"), ([[0] * 6] * 2, "2 keys"), ([0, 1, 2, 0, 1, 0], "bits 0 and 1")],
)
def test_what_is_no_key_is_refused(tiny_scheme, key, message):
    with pytest.raises(InputError, match=message):
        issue_model(tiny_scheme, key)
