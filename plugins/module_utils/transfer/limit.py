# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rate limit of a job: a token bucket that all disks of the job share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_CREDIT = 0.5  # seconds: what a late wake-up cost is made good, but no longer pause


class Limit:
    """At most *rate* bytes per second, over any time that is long beside half a second."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._lock = threading.Lock()
        self._due = clock()  # when what was taken so far has been paid for

    def wait(self) -> float:
        """Return for how many seconds nothing may be taken; 0 when something may."""
        return max(0.0, self._due - self._clock())

    def take(self, size: int) -> None:
        """Take *size* bytes. What is taken at once may be more than is due: then the next wait is longer."""
        with self._lock:
            self._due = max(self._due, self._clock() - _CREDIT) + size / self._rate
