"""pyext in programs that exist: torch's own calls and modules led to pyext."""

from pyext.drop_in.accelerate import Acceleration, accelerate
from pyext.drop_in.replace import replace
from pyext.drop_in.report import Calls, Report

__all__ = ["Acceleration", "Calls", "Report", "accelerate", "replace"]
