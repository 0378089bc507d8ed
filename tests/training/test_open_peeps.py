"""The data set: the same picture for the same seed, and TFDS reads back what was drawn."""

import numpy as np
import pytest

pytest.importorskip("dicebear", reason="needs fpjax[data]")


def test_a_seed_always_gives_the_same_face_on_white():
    from fpjax.training.avatars import render_avatar

    one, same = (render_avatar("train-0") for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert one.shape == (32, 32, 3) and one.dtype == np.uint8
    assert (one[0, 0] == 255).all() and (one < 100).any()
    assert not np.array_equal(one, render_avatar("train-1"))


def test_small_images_are_box_filtered_from_the_large_drawing():
    from fpjax.training.avatars import box_downsample, render_avatar

    large = render_avatar("a", 128)
    np.testing.assert_array_equal(render_avatar("a", 32), box_downsample(large, 32))
    with pytest.raises(ValueError, match="not a whole factor"):
        render_avatar("a", 48)


def test_an_unknown_style_is_named():
    from fpjax.training.avatars import render_avatar

    with pytest.raises(ValueError, match="no style named 'nobody'"):
        render_avatar("a", style="nobody")


def test_the_builder_needs_no_tensorflow_and_keeps_order(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs fpjax[data]")
    from fpjax.training.avatars import render_avatar
    from fpjax.training.open_peeps import OpenPeeps, OpenPeepsConfig, load_open_peeps

    config = OpenPeepsConfig(name="tiny", resolution=16, num_train=5, num_test=3)
    builder = OpenPeeps(data_dir=str(tmp_path), config=config)
    images = load_open_peeps(tmp_path, "test", 16, builder=builder)
    assert images.shape == (3, 16, 16, 3)
    for i in range(3):
        np.testing.assert_array_equal(images[i], render_avatar(f"test-{i}", 16))
