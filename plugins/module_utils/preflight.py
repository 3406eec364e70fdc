# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checks of a site before its first backup: what was seen, whether that will do, and what to do; and their report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence

OK, WARNING, FAILED = "ok", "warning", "failed"
SKEW_WARNING, SKEW_FAILED = 30.0, 300.0  # seconds

Told = dict[str, str]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: str
    seen: str
    remedy: str = ""  # what to do, when there is something


def ok(name: str, seen: str) -> Check:
    """Return a check that is well."""
    return Check(name, OK, seen)


def warning(name: str, seen: str, remedy: str) -> Check:
    """Return a check of something that backups can do without, or that will fail them one day."""
    return Check(name, WARNING, seen, remedy)


def failed(name: str, seen: str, remedy: str) -> Check:
    """Return a check of something that no backup can do without."""
    return Check(name, FAILED, seen, remedy)


def attempt(name: str, look: Callable[[], Check | list[Check]], remedy: str) -> list[Check]:
    """Return what *look* returns; when it fails instead, that is one failed check of that *name*."""
    try:
        found = look()
    except FAILURES as why:
        return [failed(name, sentence(why), remedy)]
    return found if isinstance(found, list) else [found]


def told(checks: Sequence[Check]) -> list[Told]:
    """Return *checks* as a module returns them."""
    return [asdict(check) for check in checks]


def skew(name: str, other: str, seconds: float) -> Check:
    """Return the check of a clock that is *seconds* ahead of that of *other*."""
    seen = f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} {other}"
    if abs(seconds) < SKEW_WARNING:
        return ok(name, f"agrees with {other} within {SKEW_WARNING:.0f} s")
    remedy = "set both clocks by NTP: leases, certificates and the names of restore points go by them"
    return (warning if abs(seconds) < SKEW_FAILED else failed)(name, seen, remedy)


def size(number: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def free(name: str, where: str, left: int, total: int, least: int) -> Check:
    """Return the check of free space: *least* percent are wanted."""
    percent = left * 100 // total if total else 0
    seen = f"{size(left)} of {size(total)} are free on {where} ({percent} %)"
    if percent < least:
        return failed(name, f"{seen}, and {least} % are to stay free", f"make room on {where}")
    return ok(name, seen)


def summary(found: Mapping[str, Sequence[Mapping[str, str]]], facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the report of the checks *found* by place: how it went, all of it for programs, and as Markdown and lines.

    *facts* say what the report is about and when it was made; no secret is in it, because no check has one.
    """
    every = [{"where": where, **check} for where, checks in found.items() for check in checks]
    count = {state: sum(check["state"] == state for check in every) for state in (OK, WARNING, FAILED)}
    return {
        "state": FAILED if count[FAILED] else WARNING if count[WARNING] else OK,
        "count": count,
        "facts": dict(facts),
        "checks": every,
        "lines": [_line(check) for check in every if check["state"] != OK],
        "markdown": _markdown(every, count, facts),
    }


def _line(check: Mapping[str, str]) -> str:
    return f"{check['state'].upper()} {check['where']}: {check['name']}: {check['seen']}; {check['remedy']}"


def _markdown(every: Sequence[Mapping[str, str]], count: Mapping[str, int], facts: Mapping[str, str]) -> str:
    lines = ["# Preflight report of sendense.backup", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- result: {count[FAILED]} failed, {count[WARNING]} warnings, {count[OK]} ok", ""]
    for state in (FAILED, WARNING, OK):
        if count[state]:
            lines += [f"## {state}", "", "| where | check | seen | what to do |", "|---|---|---|---|"]
            lines += [_row(check) for check in every if check["state"] == state]
            lines += [""]
    return "\n".join(lines)


def _row(check: Mapping[str, str]) -> str:
    cells = [" ".join(check[name].split()).replace("|", "\\|") for name in ("where", "name", "seen", "remedy")]
    return f"| {' | '.join(cells)} |"
