"""Capacity: counted by tails what registries show, predicted without inverting, resumed, drawn."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import fpjax
from fpjax.attribution.tails import SoftTails
from fpjax.errors import InputError
from fpjax.studies.capacity import (
    Cell,
    Evidence,
    coding_bound,
    curve,
    drawn_evidence,
    usable_users,
)
from fpjax.studies.capacity_plots import write_page
from fpjax.studies.capacity_run import Settings, run_capacity
from fpjax.studies.design import Study
from fpjax.studies.designs import Design
from tests import toys

CELLS = [Cell("independent-6", 24.0, 0.3), Cell("bch-7-4", 16.0), Cell("independent-6", 90.0)]
SETTINGS = Settings(num_images=16, num_latents=4, draws=4, num_pictures=8, num_start_images=200)
USERS, RATE = (1, 2, 4, 16, 64, 1000), 0.3


@pytest.fixture(scope="module")
def scheme():
    made = toys.scheme(toys.generator(toys.curved_decode, scale=0.3), strength=0.5)
    return fpjax.calibrate(made, jax.random.key(1), num_start_images=200, num_inverted_images=2)


def run(scheme, folder, **options):
    options = {"settings": SETTINGS, "cells": CELLS, "users": USERS, "rates": (RATE, 0.9),
               "simulated": (40,), **options}  # fmt: skip
    return run_capacity(scheme, folder, **options)


@pytest.fixture(scope="module")
def whole(scheme, tmp_path_factory):
    folder = tmp_path_factory.mktemp("capacity") / "study"
    return folder, run(scheme, folder)


def _spread(length=20, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(length, length)))[0]
    return (basis * 10 ** rng.uniform(-1, 1, length)) @ basis.T


def test_shares_counted_by_tails_are_those_of_registries_that_are_made():
    """Closed sets of 50 users, made 400 times, and shares among them of the best key."""
    information, num = _spread(), 50
    found = drawn_evidence(information[None], 400)
    rng = np.random.default_rng(0)  # the same draws again
    words = rng.integers(0, 2, (400, 20))
    values, vectors = np.linalg.eigh(information)
    symbols = 2.0 * words - 1
    linear = (
        symbols @ vectors * values + rng.standard_normal((400, 20)) * np.sqrt(values)
    ) @ vectors.T
    wins = 0
    for word, pull in zip(words, linear, strict=True):
        keys = np.concatenate(
            [word[None], np.random.default_rng(wins).integers(0, 2, (num - 1, 20))]
        )
        k = 2.0 * keys - 1
        wins += np.argmin(((k @ information / 2) * k).sum(1) - k @ pull) == 0
    expected = curve(found, [num], 0.5).closed[0]
    # Four standard deviations of 400 trials.
    assert abs(wins / 400 - expected) < 4 * np.sqrt(0.25 / 400)


def test_the_bound_is_below_what_is_named_and_tails_below_two_to_the_minus_density():
    found = drawn_evidence(np.stack([_spread(seed=seed) for seed in range(4)]), 25)
    assert (
        found.p_soft <= 2.0**-found.density * 1.15
    ).all()  # both are estimates, to some per cent
    users = [1, 10, 100, 1000]
    named = curve(found, users, 0.1).right
    assert (coding_bound(found, users, 0.1) <= named + 0.05).all()
    assert (np.diff(named) <= 0).all()


def test_the_density_is_that_of_all_keys_enumerated():
    information = _spread(12)
    linear = information @ np.ones(12)
    every = (np.arange(1 << 12)[:, None] >> np.arange(12)) & 1
    k = 2.0 * every - 1
    energies = ((k @ information / 2) * k).sum(1) - k @ linear
    exact = (-energies - np.log(np.exp(-energies).mean())) / np.log(2)
    found = SoftTails(information, linear).information_density(every[[0, 5, 4095]])[0]
    np.testing.assert_allclose(
        found, exact[[0, 5, 4095]], atol=0.05
    )  # 20,000 samples: some per cent


def test_usable_users_end_where_keys_do():
    p = np.full(10, 2.0**-16)
    sure = Evidence(np.ones(10), p, np.zeros(10), np.ones(10), np.zeros(10))
    assert usable_users(sure, 0.9, 0.5, 16) == 2.0**14
    assert usable_users(sure, 0.9, 0.5, 4) == 16
    assert usable_users(sure, 0.9, 1e-6, 16) == 0
    assert usable_users(sure._replace(p_soft=np.r_[p[:8], 1, 1]), 0.8, 0.5, 16) == 2.0**14
    assert usable_users(sure._replace(p_soft=np.r_[p[:8], 1, 1]), 0.9, 0.5, 16) == 0


def test_a_study_measures_predicts_and_checks_itself(whole):
    folder, result = whole
    assert json.loads((folder / "capacity.json").read_text()) == result and result["complete"]
    noisy, coded, beyond = result["cells"]
    assert "no strength gives 90 dB" in beyond["reason"]
    assert coded["measured"]["exact"] == coded["predicted"]["exact"] == 1.0
    assert (coded["payload_bits"], coded["num_symbols"]) == (4, 7)
    for row in (noisy, coded):
        first = row["measured"]["curves"][0]
        assert len(first["right"]) == sum(num <= 2 ** row["payload_bits"] for num in USERS)
        shares = np.array([first[name] for name in ("right", "wrong", "none")])
        np.testing.assert_allclose(shares.sum(0), 1)
        assert (np.array(first["wrong"]) <= RATE / 2).all()
        made = row["simulated"][0]
        assert made["right"] + made["none"] + made["wrong"] == made["images"] == 16
    assert 0 < noisy["measured"]["wrong_symbols"] < 0.5
    # 16 images and 16 draws of a coarse predictor.
    for a, b in zip(
        *(noisy[k]["curves"][1]["right"] for k in ("measured", "predicted")), strict=True
    ):
        assert abs(a - b) < 0.5


def test_a_registry_that_is_made_names_as_many_as_the_tails_say(whole, scheme, tmp_path):
    folder, _ = whole
    asked = {"cells": CELLS[:1], "users": (16, 40), "simulated": (16, 40), "resume": True}
    row = run(scheme, folder, **asked)["cells"][0]
    counted = row["measured"]["curves"][0]["right"]
    for made, share in zip(row["simulated"], counted, strict=True):
        assert abs(made["right"] - 16 * share) <= 2


def test_an_interrupted_study_goes_on_without_inverting_again(whole, scheme, tmp_path, monkeypatch):
    def interrupt(name, done, total):
        if name.startswith("inverting") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scheme, tmp_path, progress=interrupt)
    assert json.loads((tmp_path / "capacity.json").read_text())["complete"] is False
    from fpjax.studies import capacity_run

    counted = []
    real = capacity_run.invert
    monkeypatch.setattr(
        capacity_run, "invert", lambda *given, **more: counted.append(1) or real(*given, **more)
    )
    resumed = run(scheme, tmp_path, resume=True)
    assert len(counted) == 2  # the second cell's
    for before, after in zip(whole[1]["cells"], resumed["cells"], strict=True):
        assert before == after


def test_what_does_not_fit_is_refused(whole, scheme, tmp_path):
    folder, _ = whole
    with pytest.raises(InputError, match="holds files already"):
        run(scheme, folder)
    with pytest.raises(InputError, match="begun with settings"):
        run(scheme, folder, resume=True, settings=dataclasses.replace(SETTINGS, draws=5))
    with pytest.raises(InputError, match="needs 64 directions: the basis has 16"):
        run(scheme, tmp_path, cells=[Cell("independent-64", 30.0)])
    with pytest.raises(InputError, match="not calibrated"):
        run(scheme.replace(calibration=None), tmp_path)
    with pytest.raises(InputError, match="between 0 and 1"):
        run(scheme, tmp_path, rates=(1.0,))
    for code in ("independent", "turbo-3", "bch-7-5", "independent-0"):
        with pytest.raises(InputError):
            Cell(code, 40.0)


def test_directions_in_the_middle_are_studied_where_they_are(tmp_path):
    flat = toys.generator(scale=0.3)
    made = flat.replace(
        latent_shape=(4, 4, 1),
        decode=lambda params, z: toys.linear_decode(params, z.reshape(len(z), -1)),
        sample_latents=lambda params, key, num: toys.sample(params, key, num).reshape(-1, 4, 4, 1),
    )
    blocks = fpjax.fit_basis(
        made, jax.random.key(0), 500, in_blocks=True, num_probes=64, num_jacobians=2
    )
    scheme = fpjax.Scheme.create(made, blocks, 6, shift=4, strength=0.5, keep_all=True)
    scheme = fpjax.calibrate(scheme, jax.random.key(1), num_start_images=200, num_inverted_images=2)
    settings = dataclasses.replace(SETTINGS, num_images=2, num_latents=1, draws=1)
    cells = [Cell("independent-6", 13.0), Cell("independent-13", 13.0)]
    whole = run(scheme, tmp_path / "study", settings=settings, cells=cells[:1])
    found = whole["cells"][0]
    study = Study(
        made,
        {"scheme": blocks.dense()},
        jax.random.split(jax.random.key(0))[0],
        num_latents=1,
        num_pictures=8,
        keep_all=True,
    )
    designs = [Design("scheme", 6, first, psnr=13.0) for first in (4, 10)]
    there, last = (float(study.scheme(design).strength) for design in designs)
    # Strengths are solved for to 0.01 dB, which is 0.1%.
    assert found["strength"] == pytest.approx(there, rel=2e-3)
    assert abs(last - there) > 0.1 * there
    assert found["measured"]["exact"] == 1
    with pytest.raises(InputError, match="needs 13 directions from 4 on: the basis has 16"):
        run(scheme, tmp_path / "other", settings=settings, cells=cells)
    # A folder of the last directions is not gone on with.
    file = tmp_path / "study" / "capacity.json"
    file.write_text(json.dumps({k: v for k, v in whole.items() if k != "first_direction"}))
    with pytest.raises(InputError, match="begun with first_direction None, not 4"):
        run(scheme, tmp_path / "study", settings=settings, cells=cells[:1], resume=True)


def test_the_page_shows_every_plot(whole):
    pytest.importorskip("matplotlib")
    folder, result = whole
    page, *plots = write_page(folder, result)
    plotted = ("users-independent-6", "users-bch-7-4", "usable-length")
    names = [f"{name}.{suffix}" for name in plotted for suffix in ("svg", "png")]
    assert set(names) <= {path.name for path in plots}
    text = page.read_text()
    assert "out of reach" in text and "BCH (7, 4)" in text
    assert all(path.stat().st_size > 2000 for path in plots)
    assert write_page(folder, result)[1].read_bytes() == plots[0].read_bytes()
