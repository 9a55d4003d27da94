"""The estimator: the contract that people know from scikit-learn, over the kernels that serve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.base import clone

from allocator.core.best_arm import prob_best
from allocator.core.posterior import BetaPosterior
from allocator.errors import InvalidArgument, Refused
from allocator.simulation import BernoulliThompson

DECISIONS, REWARDS = [0, 0, 1, 1, 1, 2], [1, 0, 1, 1, 0, 0.25]


def test_the_posterior_is_the_conjugate_one():
    bandit = BernoulliThompson(3, prior=(2.0, 3.0)).fit(DECISIONS, REWARDS)
    assert bandit.successes_.tolist() == [3.0, 4.0, 2.25]
    assert bandit.failures_.tolist() == [4.0, 4.0, 3.75]


def test_batches_in_any_order_give_the_same_posterior():
    whole = BernoulliThompson(3).fit(DECISIONS, REWARDS)
    parts = BernoulliThompson(3).partial_fit(DECISIONS[4:], REWARDS[4:]).partial_fit(DECISIONS[:4], REWARDS[:4])
    assert (whole.successes_ == parts.successes_).all()
    assert (whole.failures_ == parts.failures_).all()


def test_fit_forgets_and_partial_fit_does_not():
    bandit = BernoulliThompson(3).fit(DECISIONS, REWARDS)
    assert bandit.partial_fit([0], [1]).successes_[0] == 3.0
    assert bandit.fit([0], [1]).successes_[0] == 2.0


def test_predictions_come_as_often_as_predict_proba_says():
    bandit = BernoulliThompson(3, random_state=1).fit(DECISIONS, REWARDS)
    shares = np.bincount(bandit.predict(100_000), minlength=3) / 100_000
    for found, share in zip(shares, bandit.predict_proba(), strict=True):
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / 100_000)


def test_predict_proba_is_what_the_server_computes():
    bandit = BernoulliThompson(3).fit(DECISIONS, REWARDS)
    served = prob_best(BetaPosterior(np.array([2.0, 3.0, 1.25]), np.array([2.0, 2.0, 1.75])))
    assert (bandit.predict_proba() == served).all()


def test_the_same_random_state_predicts_the_same():
    one, other = (BernoulliThompson(3, random_state=4).fit(DECISIONS, REWARDS) for _ in range(2))
    assert one.predict() == other.predict()
    assert (one.predict(50) == other.predict(50)).all()


def test_scikit_learn_can_clone_it():
    bandit = BernoulliThompson(4, prior=(1.0, 9.0), random_state=3)
    assert clone(bandit).get_params() == {"n_arms": 4, "prior": (1.0, 9.0), "random_state": 3}
    assert bandit.set_params(n_arms=5).n_arms == 5


def test_an_estimator_that_learned_nothing_says_so():
    with pytest.raises(Refused, match="call fit"):
        BernoulliThompson().predict()


@pytest.mark.parametrize(("decisions", "rewards"), [([3], [1]), ([0], [1.5]), ([0], [math.nan]), ([0, 1], [1])])
def test_what_is_not_allowed_teaches_nothing(decisions, rewards):
    bandit = BernoulliThompson(3).fit(DECISIONS, REWARDS)
    with pytest.raises(InvalidArgument):
        bandit.partial_fit(decisions, rewards)
    assert bandit.successes_.tolist() == [2.0, 3.0, 1.25]


@pytest.mark.parametrize(
    ("parameters", "field"), [({"n_arms": 1}, "n_arms"), ({"prior": (0, 1)}, "prior"), ({"random_state": "x"}, "random_state")]
)
def test_wrong_parameters_are_named(parameters, field):
    with pytest.raises(InvalidArgument) as caught:
        BernoulliThompson(**parameters).fit([0], [1])
    assert caught.value.violations[0].field == field


def test_an_unknown_parameter_is_refused():
    with pytest.raises(InvalidArgument, match="n_arms"):
        BernoulliThompson().set_params(epsilon=0.1)
