"""Kinds of sites: what plans cost in figures that all sites of a kind share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from compass_shared.profile import OperatorProfile, SiteProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Measurements of one pipeline that several sites share, each with its own slowdowns and overhead."""

    operators: Mapping[str, OperatorProfile]
    """Variant key -> measurement on the machine that slowdowns compare with."""
    request_mean_bytes: float
    request_var_bytes2: float = 0.0
    key: str = field(init=False)
    """Digest of all figures that plans depend on: equal for kinds that no plan can tell apart."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _digest(self))

    @classmethod
    def of(cls, profile: SiteProfile) -> Kind:
        """The kind of a profiled site."""
        return cls(
            operators=profile.operators,
            request_mean_bytes=profile.request_mean_bytes,
            request_var_bytes2=profile.request_var_bytes2,
        )


def _digest(kind: Kind) -> str:
    figures = [
        (key, op.speed_class, op.mean_s, op.var_s2, op.output_mean_bytes, op.output_var_bytes2)
        for key, op in sorted(kind.operators.items())
    ]
    text = repr((kind.request_mean_bytes, kind.request_var_bytes2, figures))
    return hashlib.sha256(text.encode()).hexdigest()
