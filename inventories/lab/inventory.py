#!/usr/bin/env python3
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab as an Ansible inventory: what `make lab` wrote into build/lab.json."""

from __future__ import annotations

import json
import re
import shlex
import sys
import unicodedata
from pathlib import Path
from typing import Any

LAB_JSON = Path(__file__).resolve().parents[2] / "build" / "lab.json"


def inventory(lab: dict[str, Any]) -> dict[str, Any]:
    """The groups hubs, nodes, vms and odd, and what connects to them, for `ansible-inventory --list`."""
    vcenter = lab.get("vcenter")
    groups: dict[str, Any] = {"hubs": {"hosts": []}, "nodes": {"hosts": []}, "vms": {"hosts": []}, "odd": {"hosts": []}}
    hostvars = {}
    for machine in lab["machines"]:
        for group in machine["groups"]:
            groups[group]["hosts"].append(machine["name"])
        hostvars[machine["name"]] = connection(machine, lab["known_hosts"])
    everywhere: dict[str, Any] = {}
    if vcenter:
        for group in ("vms", "odd"):
            for name in vcenter[group]:
                host = hostname(name)
                groups[group]["hosts"].append(host)
                if host != name:
                    hostvars[host] = {"backup_vm": name}
        everywhere = {
            "vcenter_hostname": vcenter["hostname"],
            "vcenter_username": vcenter["user"],
            # Read when it is used: the password stands in no inventory listing.
            "vcenter_password": f"{{{{ lookup('ansible.builtin.file', {json.dumps(vcenter['password_file'])}) }}}}",
            "vcenter_ca_file": "/etc/sendense/vcenter-ca.pem",
        }
        groups["nodes"]["vars"] = {
            "node_vcenter_ca": Path(vcenter["ca_file"]).read_text(),
            "node_vddk_archive": lab["vddk"]["archive"],
            "node_vddk_sha256": lab["vddk"]["sha256"],
        }
    return {"_meta": {"hostvars": hostvars}, "all": {"children": [*groups], "vars": everywhere}, **groups}


def hostname(vm: str) -> str:
    """A VM's name as a host that --limit can choose: what Ansible would split or read as a pattern becomes a dash."""
    plain = unicodedata.normalize("NFKD", vm).encode("ascii", "ignore").decode()
    return re.sub("[^A-Za-z0-9_.]+", "-", plain).strip("-")


def connection(machine: dict[str, Any], known_hosts: str) -> dict[str, Any]:
    """How Ansible reaches a machine, with its ssh host key pinned and no name left to look up."""
    options = [
        *("-F", "none"),
        *("-o", f"UserKnownHostsFile={known_hosts}"),
        *("-o", "GlobalKnownHostsFile=none"),
        *("-o", "StrictHostKeyChecking=yes"),
        *("-o", "IdentitiesOnly=yes"),
    ]
    return {
        "ansible_host": machine["address"],
        "ansible_user": machine["user"],
        "ansible_ssh_private_key_file": machine["ssh_key"],
        "ansible_ssh_common_args": shlex.join(options),
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def main() -> int:
    """Print the inventory, or say in one sentence that there is no lab."""
    if sys.argv[1:2] == ["--host"]:
        sys.stdout.write("{}\n")
        return 0
    try:
        lab = json.loads(LAB_JSON.read_text())
    except FileNotFoundError:
        sys.stderr.write("the lab is not up (`make lab` raises it), so this inventory is empty\n")
        return 1
    sys.stdout.write(json.dumps(inventory(lab), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
