# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import multiprocessing

import pytest


@pytest.fixture
def race():
    """Return ``race(function, *arguments, many=6)``: what that many processes, started at once, put into a queue.

    Each calls ``function(*arguments, number, start, results)``, waits at the barrier *start* and puts one thing into
    *results*.
    """
    fork = multiprocessing.get_context("fork")

    def run(function, *arguments, many=6):
        start, results = fork.Barrier(many), fork.Queue()
        racers = [fork.Process(target=function, args=(*arguments, each, start, results)) for each in range(many)]
        for each in racers:
            each.start()
        said = [results.get(timeout=60) for _each in racers]
        for each in racers:
            each.join()
        return said

    return run
