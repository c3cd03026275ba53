"""This machine and installation, checked: versions, devices, codecs, memory, disk, limits, cores; what is wrong.

    multiattn doctor
    multiattn doctor --json

A line each with `ok`, `note` or `wrong`, and what to do; exit code 1 where something is wrong. No network is used.
"""

import json
from dataclasses import asdict, dataclass

from multiattn.bench.machine import CHECKS
from multiattn.command_line import parse, results
from multiattn.runtime.text_tables import terminal_table


@dataclass(frozen=True, kw_only=True)
class Options:
    json: bool = False
    """JSON for programs in place of the table."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="doctor", doc=__doc__)
    found = [(name, finding) for name, check in CHECKS.items() for finding in check()]
    if options.json:
        results(json.dumps([{"check": name, **asdict(finding)} for name, finding in found], indent=2))
    else:
        results(terminal_table([(name, one.state, one.what, one.advice) for name, one in found]))
    if any(one.state == "wrong" for _, one in found):
        raise SystemExit(1)
