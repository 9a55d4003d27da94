"""Random numbers by counter: published known answers, a plain twin, and that a number depends on nothing but its place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from allocator.core.kernels import philox
from allocator.core.random_streams import uniforms, warm_up
from allocator.errors import InvalidArgument

WORD = st.integers(0, 2**32 - 1)


def plain(counter, key):
    """Philox4x32-10 as its paper writes it, in Python's integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        one, two = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (two >> 32) ^ b ^ k, two % 2**32, (one >> 32) ^ d ^ m, one % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def words(counter, key):
    return tuple(int(word) for word in philox.philox4x32(*(np.uint64(word) for word in (*counter, *key))))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_known_answers_of_random123_hold(counter, key, expected):
    assert words(counter, key) == expected
    assert plain(counter, key) == expected


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_the_kernel_agrees_with_a_plain_twin(counter, key):
    assert words(counter, key) == plain(counter, key)


@settings(deadline=None)
@given(seed=WORD, stream=WORD, replication=WORD, purpose=WORD, t0=st.integers(0, 2**63 - 8), n=st.integers(0, 8))
def test_a_number_is_its_half_of_the_block_at_its_place(seed, stream, replication, purpose, t0, n):
    expected = []
    for t in range(t0, t0 + n):
        block = plain((replication, t // 2 % 2**32, t // 2**33, purpose), (seed, stream))
        high, low = block[2:] if t % 2 else block[:2]
        expected.append((((high << 32 | low) >> 12) + 0.5) / 2**52)
    assert uniforms(seed, stream, replication, t0, n, purpose).tolist() == expected


@given(t0=st.integers(0, 1000), n=st.integers(0, 50), cut=st.integers(0, 50))
def test_numbers_do_not_depend_on_how_they_are_asked_for(t0, n, cut):
    cut = min(cut, n)
    parts = [uniforms(1, 2, 3, t0 + cut, n - cut), uniforms(1, 2, 3, t0, cut)]
    assert np.array_equal(np.concatenate(parts[::-1]), uniforms(1, 2, 3, t0, n))


def test_the_ends_are_never_reached():
    all_ones, none = np.uint64(2**32 - 1), np.uint64(0)
    assert philox.to_unit(none, none) == 2.0**-53
    assert philox.to_unit(all_ones, all_ones) == 1.0 - 2.0**-53
    assert philox.to_unit(np.uint64(2**31), none) == 0.5 + 2.0**-53


def test_numbers_are_uniform_and_one_step_tells_nothing_of_the_next():
    """Kolmogorov-Smirnov, and a chi-square of consecutive pairs in a grid of 16 by 16; a fixed seed, at the level of one in a million."""
    numbers = uniforms(7, 0, 0, 0, 400_000)
    assert kstest(numbers, "uniform").pvalue > 1e-6
    table = np.bincount((numbers[::2] * 16).astype(int) * 16 + (numbers[1::2] * 16).astype(int), minlength=256)
    expected = numbers.size / 2 / 256
    assert chi2.sf(((table - expected) ** 2 / expected).sum(), 255) > 1e-6


@pytest.mark.parametrize("place", range(5))
def test_places_that_differ_anywhere_give_unrelated_numbers(place):
    """Correlation of 100,000 pairs within five standard errors of 0; the last place is the purpose."""
    base, other = [1, 2, 3, 0, 0], [1, 2, 3, 0, 0]
    other[place] += 1_000_000
    one, two = (uniforms(*where[:4], 100_000, where[4]) for where in (base, other))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5.0 / math.sqrt(100_000)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1, 0, 0, 0, 1), "seed"),
        ((2**32, 0, 0, 0, 1), "seed"),
        ((1.0, 0, 0, 0, 1), "seed"),
        ((0, 2**32, 0, 0, 1), "stream"),
        ((0, 0, True, 0, 1), "replication"),
        ((0, 0, 0, 2**63, 0), "t0"),
        ((0, 0, 0, 0, -1), "n"),
        ((0, 0, 0, 2**63 - 1, 2), "n"),
        ((0, 0, 0, 0, 1, 2**32), "purpose"),
    ],
)
def test_a_place_that_does_not_exist_is_refused_by_name(arguments, field):
    with pytest.raises(InvalidArgument) as caught:
        uniforms(*arguments)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_warming_up_leaves_nothing_to_compile():
    warm_up()
    before = len(philox.uniforms.signatures)
    uniforms(2**32 - 1, 1, 1, 2**40, 3, purpose=9)
    assert len(philox.uniforms.signatures) == before
