"""What every test shares: hypothesis without deadlines (machines are noisy) and with fixed seeds."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fullyconv", deadline=None, derandomize=True)
settings.load_profile("fullyconv")
