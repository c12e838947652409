"""The questions: one function each, by its name in `PROBES`."""

from probes import calls, overlapped, registrations, removal, reports, triggers
from probes.laboratory import PROBES

__all__ = ["PROBES", "calls", "overlapped", "registrations", "removal", "reports", "triggers"]
