"""As whom, and with which delivery, is a test of providers run? Each user and each delivery; not each with each."""

from __future__ import annotations

import pytest
from support import DELIVERIES, IS_ROOT

AS = [("root", "threads"), ("nobody", "inline")] if IS_ROOT else [("nobody", delivery) for delivery in DELIVERIES]
as_somebody = pytest.mark.parametrize(("user", "delivery"), AS)
