"""Color jitter."""

import pytest
import torch

from dpvla.training.augmentation import jitter_colors

IMAGES = torch.randint(0, 256, (4, 3, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_no_strength_leaves_the_images_alone() -> None:
    assert jitter_colors(IMAGES, 0.0) is IMAGES


def test_a_seed_gives_the_same_jitter_and_scenes_differ() -> None:
    torch.manual_seed(1)
    first = jitter_colors(IMAGES[:1].expand(4, -1, -1, -1, -1), 0.3)
    torch.manual_seed(1)
    assert torch.equal(first, jitter_colors(IMAGES[:1].expand(4, -1, -1, -1, -1), 0.3))
    assert not torch.equal(first[0], first[1])


def test_cameras_of_a_scene_change_alike() -> None:
    same = IMAGES[:, :1].expand(-1, 3, -1, -1, -1)
    torch.manual_seed(2)
    changed = jitter_colors(same, 0.4)
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])


def test_a_strength_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="color jitter"):
        jitter_colors(IMAGES, 1.0)
