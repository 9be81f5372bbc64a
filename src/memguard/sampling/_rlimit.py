"""
RLIMIT_AS and RLIMIT_DATA of this process, where the platform has them.

RLIMIT_RSS is left out: Linux has ignored it since 2.4.30 (``man 2 getrlimit``).
"""

from __future__ import annotations

import sys

if sys.platform == "win32":

    def own_limits() -> dict[str, int]:
        """Return no limits: Windows has none of these."""
        return {}

else:
    import resource

    def own_limits() -> dict[str, int]:
        """Return the finite soft limits of this process by name ("as", "data"), in bytes."""
        found = {}
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            found["as"] = soft
        soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if soft != resource.RLIM_INFINITY:
            found["data"] = soft
        return found
