"""P(best), expected loss and value remaining.

Expectations come from worked examples, closed forms (finite sums, the incomplete beta function, the normal distribution), and a
slow twin that integrates textbook densities at 30 digits.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from allocator.core import best_arm as module
from allocator.core.best_arm import best_arm, chance_of_more, expected_loss, prob_best, value_remaining
from allocator.core.kernels import quadrature
from allocator.core.posterior import BetaPosterior, GammaPosterior, NormalPosterior, StudentPosterior, family_of
from allocator.errors import InvalidArgument

from . import oracles_reward as oracle


def beta(*counts):
    a, b = np.array(counts, float).T
    return BetaPosterior(a, b)


WORKED = [
    (beta((1, 1), (1, 1), (1, 1)), [1 / 3] * 3, [0.25] * 3, 0.75),
    (
        beta((3, 9), (5, 7)),
        [0.1807275541796, 0.8192724458204],
        [0.1851303450442, 0.01846367837753],
        0.4351303450442,
    ),
    (
        beta((51, 951), (61, 941), (1, 1)),
        [0.009634127200468, 0.05213758195701, 0.9382282908425],
        [0.4510337070331, 0.441053667113, 0.001931910625939],
        None,
    ),
    (
        beta((1, 1), (20000001, 980000001), (20001001, 979999001)),
        [0.979996969444198, 0.0087322721367186, 0.0112707584190834],
        None,
        None,
    ),
    (
        beta((5e8, 5e8), (500020000, 499980000), (500010000, 499990000), (3, 2)),
        [0.0358794664212586, 0.188117451691435, 0.0885419818484016, 0.687461100038904],
        None,
        None,
    ),
    (
        beta((1e9 + 1, 1), (101, 1), (11, 1), (1, 1)),
        [0.999999887000013, 1.00999988486e-7, 1.09999987460e-8, 9.9999988600e-10],
        None,
        None,
    ),
    (
        beta(*[(11, 91)] * 50, *[(12, 90)] * 49, (101, 901)),
        [0.0065235608714588] * 50 + [0.0137514684971526] * 49 + [6.65847058915723e-11],
        None,
        None,
    ),
    (
        beta((4001, 96001), (4301, 95701), (3900, 96100)),
        None,
        [0.0030000295165062, 8.95153062e-8, 0.0040092293325099],
        0.0430092293325,
    ),
]


@pytest.mark.parametrize(("posterior", "prob", "loss", "expected_best"), WORKED)
def test_the_worked_examples_come_out(posterior, prob, loss, expected_best):
    got = best_arm(posterior)
    if prob is not None:
        np.testing.assert_allclose(got.prob_best, prob, rtol=0, atol=2e-12)
    if loss is not None:
        np.testing.assert_allclose(got.expected_loss, loss, rtol=3e-9, atol=2e-13)
    if expected_best is not None:
        assert got.expected_best == pytest.approx(expected_best, abs=1e-12)


def _twin(family, rows):
    arms = np.array(rows, float).T
    posterior = {"beta": BetaPosterior, "gamma": GammaPosterior, "student": StudentPosterior, "normal": NormalPosterior}[family](*arms)
    return posterior, [getattr(oracle, family)(*row) for row in rows]


@pytest.mark.parametrize(
    ("family", "rows", "loss_error"),
    [
        ("beta", [(0.01, 0.01), (0.01, 1), (1, 0.01)], 1e-13),  # the smallest pseudo-counts allowed
        ("beta", [(0.01, 1e9), (0.02, 2e9), (1, 1e9)], 1e-16),
        ("beta", [(1e9 + 1, 1), (1e9, 1), (1e9, 2)], 1e-15),  # all successes
        ("beta", [(0.01, 0.01), (1e6, 1e6), (5, 3)], 1e-12),
        ("beta", [(5e11, 5e11), (5e11 + 5e5, 5e11), (7, 7)], 1e-13),
        ("gamma", [(11, 100), (21, 250)], 1e-11),
        ("gamma", [(1e9, 1e9), (1e9 + 2e4, 1e9), (1, 1)], 1e-9),
        pytest.param("gamma", [(0.01, 0.01), (0.01, 1), (1, 1)], 1e-8, marks=pytest.mark.slow),
        ("normal", [(0, 1), (0.5, 0.1), (1, 1e-4)], 1e-11),
        ("normal", [(1e6, 1e-3), (1e6 + 1e-3, 1e-3)], 1e-13),
        ("student", [(2, 0, 1), (2, 0, 1)], 2e-8),  # no data at all: the mean has no variance
        pytest.param("student", [(2, 0, 1), (3, 1, 0.1), (7, 0.5, 2)], 2e-8, marks=pytest.mark.slow),
        ("student", [(1e9, 0, 1e-5), (1e9, 1e-5, 1e-5)], 1e-13),
    ],
)
def test_integrals_agree_with_a_slow_twin_at_30_digits(family, rows, loss_error):
    posterior, arms = _twin(family, rows)
    prob, loss, expected_best = oracle.best_arm(arms)
    got = best_arm(posterior)
    np.testing.assert_allclose(got.prob_best, prob, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got.expected_loss, loss, rtol=0, atol=loss_error)
    assert got.expected_best == pytest.approx(expected_best, abs=loss_error + 1e-15 * abs(expected_best))


@pytest.mark.parametrize(("a", "b", "c", "d"), [(51, 451, 61, 441), (1, 1, 1, 1), (3, 500, 40, 9000), (120, 80, 119, 82)])
def test_two_betas_agree_with_the_finite_sum(a, b, c, d):
    assert prob_best(beta((a, b), (c, d)))[0] == pytest.approx(oracle.beats_in_closed_form(a, b, c, d), abs=1e-11)


def test_the_finite_sum_gives_the_published_digits():
    assert oracle.beats_in_closed_form(51, 451, 61, 441) == pytest.approx(0.157076718830256, abs=1e-14)


def test_two_gammas_agree_with_the_incomplete_beta_function():
    got = prob_best(GammaPosterior([11, 21], [100, 250]))[0]
    assert got == pytest.approx(0.7481975805972, abs=1e-12)
    assert got == pytest.approx(1 - special.betainc(11, 21, 100 / 350), abs=1e-13)


def test_two_normals_agree_with_the_normal_distribution():
    posterior = NormalPosterior([0.3, 0.1], [0.2, 0.15])
    gap, spread = -0.2, np.hypot(0.2, 0.15)
    got = best_arm(posterior)
    assert got.prob_best[1] == pytest.approx(stats.norm.cdf(gap / spread), abs=1e-14)
    loss = spread * stats.norm.pdf(gap / spread) + gap * stats.norm.cdf(gap / spread)  # E[(arm 1 - arm 0)+]
    assert got.expected_loss[0] == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("arms", [1, 2, 7, 100])
@pytest.mark.parametrize("family", ["beta", "gamma", "normal", "student"])
def test_equal_arms_are_equally_likely_to_be_best(arms, family):
    rows = {"beta": (3, 40), "gamma": (5, 7), "normal": (2, 3), "student": (4, 2, 3)}[family]
    prob = prob_best(_twin(family, [rows] * arms)[0])
    np.testing.assert_allclose(prob, 1 / arms, rtol=0, atol=1e-14)


def test_arms_a_million_standard_errors_apart_are_told_apart_for_certain():
    got = best_arm(NormalPosterior([0.0, 1e6, -1e6], [1.0, 1.0, 0.5]))
    np.testing.assert_array_equal(got.prob_best, [0, 1, 0])
    np.testing.assert_allclose(got.expected_loss, [1e6, 0, 2e6], rtol=1e-15, atol=1e-15)


def _random(family, rng, arms):
    if family == "beta":
        n = 10 ** rng.uniform(0, 6, arms)
        rate = rng.beta(1, 4) * np.exp(rng.normal(size=arms) / np.sqrt(n))
        rate = np.clip(rate, 0, 1)
        return BetaPosterior(1 + n * rate, 1 + n * (1 - rate))
    if family == "gamma":
        shape = 10 ** rng.uniform(-0.5, 4, arms)
        return GammaPosterior(shape, shape * np.exp(rng.normal(size=arms) / np.sqrt(shape)))
    if family == "normal":
        return NormalPosterior(rng.normal(size=arms), 10 ** rng.uniform(-2, 1, arms))
    return StudentPosterior(2 + 10 ** rng.uniform(0, 4, arms), rng.normal(size=arms), 10 ** rng.uniform(-2, 1, arms))


FAMILIES = ["beta", "gamma", "normal", "student"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_million_draws_agree_within_five_standard_errors(family, seed):
    rng = np.random.default_rng(seed)
    posterior = _random(family, rng, 4)
    n = 1_000_000
    draws = {
        "beta": lambda: rng.beta(posterior.a, posterior.b, (n, 4)),
        "gamma": lambda: rng.gamma(posterior.shape, 1 / posterior.rate, (n, 4)),
        "normal": lambda: rng.normal(posterior.mean, posterior.sd, (n, 4)),
        "student": lambda: posterior.mean + posterior.scale * rng.standard_t(posterior.nu, (n, 4)),
    }[family]()
    for maximise in (True, False):
        towards = draws if maximise else -draws
        share = np.bincount(towards.argmax(axis=1), minlength=4) / n
        got = best_arm(posterior, maximise=maximise)
        error = 5 * np.sqrt(got.prob_best * (1 - got.prob_best) / n) + 1e-6
        assert (abs(got.prob_best - share) <= error).all()
        regret = towards.max(axis=1, keepdims=True) - towards
        assert (abs(got.expected_loss - regret.mean(axis=0)) <= 5 * regret.std(axis=0) / np.sqrt(n) + 1e-9).all()
        best = draws.max(axis=1) if maximise else draws.min(axis=1)
        assert abs(got.expected_best - best.mean()) <= 5 * best.std() / np.sqrt(n)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(10))
def test_narrower_panels_change_nothing(family, seed):
    rng = np.random.default_rng(seed)
    posterior = _random(family, rng, int(rng.integers(2, 30)))
    number, parameters = family_of(posterior)
    prob, loss, error = quadrature.best_arm(number, parameters, quadrature.PANEL)
    finer_prob, finer_loss, finer_error = quadrature.best_arm(number, parameters, quadrature.PANEL / 2)
    assert max(error, finer_error) < 1e-10
    np.testing.assert_allclose(prob, finer_prob, rtol=0, atol=1e-11)
    np.testing.assert_allclose(loss, finer_loss, rtol=0, atol=1e-8 * loss.max())


def test_too_wide_panels_are_noticed_and_halved_or_refused(monkeypatch):
    posterior = beta((30, 70), (29, 71), (500, 900))
    right = prob_best(posterior)
    number, parameters = family_of(posterior)
    rough, _, error = quadrature.best_arm(number, parameters, 12.0)
    assert error > module.TOLERANCE
    assert abs(rough - right).max() > module.TOLERANCE
    monkeypatch.setattr(module, "_PANELS", (12.0, quadrature.PANEL))
    np.testing.assert_array_equal(prob_best(posterior), right)
    monkeypatch.setattr(module, "_PANELS", (12.0,))
    for integral in (lambda: best_arm(posterior), lambda: chance_of_more(posterior, 0, 0.1)):
        with pytest.raises(InvalidArgument, match="too much to integrate") as refused:
            integral()
        assert refused.value.reason == "NOT_INTEGRABLE"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_arms_does_not_matter(family):
    rng = np.random.default_rng(3)
    posterior = _random(family, rng, 6)
    got = best_arm(posterior)
    fields = [getattr(posterior, name) for name in posterior.__dataclass_fields__]
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 90):
        shuffled = best_arm(type(posterior)(*(field[list(order)] for field in fields)))
        np.testing.assert_allclose(shuffled.prob_best, got.prob_best[list(order)], rtol=0, atol=1e-12)
        np.testing.assert_allclose(shuffled.expected_loss, got.expected_loss[list(order)], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [0, 10, 10_000, 10**9])
def test_one_more_success_raises_an_arms_chance_and_lowers_its_loss(n):
    before = best_arm(beta((1 + 0.3 * n, 1 + 0.7 * n), (2 + 0.3 * n, 1 + 0.7 * n), (1, 2)))
    after = best_arm(beta((2 + 0.3 * n, 1 + 0.7 * n), (2 + 0.3 * n, 1 + 0.7 * n), (1, 2)))
    assert after.prob_best[0] > before.prob_best[0]
    assert after.prob_best[1] < before.prob_best[1]
    assert after.expected_loss[0] < before.expected_loss[0]
    assert after.expected_best > before.expected_best


@given(
    family=st.sampled_from(FAMILIES),
    rows=st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8),
    maximise=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_every_valid_posterior_gives_finite_answers_that_belong_together(family, rows, maximise):
    x, y, z = np.array(rows).T
    posterior = {
        "beta": lambda: BetaPosterior(10 ** (17 * y - 2), 10 ** (17 * z - 2)),
        "gamma": lambda: GammaPosterior(10 ** (17 * y - 2), 10 ** (30 * z - 15)),
        "normal": lambda: NormalPosterior(x * 10 ** (30 * y - 15), 10 ** (30 * z - 15)),
        "student": lambda: StudentPosterior(2 + 10 ** (12 * y) - 1, x, 10 ** (8 * z - 6)),
    }[family]()
    got = best_arm(posterior, maximise=maximise)
    assert got.prob_best.sum() == pytest.approx(1, abs=1e-10)
    assert (got.prob_best >= 0).all()
    assert np.isfinite(got.expected_loss).all()
    sign = 1 if maximise else -1
    size = max(got.expected_loss.max(), abs(posterior.mean).max() * 1e-6)
    assert got.expected_loss.min() >= -1e-9 * size
    np.testing.assert_allclose(sign * (got.expected_best - posterior.mean), got.expected_loss, rtol=0, atol=1e-6 * size)
    if len(rows) > 1:
        more = chance_of_more(posterior, 0, 0.0, maximise=maximise)
        assert more == pytest.approx(1 - got.prob_best[0], abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_ineligible_arms_are_left_out_before_integrating(family):
    rng = np.random.default_rng(8)
    posterior = _random(family, rng, 5)
    eligible = np.array([True, False, True, True, False])
    fields = [getattr(posterior, name)[eligible] for name in posterior.__dataclass_fields__]
    for maximise in (True, False):
        got = best_arm(posterior, eligible, maximise)
        alone = best_arm(type(posterior)(*fields), maximise=maximise)
        np.testing.assert_array_equal(got.prob_best[eligible], alone.prob_best)
        np.testing.assert_array_equal(got.prob_best[~eligible], 0.0)
        np.testing.assert_array_equal(got.expected_loss[eligible], alone.expected_loss)
        assert got.expected_best == alone.expected_best
        gap = got.expected_best - posterior.mean[~eligible]
        np.testing.assert_allclose(got.expected_loss[~eligible], gap if maximise else -gap, rtol=1e-12)


def test_a_single_eligible_arm_is_best_without_loss():
    got = best_arm(beta((1, 9), (9, 1)), [True, False])
    np.testing.assert_array_equal(got.prob_best, [1, 0])
    assert got.expected_loss[0] == 0
    assert got.expected_loss[1] == pytest.approx(0.1 - 0.9)
    assert got.expected_best == pytest.approx(0.1)


def test_small_values_are_best_when_minimising():
    got, mirrored = best_arm(beta((3, 9), (5, 7)), maximise=False), best_arm(beta((9, 3), (7, 5)))
    np.testing.assert_array_equal(got.prob_best, mirrored.prob_best)
    np.testing.assert_array_equal(got.expected_loss, mirrored.expected_loss)
    assert got.expected_best == pytest.approx(1 - mirrored.expected_best, abs=1e-15)
    gammas = GammaPosterior([11, 21], [100, 250])
    np.testing.assert_allclose(prob_best(gammas, maximise=False), prob_best(gammas)[::-1], rtol=0, atol=1e-13)  # of two, one is best
    np.testing.assert_allclose(expected_loss(gammas, maximise=False), expected_loss(gammas)[::-1], rtol=1e-9)


def test_value_remaining_between_two_uniform_arms_has_a_closed_form():
    two = beta((1, 1), (1, 1))
    for gain in (0.0, 1e-9, 0.05, 0.5, 1.0, 30.0):
        assert chance_of_more(two, 0, gain) == pytest.approx(1 / (2 * (1 + gain)), abs=1e-12)
    for gain in (0.0, 1e-9, 0.05, 0.5, 0.999, 1.0):
        assert chance_of_more(two, 0, gain, maximise=False) == pytest.approx((1 - gain) / 2, abs=1e-12)
    assert value_remaining(two, 0) == pytest.approx(9.0, rel=1e-9)  # 1 / (2 (1 + 9)) = 0.05
    assert value_remaining(two, 0, maximise=False) == pytest.approx(0.9, rel=1e-9)


def test_value_remaining_between_two_gammas_follows_the_ratio_of_their_rates():
    two = GammaPosterior([11, 21], [100, 250])
    for gain in (0.0, 0.01, 0.5, 2.0):
        ratio = 21 / 11 * 100 / 250  # F(42, 22) times this is rate 1 over rate 0
        assert chance_of_more(two, 0, gain) == pytest.approx(stats.f.sf((1 + gain) / ratio, 42, 22), abs=1e-12)
        if gain < 1:
            assert chance_of_more(two, 0, gain, maximise=False) == pytest.approx(stats.f.cdf((1 - gain) / ratio, 42, 22), abs=1e-12)


def test_value_remaining_between_two_normals_is_a_difference():
    two, spread = NormalPosterior([0.3, 0.1], [0.2, 0.15]), np.hypot(0.2, 0.15)
    assert chance_of_more(two, 0, 0.07) == pytest.approx(stats.norm.sf(0.27 / spread), abs=1e-13)
    assert chance_of_more(two, 0, 0.07, maximise=False) == pytest.approx(stats.norm.cdf(0.13 / spread), abs=1e-13)
    assert value_remaining(two, 0) == pytest.approx(-0.2 + spread * stats.norm.isf(0.05), rel=1e-9)


def _plain_chance(arms, arm, gain, maximise):
    """P(the best other beats the arm by a share `gain`), in the arm's own probability, cut where the others are certain to lose."""
    mine, others = arms[arm], [a for i, a in enumerate(arms) if i != arm]
    edges = np.concatenate([np.geomspace(1e-14, 0.1, 40), np.linspace(0.1, 0.9, 60)[1:], 1 - np.geomspace(1e-14, 0.1, 40)[::-1]])
    edges = np.unique(np.concatenate([[0, 1], edges, [mine.cdf(1 / (1 + gain))] if maximise else []]))
    nodes, weights = np.polynomial.legendre.leggauss(30)
    u = (edges[:-1, None] + edges[1:, None]) / 2 + np.diff(edges)[:, None] / 2 * nodes
    x = mine.ppf(u)
    if maximise:
        lose = np.prod([other.cdf(x * (1 + gain)) for other in others], axis=0)
    else:
        lose = np.prod([other.sf(x * (1 - gain)) for other in others], axis=0)
    return float((np.diff(edges)[:, None] / 2 * weights * (1 - lose)).sum())


