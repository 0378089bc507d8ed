"""Schemes write keys as the paper says, and come back from disk bit for bit."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.errors import InputError
from fpjax.fingerprint.calibration import Calibration, CalibrationError
from fpjax.fingerprint.embed import generate
from fpjax.fingerprint.keys import sample_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.fingerprint.scheme_files import SchemeError
from fpjax.models.stylegan2_generator import StyleGAN2Generator
from fpjax.zoo.load import load_generator
from tests import toys


def test_embedding_is_mean_plus_alpha_plus_sigma_times_key(tiny_scheme):
    basis = tiny_scheme.basis
    alpha = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    keys = sample_keys(jax.random.key(0), 3, 6)
    u, v = basis.directions[:10], basis.directions[10:]
    expected = basis.mean + alpha @ u + 0.5 * keys.astype(np.float32) @ v
    # The same sums in another order: float32 rounding of numbers around 1.
    np.testing.assert_allclose(tiny_scheme.embed(jnp.asarray(alpha), keys), expected, atol=1e-5)


def test_antipodal_levels_shift_both_ways(tiny_scheme):
    scheme = tiny_scheme.replace(levels="antipodal")
    zero = jnp.zeros((2, 10))
    latents = np.asarray(scheme.embed(zero, [[0] * 6, [1] * 6])) - scheme.basis.mean
    np.testing.assert_allclose(latents[0], -latents[1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(latents[1]), 0.5 * np.sqrt(6), rtol=1e-5)


def test_directions_may_lie_in_the_middle_of_the_basis(tiny_scheme):
    scheme = Scheme.create(tiny_scheme.generator, tiny_scheme.basis, key_length=3, shift=4)
    free, fingerprint = scheme.split(np.arange(16))
    assert fingerprint.tolist() == [4, 5, 6]
    assert free.tolist() == [0, 1, 2, 3, *range(7, 16)]


def test_projection_keeps_all_of_a_natural_latent_but_its_key_directions(tiny_scheme):
    generator = tiny_scheme.generator
    natural = generator.sample_latents(generator.params, jax.random.key(0), 4)
    back = tiny_scheme.latents_of(tiny_scheme.project(natural), jnp.zeros((4, 6)))
    rest = np.asarray(natural - back)
    np.testing.assert_allclose(rest @ tiny_scheme.basis.directions[:10].T, 0, atol=1e-5)


def test_sampled_alpha_has_the_basis_standard_deviations(tiny_scheme):
    keys = sample_keys(jax.random.key(0), 4000, 6)
    out = generate(tiny_scheme, jax.random.key(1), keys, alpha="sampled")
    # 4000 draws: a standard deviation is known to 1.1 %; five of those.
    np.testing.assert_allclose(np.std(out.alpha, axis=0), tiny_scheme.alpha_std, rtol=0.06)
    assert out.originals is None


def test_a_key_changes_the_image_and_no_key_change_gives_the_same_image(tiny_scheme):
    keys = np.array([[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    one = generate(tiny_scheme, jax.random.key(1), keys).images
    same = generate(tiny_scheme, jax.random.key(1), keys).images
    other = generate(tiny_scheme, jax.random.key(1), 1 - keys).images
    np.testing.assert_array_equal(one, same)
    assert np.abs(one.astype(int) - other).max() > 1


_LOAD = """
import sys, numpy as np
from fpjax.fingerprint.scheme import Scheme
from fpjax.zoo.load import load_generator
scheme = Scheme.load(sys.argv[1], load_generator(sys.argv[2]))
parts = scheme.basis.directions, scheme.calibration.start.weight
sys.stdout.buffer.write(b"".join(part.tobytes() for part in parts))
print(scheme.id, file=sys.stderr)
"""


def test_a_saved_scheme_is_bit_exact_in_another_process(calibrated_scheme, tmp_path):
    scheme = calibrated_scheme
    scheme.generator.save(tmp_path / "generator")
    scheme.save(tmp_path / "scheme")
    arguments = [sys.executable, "-c", _LOAD, tmp_path / "scheme", tmp_path / "generator"]
    run = subprocess.run(arguments, capture_output=True, check=True)
    assert (
        run.stdout == scheme.basis.directions.tobytes() + scheme.calibration.start.weight.tobytes()
    )
    assert run.stderr.decode().split()[-1] == scheme.id
    back = Scheme.load(tmp_path / "scheme", scheme.generator)
    assert back.calibration.sha256 == scheme.calibration.sha256


def test_a_generator_keeps_its_hash_through_the_disk(tiny_generator, tmp_path):
    tiny_generator.save(tmp_path / "g")
    assert load_generator(tmp_path / "g").sha256 == tiny_generator.sha256


def test_the_wrong_generator_is_refused_with_both_hashes(tiny_scheme, tmp_path):
    tiny_scheme.save(tmp_path / "scheme")
    generator = tiny_scheme.generator
    params = jax.tree.map(lambda x: x * 1.001, generator.params)
    other = StyleGAN2Generator.create("other", generator.config, params)
    with pytest.raises(SchemeError) as error:
        Scheme.load(tmp_path / "scheme", other)
    assert generator.sha256 in str(error.value) and other.sha256 in str(error.value)


def test_an_existing_folder_is_never_overwritten(tiny_scheme, tmp_path):
    tiny_scheme.save(tmp_path / "scheme")
    with pytest.raises(FileExistsError, match="exists already"):
        tiny_scheme.save(tmp_path / "scheme")


def _damage_truncated(folder):
    file = folder / "scheme.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _damage_json(folder):
    (folder / "scheme.json").write_text('{"format_version": 1,')


def _damage_version(folder):
    file = folder / "scheme.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))


def _damage_strength(folder):
    file = folder / "scheme.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "strength": 0.6}))


def _damage_missing(folder):
    (folder / "scheme.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_truncated, "damaged"),
        (_damage_json, "damaged"),
        (_damage_version, "format version 99, this fpjax reads 1 and 2"),
        (_damage_strength, "recorded identity"),
        (_damage_missing, "no such file"),
    ],
)
def test_a_damaged_scheme_is_refused(tiny_scheme, tmp_path, damage, message):
    tiny_scheme.save(tmp_path / "scheme")
    damage(tmp_path / "scheme")
    with pytest.raises(SchemeError, match=message):
        Scheme.load(tmp_path / "scheme", tiny_scheme.generator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_length": 7}, "the basis has 16"),
        ({"strength": 0.0}, "positive"),
        ({"strength": float("nan")}, "positive"),
        ({"levels": "ternary"}, "'binary' or 'antipodal'"),
        ({"shift": -1}, "the basis has 16"),
    ],
)
def test_schemes_that_cannot_be_are_refused(tiny_scheme, changes, message):
    options = {"key_length": 6, "shift": 10, "strength": 0.5, **changes}
    with pytest.raises(InputError, match=message):
        Scheme.create(tiny_scheme.generator, tiny_scheme.basis, **options)


def test_a_scheme_of_a_persons_own_generator_is_opened_with_it_and_refused_with_another(tmp_path):
    scheme = toys.scheme()
    scheme.save(tmp_path / "scheme")
    assert Scheme.load(tmp_path / "scheme", toys.generator()).id == scheme.id
    with pytest.raises(SchemeError, match="SHA-256"):
        Scheme.load(tmp_path / "scheme", toys.generator(seed=1))
    with pytest.raises(SchemeError, match="not bundled; say where it is"):
        Scheme.load(tmp_path / "scheme")
    changed = toys.generator().replace(decode=lambda p, z: -toys.linear_decode(p, z))
    offset = {**changed.params, "offset": changed.params["offset"] + 0.1}
    scheme = scheme.replace(generator=scheme.generator.replace(params=offset))
    scheme.save(tmp_path / "other")
    with pytest.raises(SchemeError, match="makes another picture of the mean latent"):
        Scheme.load(tmp_path / "other", changed.replace(params=offset))


def test_generated_images_are_the_files_that_a_user_saves(tiny_scheme, tmp_path):
    from fpjax.io.images import load_image

    keys = sample_keys(jax.random.key(0), 3, 6)
    out = generate(tiny_scheme, jax.random.key(1), keys)
    assert out.images.dtype == np.uint8 and out.originals.dtype == np.uint8
    assert np.abs(out.images / 127.5 - 1 - out.float_images).max() <= 0.5001 / 127.5
    paths = out.save(tmp_path / "pictures")
    assert [path.name for path in paths] == ["0000.png", "0001.png", "0002.png"]
    np.testing.assert_array_equal(load_image(paths[2]), out.images[2])
    with pytest.raises(FileExistsError, match="another folder or stem"):
        out.save(tmp_path / "pictures")


def test_noise_maps_are_the_generators_own_business(tiny_generator, tiny_scheme, tmp_path):
    """A scheme made without noise maps is opened without them, from the generator with them."""
    silent = tiny_generator.with_noise("none")
    scheme = Scheme.create(silent, tiny_scheme.basis, 6, 10, 0.5)
    assert scheme.id != tiny_scheme.replace(levels="antipodal").id
    scheme.save(tmp_path / "scheme")
    back = Scheme.load(tmp_path / "scheme", tiny_generator)
    assert back.generator.noise == "none" and back.id == scheme.id


@pytest.mark.parametrize(
    ("name", "bits", "symbols"), [("bch-7-4", 4, 7), ("repetition-3-4", 3, 12)]
)
def test_a_code_writes_few_bits_on_many_directions_and_survives_the_disk(
    tiny_generator, tiny_scheme, tmp_path, name, bits, symbols
):
    scheme = Scheme.create(tiny_generator, tiny_scheme.basis, code=name, strength=0.5)
    assert (scheme.key_length, scheme.num_symbols, scheme.num_alpha) == (
        bits,
        symbols,
        16 - symbols,
    )
    keys = sample_keys(jax.random.key(0), 3, bits)
    out = generate(scheme, jax.random.key(1), keys)
    plain = Scheme.create(tiny_generator, tiny_scheme.basis, symbols, strength=0.5)
    words = scheme.code.encode(keys)
    np.testing.assert_array_equal(words, scheme.words_of(keys))
    # The same latents carry the word as a key of a scheme without a code.
    np.testing.assert_array_equal(out.images, generate(plain, jax.random.key(1), words).images)
    scheme.save(tmp_path / "scheme")
    assert json.loads((tmp_path / "scheme" / "scheme.json").read_text())["format_version"] == 3
    back = Scheme.load(tmp_path / "scheme", tiny_generator)
    assert back.code == scheme.code and back.id == scheme.id != plain.id
    # The mask is a secret of each scheme.
    assert Scheme.create(tiny_generator, tiny_scheme.basis, code=name, strength=0.5).id != scheme.id
    with pytest.raises(InputError, match=f"expected \\(N, {bits}\\) bits"):
        generate(scheme, jax.random.key(1), words)


def test_bundled_schemes_keep_their_identity_and_their_format(tmp_path):
    """Pictures that were made years ago are attributed with them."""
    from fpjax import load_scheme, zoo

    scheme = load_scheme("avatars-stylegan2")
    assert scheme.id == "088db5f764fdcd6a1d17a86df811ffad6895c31077eba4cea8ff77951aa294aa"
    assert scheme.code is None and scheme.num_symbols == scheme.key_length == 64
    old = Scheme.load(zoo.scheme_path("avatars-stylegan2").with_name("scheme-pca"))
    assert old.id == "4d7dfe804b19374834f0c9502244ec9041f8094a5faee3c40df6258023160b6c"
    scheme.save(tmp_path / "scheme")
    saved = json.loads((tmp_path / "scheme" / "scheme.json").read_text())
    assert saved["format_version"] == 2 and saved["code"] == "independent"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code": "hamming-7-4"}, "expected 'independent', 'bch-SYMBOLS-BITS'"),
        ({"code": "bch-7-5"}, "there is no BCH code of 7 symbols and 5 bits"),
        ({"code": "bch-7"}, "bch-63-45"),
        ({"code": "bch-7-4", "key_length": 7}, "carries 4 bits"),
        ({"code": "repetition-9-2"}, "18 symbols"),
    ],
)
def test_a_code_that_cannot_be_is_refused(tiny_scheme, options, message):
    with pytest.raises(InputError, match=message):
        Scheme.create(tiny_scheme.generator, tiny_scheme.basis, **options)


def test_independent_bits_are_the_same_as_no_code(tiny_scheme):
    from fpjax.fingerprint.codes import IndependentBits

    made = [
        Scheme.create(tiny_scheme.generator, tiny_scheme.basis, 6, code=code)
        for code in (None, "independent", IndependentBits(6))
    ]
    assert len({scheme.id for scheme in made}) == 1 and made[2].code is None


def test_a_doctored_code_is_refused(tiny_generator, tiny_scheme, tmp_path):
    Scheme.create(tiny_generator, tiny_scheme.basis, code="bch-7-4").save(tmp_path / "scheme")
    file = tmp_path / "scheme" / "scheme.json"
    header = json.loads(file.read_text())
    for code in (
        {**header["code"], "mask": ""}, {**header["code"], "mask": "zz"}, {"code": "turbo"},
        "turbo", {},
    ):  # fmt: skip
        file.write_text(json.dumps({**header, "code": code}))
        with pytest.raises(SchemeError, match="damaged"):
            Scheme.load(tmp_path / "scheme", tiny_generator)


def test_a_calibration_of_format_1_has_no_way_back_and_stays_readable(calibrated_scheme, tmp_path):
    calibration = calibrated_scheme.calibration
    assert calibration.start.forward.shape == calibration.start.weight.T.shape
    start = dataclasses.replace(calibration.start, forward=None)
    old = dataclasses.replace(calibration, start=start, first_noise_ratio=None)
    scheme = calibrated_scheme.replace(calibration=old)
    scheme.save(tmp_path / "old")
    header = json.loads((tmp_path / "old" / "calibration.json").read_text())
    assert header["format_version"] == 1
    back = Calibration.read(tmp_path / "old")
    assert back.start.forward is None
    assert back.sha256 == scheme.calibration.sha256 != calibration.sha256


def test_calibrations_of_before_format_4_know_no_first_residual(calibrated_scheme, tmp_path):
    calibration = calibrated_scheme.calibration
    assert calibration.first_noise_ratio > 0
    for version, first in ((4, calibration.first_noise_ratio), (2, None)):
        changed = dataclasses.replace(calibration, first_noise_ratio=first)
        calibrated_scheme.replace(calibration=changed).save(tmp_path / str(version))
        header = json.loads((tmp_path / str(version) / "calibration.json").read_text())
        assert header["format_version"] == version
        assert ("first_noise_ratio" in header) == (first is not None)
        back = Calibration.read(tmp_path / str(version))
        assert back.first_noise_ratio == first and back.sha256 == changed.sha256


@pytest.mark.parametrize("name", ["first_noise_ratio", "max_noise_ratio", "own_noise_ratio"])
@pytest.mark.parametrize("value", ["7", [1], {}, True, 0, -3, 10**400, float("nan"), float("inf")])
def test_residuals_that_are_no_numbers_are_refused(calibrated_scheme, tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(calibrated_scheme.calibration, **{name: value})
    calibrated_scheme.save(tmp_path / "scheme")
    file = tmp_path / "scheme" / "calibration.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(CalibrationError, match="damaged"):
        Calibration.read(tmp_path / "scheme")
