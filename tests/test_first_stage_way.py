"""A first stage from scheme to verdict: everything that takes a generator takes this one."""

import jax
import numpy as np
import pytest

import fpjax
from fpjax.errors import InputError
from fpjax.inversion.solvers.default import default_solver
from fpjax.models import autoencoder, unet
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.diffusion import DiffusionConfig, DiffusionPrior
from fpjax.models.ldm_generator import LDMGenerator
from fpjax.models.unet import UNetConfig
from tests import pictures


@pytest.fixture(scope="module")
def scheme():
    made = pictures.generator()
    basis = fpjax.fit_basis(
        made, jax.random.key(1), 800, num_jacobians=32, num_probes=128, in_blocks=True
    )
    scheme = fpjax.Scheme.create(made, basis, 16, strength=0.3)
    return fpjax.calibrate(scheme, jax.random.key(2), num_inverted_images=4)


def test_calibration_fits_no_start_where_there_is_an_encoder(scheme, tmp_path):
    assert scheme.calibration.start is None and scheme.calibration.num_start_images == 0
    assert scheme.calibration.solver == "matrix-free"
    scheme.save(tmp_path / "scheme")
    again = fpjax.Scheme.load(tmp_path / "scheme", pictures.generator())
    assert again.calibration.sha256 == scheme.calibration.sha256


def test_files_are_attributed_to_their_users_and_others_to_nobody(scheme, tmp_path):
    with fpjax.Registry.create(
        tmp_path / "users.db", key_length=16, scheme_id=scheme.id
    ) as registry:
        keys = np.stack([registry.issue(name, rng=np.random.default_rng(i)) for i, name in
                         enumerate(("ada", "blaise"))])  # fmt: skip
        made = fpjax.generate(scheme, jax.random.key(3), keys)
        noise = np.random.default_rng(0).integers(0, 256, (1, *pictures.SHAPE)).astype(np.uint8)
        images = np.concatenate([made.images, noise])
        found = fpjax.attribute(scheme, images, registry, false_positive_rate=1e-3)
    assert [v.user for v in found.verdicts] == ["ada", "blaise", None]
    assert found.solver == "matrix-free" == default_solver(scheme).name
    np.testing.assert_array_equal(found.keys[:2], keys)


def test_a_vq_model_decodes_with_and_without_codes_and_a_scheme_keeps_which(tmp_path):
    config = AutoencoderConfig(
        ch=8, ch_mult=(1, 1), num_res_blocks=1, resolution=8, n_embed=16, double_z=False,
        norm_groups=4,
    )  # fmt: skip
    params = autoencoder.init(config, jax.random.key(0))
    made = LDMGenerator.create("vq", config, params)
    free = made.with_noise("unquantized")
    z = jax.random.normal(jax.random.key(1), (1, 4, 4, 3))
    quantised = autoencoder.decode(config, params, z)
    plain = autoencoder.decode(config, params, z, quantize=False)
    np.testing.assert_array_equal(made.decode(params, z), quantised)
    np.testing.assert_array_equal(free.decode(params, z), plain)
    assert np.abs(quantised - plain).max() > 1e-3
    assert free.sha256 == made.sha256 and (made.noise, free.noise) == ("const", "unquantized")
    with pytest.raises(InputError, match="'const' and 'unquantized'"):
        made.with_noise("none")
    latents = np.random.default_rng(0).normal(size=(200, 48)).astype(np.float32)
    from fpjax.fingerprint.tied_pca import joint_pca

    basis, shift = joint_pca(latents, (4, 4, 3), 4, shift=20)
    scheme = fpjax.Scheme.create(free, basis, 4, shift)
    scheme.save(tmp_path / "scheme")
    again = fpjax.Scheme.load(tmp_path / "scheme", made)
    assert again.id == scheme.id and again.generator.noise == "unquantized"


def test_a_copy_to_hand_out_makes_the_pictures_that_generate_makes(scheme):
    key = fpjax.sample_keys(jax.random.key(5), 1, 16)[0]
    copy = fpjax.issue_model(scheme, key)
    natural = copy.natural_latents(jax.random.key(6), 3)
    made = fpjax.generate(scheme, jax.random.key(6), np.repeat(key[None], 3, axis=0))
    images = np.clip(copy.decode(copy.params, natural), -1, 1)
    np.testing.assert_allclose(images, made.float_images, atol=2e-5)
    assert copy.encode(copy.params, images).shape == (3, *pictures.GRID)