@pytest.mark.parametrize("counts", [[(3, 9), (5, 7), (2, 2)], [(900, 100), (950, 50), (3, 1)], [(50, 950), (55, 945), (1, 1)]])
@pytest.mark.parametrize("maximise", [True, False])
def test_value_remaining_among_three_betas_agrees_with_plain_integration(counts, maximise):
    arms = [stats.beta(*count) for count in counts]
    for arm, gain in itertools.product(range(3), (1e-4, 0.05, 0.6)):
        expected = _plain_chance(arms, arm, gain, maximise)
        assert chance_of_more(beta(*counts), arm, gain, maximise=maximise) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("maximise", [True, False])
def test_value_remaining_is_the_quantile_of_the_chance_of_more(family, maximise):
    rng = np.random.default_rng(11)
    posterior = _random(family, rng, 4)
    for arm, level in itertools.product(range(4), (0.5, 0.95, 0.999)):
        value = value_remaining(posterior, arm, level, maximise=maximise)
        chance = chance_of_more(posterior, arm, value, maximise=maximise)
        if value == 0:
            assert chance <= 1 - level
        else:
            assert chance == pytest.approx(1 - level, abs=1e-8)


def test_no_value_remains_where_no_other_arm_is_eligible():
    two = beta((3, 9), (5, 7))
    assert value_remaining(two, 0, eligible=[True, False]) == 0
    assert chance_of_more(two, 0, 0.0, eligible=[False, True]) == chance_of_more(two, 0, 0.0)  # the arm itself need not be eligible


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: best_arm(p, [True]), "eligible"),
        (lambda p: best_arm(p, [1, 0]), "eligible"),
        (lambda p: best_arm(p, [False, False]), "eligible"),
        (lambda p: best_arm(p.mean), "posterior"),
        (lambda p: chance_of_more(p, 2, 0.1), "arm"),
        (lambda p: chance_of_more(p, -1, 0.1), "arm"),
        (lambda p: chance_of_more(p, 0, -0.1), "gain"),
        (lambda p: chance_of_more(p, 0, float("nan")), "gain"),
        (lambda p: chance_of_more(p, 0, 1.1, maximise=False), "gain"),
        (lambda p: value_remaining(p, 0, 1.0), "level"),
        (lambda p: value_remaining(p, 0, float("nan")), "level"),
    ],
)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call(beta((3, 9), (5, 7)))


def test_warming_up_leaves_nothing_to_compile():
    module.warm_up()
    compiled = [quadrature.best_arm, quadrature.chance_of_more, quadrature.quantiles]
    before = [len(kernel.signatures) for kernel in compiled]
    for family, maximise in itertools.product(FAMILIES, (True, False)):
        posterior = _random(family, np.random.default_rng(0), 3)
        best_arm(posterior, [True, True, False], maximise)
        value_remaining(posterior, 1, maximise=maximise)
    assert before == [len(kernel.signatures) for kernel in compiled] == [1, 1, 1]
