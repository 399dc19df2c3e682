"""One hypothesis profile (no time limits: the machine may be slow or shared), and repeatable `torch.randn`."""

import sys

from hypothesis import HealthCheck, settings

settings.register_profile("llmnas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llmnas")


def pytest_runtest_setup():
    """Tests that draw from the global generator draw the same whichever tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
