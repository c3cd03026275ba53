"""Bounds on what `multiattn serve` takes and keeps."""

from dataclasses import dataclass

from multiattn.config.settings import require, require_fields

MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds, as options of the command."""

    max_upload_mb: float = 500
    """Largest upload in MB."""
    max_minutes: float = 30
    """Longest video, by the length its file states."""
    jobs: int = 1
    """Files examined at a time, each in a process of its own that holds the networks."""
    queue: int = 64
    """Files that may wait, those still being uploaded included; further ones are refused for the time being."""
    job_seconds: float = 300
    """Time for a file; what takes longer is ended."""
    keep_minutes: float = 60
    """Time that a result is kept."""
    keep_results: int = 100
    """Results kept, the latest."""

    def __post_init__(self) -> None:
        require_fields(self)
        for name in ("max_upload_mb", "max_minutes", "job_seconds", "keep_minutes"):
            require(0 < getattr(self, name) < 1e9, self, name, "a number above 0 and below 10^9")
        for name in ("jobs", "queue", "keep_results"):
            require(getattr(self, name) >= 1, self, name, "at least 1")

    @property
    def max_upload_bytes(self) -> int:
        """Largest upload in bytes."""
        return int(self.max_upload_mb * MEGABYTE)
