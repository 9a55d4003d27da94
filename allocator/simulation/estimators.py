"""A bandit as an estimator: `fit` on decisions and rewards, `predict` an arm, in the manner of scikit-learn.

In: arms chosen and rewards seen, as arrays. Out: the next arm, by a posterior draw, or the exact probability that each arm is best, which
is what production turns into weights. Thin: the draw is the simulation's kernel, the probability is the server's.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.best_arm import prob_best
from allocator.core.kernels.bandit import best_draws
from allocator.core.posterior import BetaPosterior
from allocator.core.statistics import COUNT, MICRO, TOTAL, add_outcomes
from allocator.errors import InvalidArgument, Refused, Violation
from allocator.simulation.parallel import RandomState, root_seed


class BernoulliThompson:
    """Thompson sampling on rewards in [0, 1], with Beta posteriors.

    n_arms: at least 2. prior: (successes, failures), above 0. random_state: an int, a SeedSequence, a Generator, or None. After `fit`:
    `successes_` and `failures_`, float64 (n_arms,), the posterior's parameters.
    """

    _PARAMETERS = ("n_arms", "prior", "random_state")

    def __init__(self, n_arms: int = 2, *, prior: tuple[float, float] = (1.0, 1.0), random_state: RandomState = None) -> None:
        self.n_arms = n_arms
        self.prior = prior
        self.random_state = random_state

    def fit(self, decisions: ArrayLike, rewards: ArrayLike) -> Self:
        """Learn from these outcomes alone, forgetting any before.

        decisions: integers (n,), indices of arms. rewards: numbers in [0, 1], (n,). Raises InvalidArgument; then nothing was learned.
        """
        self._check()
        sums = add_outcomes(np.zeros((self.n_arms, 4), np.int64), decisions, rewards)
        self._rng = np.random.Generator(np.random.PCG64(root_seed(self.random_state)))
        return self._keep(sums)

    def partial_fit(self, decisions: ArrayLike, rewards: ArrayLike) -> Self:
        """Learn from these outcomes as well. Batches in any order and of any size give the same posterior, to the last bit."""
        if not hasattr(self, "_sums"):
            return self.fit(decisions, rewards)
        return self._keep(add_outcomes(self._sums, decisions, rewards))

    def predict(self, n: int | None = None) -> int | NDArray[np.int64]:
        """The next arm: the best in a draw from the posterior. n: so many arms, int64 (n,), each from a draw of its own."""
        self._fitted()
        if n is not None and not (isinstance(n, int | np.integer) and n >= 0):
            raise InvalidArgument.of_field("n", f"got {n!r}; a whole number of at least 0 is allowed")
        arms = np.empty(1 if n is None else n, np.int64)
        best_draws(self._rng, self.successes_, self.failures_, arms)
        return int(arms[0]) if n is None else arms

    def predict_proba(self) -> NDArray[np.float64]:
        """The chance of each arm in `predict`: the exact probability that it is best, float64 (n_arms,)."""
        self._fitted()
        return prob_best(BetaPosterior(self.successes_, self.failures_))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments. deep: accepted for scikit-learn; there is nothing below."""
        del deep
        return {name: getattr(self, name) for name in self._PARAMETERS}

    def set_params(self, **params: Any) -> Self:
        """Replace constructor arguments; they take effect at the next `fit`. Raises InvalidArgument for an unknown name."""
        known = ", ".join(self._PARAMETERS)
        unknown = [Violation(name, f"is no parameter; {known} are") for name in params if name not in self._PARAMETERS]
        if unknown:
            raise InvalidArgument(violations=unknown)
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def _keep(self, sums: NDArray[np.int64]) -> Self:
        self._sums = sums
        count, total = sums[:, COUNT], sums[:, TOTAL] / MICRO
        self.successes_ = self.prior[0] + total
        self.failures_ = self.prior[1] + (count - total)
        return self

    def _check(self) -> None:
        found = []
        if not (isinstance(self.n_arms, int | np.integer) and self.n_arms >= 2):
            found.append(Violation("n_arms", f"got {self.n_arms!r}; a whole number of at least 2 is allowed"))
        if len(self.prior) != 2 or not all(isinstance(value, int | float) and 0 < value < 1e12 for value in self.prior):
            found.append(Violation("prior", f"got {self.prior!r}; two numbers above 0, successes and failures, are allowed"))
        if found:
            raise InvalidArgument(violations=found)

    def _fitted(self) -> None:
        if not hasattr(self, "_sums"):
            raise Refused("this estimator has learned nothing yet: call fit or partial_fit first", reason="NOT_FITTED")
