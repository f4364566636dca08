"""What the variants of one speed class have drifted in common: from those that serve to those that do not.

Only variants that a plan uses are seen while serving. Heat, battery or another program slow down a whole
class, so what is seen of some says something of the others. For each variant i that was seen, x_i is the
logarithm of its time now over its time when it was profiled, with sampling variance s_i². The random-effects
model of meta-analysis,

    x_i ~ N(theta, tau² + s_i²),   theta = sum w_i x_i / sum w_i,   w_i = 1 / (tau² + s_i²),

has tau² by the method of moments, yet never below (theta / 3)²: drift of a class hardly ever hits all
variants alike, and one variant alone says nothing of how much they differ. A drift that is not clearly one
(``|theta| <= 2 sd``) is none, so that what does not drift stays as it was measured.

References:
    DerSimonian, Laird, "Meta-analysis in clinical trials" (1986), equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compass_shared.profile import OperatorProfile

LEAST_OWN_SHARE = 1 / 3
"""Of a class's drift: how far its variants are from each other at least, as sd."""
CLEAR = 2.0
"""Standard deviations between a drift and none."""
_LEAST_VAR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How one variant drifted."""

    log_ratio: float
    """Of its time now to its profiled time."""
    var: float
    """Of that logarithm, from sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What a class drifted in common."""

    log_ratio: float
    shared_var: float
    """Of the common drift's estimate."""
    own_var: float
    """How far single variants are from it."""

    def applied(self, found: OperatorProfile, *, since: float, operators: int) -> OperatorProfile:
        """A variant's figures now, with what is not known of its drift made part of the variance.

        Args:
            found: As it was measured.
            since: What the class had drifted already when it was measured, as a logarithm.
            operators: How many of a request's operators are of this class: their common error adds up, and n
                times one's own share covers the square of the sum (Cauchy-Schwarz).
        """
        log_ratio = self.log_ratio - since
        part = min(1.0, abs(log_ratio / self.log_ratio))
        ratio = math.exp(log_ratio)
        mean_s = found.mean_s * ratio
        unsure = part**2 * (self.own_var + operators * self.shared_var)
        return replace(
            found,
            mean_s=mean_s,
            var_s2=found.var_s2 * ratio**2 + mean_s**2 * unsure,
            p95_s=found.p95_s * ratio,
            mean_interval_s=None,
            p95_interval_s=None,
            item_s=found.item_s * ratio,
        )


def common_drift(seen: Sequence[Seen]) -> Drift | None:
    """What variants of one class have drifted in common; None where it is not clearly anything."""
    if not seen:
        return None
    noise = [max(one.var, _LEAST_VAR) for one in seen]
    mean, _ = _weighted(seen, noise)
    between = max(_between(seen, noise), (LEAST_OWN_SHARE * mean) ** 2)
    log_ratio, var = _weighted(seen, [own + between for own in noise])
    if abs(log_ratio) <= CLEAR * math.sqrt(var):
        return None
    return Drift(log_ratio=log_ratio, shared_var=var, own_var=between)


def operators_of_class(operators: Mapping[str, OperatorProfile]) -> dict[str, int]:
    """Speed class -> operators with variants in it; a variant key starts with the operator's name."""
    pairs = {(found.speed_class, key.partition("[")[0]) for key, found in operators.items()}
    return {name: sum(1 for found, _ in pairs if found == name) for name, _ in pairs}


def _weighted(seen: Sequence[Seen], variances: Sequence[float]) -> tuple[float, float]:
    total = math.fsum(1 / var for var in variances)
    mean = math.fsum(one.log_ratio / var for one, var in zip(seen, variances, strict=True)) / total
    return mean, 1 / total


def _between(seen: Sequence[Seen], noise: Sequence[float]) -> float:
    """Variance between variants beyond sampling, by the method of moments."""
    weights = [1 / var for var in noise]
    mean, _ = _weighted(seen, noise)
    spread = math.fsum(w * (one.log_ratio - mean) ** 2 for one, w in zip(seen, weights, strict=True))
    total = math.fsum(weights)
    scale = total - math.fsum(w * w for w in weights) / total
    return max(0.0, (spread - (len(seen) - 1)) / scale) if scale > 0 else 0.0
