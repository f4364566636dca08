"""Mean and variance of numbers that come one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Moments:
    """Running mean and variance (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one more value."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    @property
    def variance(self) -> float:
        """Sample variance; 0 for fewer than two values."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0
