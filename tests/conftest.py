"""What every test shares: hypothesis without deadlines (machines are noisy) and with fixed seeds.

A property is tried on 25 examples, always the same; `pytest --hypothesis-profile=thorough` tries others, 400 of them.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fullyconv", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=400)
settings.load_profile("fullyconv")