@pytest.mark.parametrize("layout", ["channels", "joint"])
def test_copies_of_the_published_bases_too(layout):
    from fpjax.fingerprint.tied_pca import channel_pca, joint_pca

    made = pictures.generator()
    latents = np.asarray(made.natural_latents(jax.random.key(7), 300)).reshape(300, -1)
    fit = channel_pca if layout == "channels" else joint_pca
    basis, shift = fit(latents, pictures.GRID, 5, shift=15)
    scheme = fpjax.Scheme.create(made, basis, 5, shift, 0.5, "binary")
    key = np.array([1, 0, 1, 1, 0], np.uint8)
    copy = fpjax.issue_model(scheme, key)
    expected = fpjax.generate(scheme, jax.random.key(8), key[None]).float_images
    found = copy.decode(copy.params, copy.natural_latents(jax.random.key(8), 1))
    np.testing.assert_allclose(np.clip(found, -1, 1), expected, atol=2e-5)


def test_a_first_stage_without_a_denoiser_takes_its_latents_from_pictures(tmp_path, capsys):
    """From a folder of pictures to attributed files, by the command line alone."""
    from fpjax.cli.main import run
    from fpjax.io.images import save_image
    from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig, init
    from fpjax.models.checkpoint import config_to_json, save_checkpoint

    config = AutoencoderTinyConfig(
        latent_channels=3, channels=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1), resolution=16
    )
    params = jax.device_get(init(config, jax.random.key(0)))
    save_checkpoint(tmp_path / "tiny", "autoencoder_tiny", config_to_json(config), params)
    generator = fpjax.load_generator(tmp_path / "tiny")
    with pytest.raises(InputError, match="no sample_latents"):
        generator.natural_latents(jax.random.key(0), 2)
    rng = np.random.default_rng(0)
    for i in range(40):
        smooth = rng.integers(0, 256, (4, 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
        save_image(tmp_path / "pictures" / f"{i}.png", smooth.astype(np.uint8))
    create = [
        "scheme", "create", f"--generator={tmp_path}/tiny", f"--out={tmp_path}/scheme", "--quiet",
        "--num_samples=300", "--key_length=8", "--num_inverted_images=2", "--num_jacobians=8",
    ]  # fmt: skip
    assert run(create) == 1 and "no sample_latents" in capsys.readouterr().err
    assert run([*create, f"--images={tmp_path}/none"]) == 1
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(InputError, match="expected"):
        generator.with_latents(np.zeros((3, 2)))
    latents = rng.normal(size=(50, *generator.latent_shape)).astype(np.float32)
    with_latents = generator.with_latents(latents)
    assert with_latents.sha256 == generator.sha256
    drawn = np.asarray(with_latents.natural_latents(jax.random.key(1), 3))
    assert all((drawn[i] == latents).all(axis=(1, 2, 3)).any() for i in range(3))


@pytest.mark.parametrize("with_prior", [True, False])
def test_a_first_stage_is_written_with_its_prior_and_read_again(with_prior, tmp_path):
    config = AutoencoderConfig(
        ch=8, ch_mult=(1, 1), num_res_blocks=1, resolution=8, n_embed=16, double_z=False,
        norm_groups=4, scale_factor=0.5,
    )  # fmt: skip
    prior = None
    if with_prior:
        denoiser = UNetConfig(
            image_size=4, model_channels=8, channel_mult=(1,), num_res_blocks=1,
            attention_resolutions=(), num_head_channels=8, norm_groups=4,
        )  # fmt: skip
        params = unet.init(denoiser, jax.random.key(2))
        prior = DiffusionPrior(DiffusionConfig(denoiser), params)
    params = autoencoder.init(config, jax.random.key(0))
    made = LDMGenerator.create("small", config, params, prior, {"licence": "CC0 1.0"})
    made.save(tmp_path / "small")
    again = fpjax.load_generator(tmp_path / "small")
    assert (again.sha256, again.info) == (made.sha256, made.info)
    assert (again.prior is None) == (prior is None)
    z = jax.random.normal(jax.random.key(1), (1, 4, 4, 3))
    np.testing.assert_array_equal(again.decode(again.params, z), made.decode(made.params, z))
    if with_prior:
        key = jax.random.key(3)
        np.testing.assert_array_equal(again.natural_latents(key, 1), made.natural_latents(key, 1))
    with pytest.raises(FileExistsError):
        made.save(tmp_path / "small")
