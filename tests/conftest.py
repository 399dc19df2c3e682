"""One hypothesis profile: no time limits, since the machine may be slow or shared."""

from hypothesis import HealthCheck, settings

settings.register_profile("llmnas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llmnas")
