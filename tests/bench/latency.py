# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads 64 KiB at a time, one after the other: ``latency.py URI COUNT`` prints the median in milliseconds."""

from __future__ import annotations

import statistics
import sys
import time

import nbd

PIECE, SPAN = 64 << 10, 16 << 20
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
seconds = []
for number in range(int(sys.argv[2])):
    began = time.perf_counter()
    handle.pread(PIECE, number * PIECE % SPAN)
    seconds.append(time.perf_counter() - began)
handle.shutdown()
sys.stdout.write(f"{statistics.median(seconds) * 1000}\n")
