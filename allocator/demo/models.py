"""The demo's three model versions, trained on scikit-learn's handwritten digits.

In: a seed. Out: the versions, and the images that none of them has seen. 1,797 images of 8 x 8 pixels, brightness 0
to 16; 797 train.

- digits-v1, the incumbent: a small logistic regression that sees 4 x 4 pixels. Right on about 9 images in 10.
- digits-v2, better: a support vector machine on all 64 pixels. Right on about 99 in 100.
- digits-v3, broken: digits-v2 behind a check that refuses images with too many pixels at full brightness. Its limit
  was tuned on another scanner, so here it raises on two images in five, as a bad release does: often, not always.

A version that is merely worse was dropped as the broken one: the weights alone would starve it, and no guardrail
would be seen at work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

INCUMBENT, BETTER, BROKEN = "digits-v1", "digits-v2", "digits-v3"
TRAINING_IMAGES = 797
FULL_BRIGHTNESS = 16
MOST_FULL_PIXELS = 6  # digits-v3 refuses images with more pixels at full brightness: 41 % of all

Images = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Study:
    """The versions, and what they are tried on.

    models: by name, each from one image, (64,), to its digit; it may raise ValueError. images: (n, 64), labels: (n,),
    held out.
    """

    models: Mapping[str, Callable[[Images], int]]
    images: Images
    labels: NDArray[np.int64]

    def attempt(self, name: str, index: int) -> tuple[bool, bool]:
        """Run a version on a held-out image: was its answer right, did it fail?"""
        try:
            return self.models[name](self.images[index]) == self.labels[index], False
        except ValueError:
            return False, True

    def accuracy(self, name: str) -> float:
        """Share of the held-out images that a version reads right; one that it fails on counts as wrong."""
        return float(np.mean([self.attempt(name, index)[0] for index in range(len(self.labels))]))


def train(seed: int) -> Study:
    """Train the three versions. seed: 0 to 2**32 - 1; it fixes the split, and with it everything else."""
    digits = load_digits()
    seen, images, answers, labels = train_test_split(
        digits.data, digits.target, train_size=TRAINING_IMAGES, random_state=seed, stratify=digits.target
    )
    small = LogisticRegression(C=10.0, max_iter=1000).fit(_coarse(seen), answers)
    large = SVC(gamma=0.001).fit(seen, answers)

    def v1(image: Images) -> int:
        return int(small.predict(_coarse(image[None]))[0])

    def v2(image: Images) -> int:
        return int(large.predict(image[None])[0])

    def v3(image: Images) -> int:
        full = int((image >= FULL_BRIGHTNESS).sum())
        if full > MOST_FULL_PIXELS:
            raise ValueError(f"overexposed: {full} pixels at full brightness, at most {MOST_FULL_PIXELS} are expected")
        return v2(image)

    return Study({INCUMBENT: v1, BETTER: v2, BROKEN: v3}, images, labels)


def _coarse(images: Images) -> Images:
    """(n, 64) → (n, 16): the mean of each 2 x 2 pixels, in [0, 1]."""
    return images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / FULL_BRIGHTNESS
