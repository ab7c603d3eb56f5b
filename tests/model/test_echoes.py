"""A picture matched with itself: what was copied is found, moved, turned and scaled; nothing is in a picture without copies."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.echoes import ECHOES, FAR, KEY, PAIRS, QUERY, agreement, describe, echoes, matches

SIDE = 192
COPY = slice(104, 168)  # rows and columns of the copy, 64 pixels from what it shows


def textured(seed: int) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3] that nowhere repeats itself."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def with_copy(seed: int, angle: float, scale: float) -> Tensor:
    """[1, 3, SIDE, SIDE] grey levels; the part around (72, 72) is seen again around (136, 136)."""
    rgb = textured(seed)
    matrix = cv2.getRotationMatrix2D((72, 72), angle, scale)
    matrix[:, 2] += 64
    rgb[COPY, COPY] = cv2.warpAffine(rgb, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC)[COPY, COPY]
    return levels(rgb)


def levels(rgb: np.ndarray) -> Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float()


def inside(maps: Tensor) -> Tensor:
    """Of [..., SIDE / 8, SIDE / 8] what lies within the copy, a neighbourhood from its edge."""
    few = slice(COPY.start // QUERY + 2, COPY.stop // QUERY - 2)
    return maps[..., few, few]


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (25, 1.0), (-40, 1.0), (0, 1.2), (15, 0.9)])
def test_neighbours_agree_in_a_copy(angle: float, scale: float) -> None:
    """More than a third of all pairs there, next to none in the same picture before; the match lies where the copy was taken."""
    where, _ = matches(describe(with_copy(0, angle, scale))[0])
    before, _ = matches(describe(levels(textured(0)))[0])
    counts = [agreement(maps[None].float(), *PAIRS[0])[0] for maps in (where, before)]
    assert inside(counts[0]).mean() > 4
    assert counts[1].mean() < 0.5
    assert_close(inside(where[0]).median(), torch.tensor(72.0), rtol=0, atol=16)


def test_a_match_is_the_nearest_description_far_away() -> None:
    """As all distances computed one by one say."""
    described = describe(levels(textured(1)))[0]
    where, unlike = matches(described)
    looking = described[:, ::2, ::2].flatten(1).T
    places = torch.cartesian_prod(*[torch.arange(SIDE // KEY) * float(KEY)] * 2)
    queries = places.view(SIDE // KEY, SIDE // KEY, 2)[::2, ::2].flatten(0, 1)
    distances = torch.cdist(looking, described.flatten(1).T, compute_mode="donot_use_mm_for_euclid_dist")
    distances[torch.cdist(queries, places, compute_mode="donot_use_mm_for_euclid_dist") < FAR] = torch.inf
    nearest, index = distances.min(1)
    assert_close(unlike.flatten(), nearest, rtol=1e-3, atol=1e-2)
    assert (places[index] == where.flatten(1).T).all(1).float().mean() > 0.99  # a tie may fall either way


@pytest.mark.parametrize("way", ["turned", "mirrored"])
def test_descriptions_stay_when_a_picture_is(way: str) -> None:
    """Turned a quarter or mirrored; each place moves by less than a key's distance, which changes it less than another place would."""
    there = (lambda x: x.rot90(1, (-2, -1))) if way == "turned" else (lambda x: x.flip(-1))
    back = (lambda x: x.rot90(-1, (-2, -1))) if way == "turned" else there
    rgb = levels(textured(2))
    first, again = describe(rgb), back(describe(there(rgb)))
    apart = (first - first.roll(12, -1)).square().mean()
    assert (again - first)[..., 4:-4, 4:-4].square().mean() < apart / 4


def test_pictures_do_not_depend_on_their_batch() -> None:
    """More than are described at a time, each alone or together."""
    batch = torch.cat([levels(textured(seed)) for seed in range(5)])
    together = echoes(batch)
    assert together.shape == (5, ECHOES, SIDE // 8, SIDE // 8)
    assert together.dtype == torch.float32
    for one, picture in zip(together, batch, strict=True):
        assert_close(echoes(picture[None])[0], one, rtol=0, atol=1e-3)


def test_a_flat_picture_has_finite_echoes() -> None:
    """Everywhere is like everywhere."""
    made = echoes(torch.full((1, 3, 64, 64), 100.0))
    assert made.isfinite().all()
    assert made[:, -1].max() < 0.1


def test_a_picture_too_small_for_a_copy_is_refused() -> None:
    with pytest.raises(ValueError, match="pictures of 48 pixels a side: expected at least 64"):
        echoes(torch.zeros(1, 3, 48, 48))
