"""How many examples a property is tried with: few on each run of the suite, many in the profile ``thorough``.

``thorough`` draws new examples on each run; give ``--hypothesis-seed`` to draw the same ones again.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

#: Times as many examples as by default.
_THOROUGH = 3


def register_profiles() -> None:
    """Register both profiles; the default draws the same examples on each run, so that it fails always or never."""
    checks = list(HealthCheck)
    settings.register_profile("few", derandomize=True, deadline=None, suppress_health_check=checks, print_blob=True)
    settings.register_profile("thorough", deadline=None, suppress_health_check=checks, print_blob=True)
    settings.load_profile("few")


def examples(few: int) -> int:
    """Return the number of examples for a property in the current profile.

    :param few: How many by default.
    """
    return few * _THOROUGH if settings.get_current_profile_name() == "thorough" else few
