"""A figure with its origin and range, in bytes unless the unit says otherwise."""

from __future__ import annotations

from dataclasses import asdict, dataclass

MIB = 1 << 20
GIB = 1 << 30

READ = "read"  # read from a file or measured
COMPUTED = "computed"  # computed from figures that were read
ESTIMATED = "estimated"  # based on a rule of thumb; the range shows how exact it is


@dataclass(frozen=True)
class Figure:
    """`value` lies between `low` and `high`; `origin` is one of read, computed, estimated."""

    value: float
    origin: str = COMPUTED
    low: float | None = None
    high: float | None = None
    note: str = ""
    unit: str = "bytes"

    @property
    def least(self) -> float:
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        return self.value if self.high is None else self.high

    def as_dict(self) -> dict:
        """Return the figure for programs: bytes as MiB with one decimal, other units unchanged."""
        out = asdict(self)
        out["low"], out["high"] = self.least, self.most
        if self.unit == "bytes":
            out["unit"] = "MiB"
            for key in ("value", "low", "high"):
                out[key] = round(out[key] / MIB, 1)
        return out


def estimate(value: float, low: float, high: float, note: str = "") -> Figure:
    """Return an estimated number of bytes with its range."""
    return Figure(value, ESTIMATED, low, high, note)


def gib(size: float) -> str:
    """Format bytes as the engines do: GiB with two decimals, no trailing zero."""
    text = f"{size / GIB:.2f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
