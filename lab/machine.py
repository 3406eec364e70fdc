# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One machine: an overlay on the image, booted by systemd-nspawn in its own network namespace."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from lab import network
from lab.cache import remove
from lab.instance import Lab, is_node, read_json, write, write_json
from lab.network import Subnet
from lab.process import Process, mounts, unmount_below
from lab.shell import LabError, run, say

REBOOT = 133  # what systemd-nspawn --keep-unit ends with when the machine asked for a reboot
BOOT_SECONDS = 90


def networks(name: str) -> list[str]:
    return ["lan", "vcenter"] if is_node(name) else ["lan"]


def process(lab: Lab, name: str) -> Process:
    return Process(lab, name)


def ssh_key(lab: Lab) -> None:
    """The key that opens every machine of this lab."""
    make_key(lab.key, f"lab {lab.id}")


def make_key(path: Path, comment: str) -> None:
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    for leftover in (part, part.with_name(f"{part.name}.pub")):
        leftover.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", part])
    part.with_name(f"{part.name}.pub").rename(path.with_name(f"{path.name}.pub"))
    part.rename(path)


def host_key(lab: Lab, name: str) -> Path:
    """The machine's ssh host key, kept through resets so that nobody has to forget the old one."""
    return lab.state / "ssh" / f"{name}_host_ed25519"


def public(key: Path) -> str:
    """A public key without its comment."""
    return " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])


def raise_machine(lab: Lab, net: Subnet, name: str, image: Path) -> bool:
    """Make and start the machine as far as it is missing; True when it had to be started."""
    folder = lab.machine_dir(name)
    made = read_json(folder / "made.json")
    if made and made["image"] != image.name:
        say(f"the machine image has changed: {name} starts anew")
        drop(lab, name)
        made = None
    network.connect(lab, net, name, networks(name))
    if process(lab, name).alive():
        return False
    if not made:
        unmount_below(folder)
        remove(folder)
    mount(lab, name, image)
    furnish(lab, net, name)
    if not made:
        write_json(folder / "made.json", {"image": image.name})
    boot(lab, name)
    return True


def mount(lab: Lab, name: str, image: Path) -> None:
    """The machine's root: its own writes over the shared, untouched image."""
    folder, root = lab.machine_dir(name), lab.root(name)
    if root in mounts():
        return
    for part in ("upper", "work", "root"):
        (folder / part).mkdir(mode=0o755, parents=True, exist_ok=True)
    options = f"lowerdir={image},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    kind = run(["stat", "--file-system", "--format=%T", folder]).strip()
    run(
        ["mount", "-t", "overlay", "overlay", "-o", options, root],
        what=f"mounting {name}'s overlay on {kind} (its upper layer in {folder} needs ext4, xfs, btrfs or tmpfs)",
    )


def furnish(lab: Lab, net: Subnet, name: str) -> None:
    """What an installer would have written: names, keys, resolver, the archive of packages already fetched."""
    root = lab.root(name)
    make_key(host_key(lab, name), name)
    key = host_key(lab, name)
    write(root / "etc/ssh/ssh_host_ed25519_key", key.read_text(), 0o600)
    write(root / "etc/ssh/ssh_host_ed25519_key.pub", f"{public(key)} {name}\n")
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    write(root / "root/.ssh/authorized_keys", f"{public(lab.key)} lab\n", 0o600)
    write(root / "etc/hostname", f"{name}\n")
    write(root / "etc/resolv.conf", resolver())
    write(root / "etc/hosts", hosts(net, name))
    if not (root / "etc/machine-id").read_text().strip():
        write(root / "etc/machine-id", f"{secrets.token_hex(16)}\n", 0o444)
    proxy = apt_proxy()
    if proxy:
        write(root / "etc/apt/apt.conf.d/80lab-proxy", proxy)
    lend_packages(lab, name)


def hosts(net: Subnet, name: str) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", f"{net.address(name)} {name}"]
    if is_node(name):
        lines.append(
            f"{net.vcenter_server} vcenter.lab.example vcenter DC0_C0_H0 DC0_C0_H1"
        )  # the hosts' NFC answers there
    return "\n".join(lines) + "\n"


def resolver() -> str:
    """The host's resolver configuration, from where a machine can use it too."""
    wish = os.environ.get("SENDENSE_LAB_DNS")
    if wish:
        return "".join(f"nameserver {server}\n" for server in wish.replace(",", " ").split())
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if usable_resolver_line(line)]
            if any(line.startswith("nameserver") for line in lines):
                return "\n".join(lines) + "\n"
    raise LabError(
        "the host's nameservers listen on its loopback, which machines cannot reach; "
        "set SENDENSE_LAB_DNS to the address of one they can"
    )


def usable_resolver_line(line: str) -> bool:
    words = line.split()
    if words[:1] == ["nameserver"] and len(words) > 1:
        address = ip_address(words[1].partition("%")[0])
        return address.version == 4 and not address.is_loopback
    return words[:1] in (["search"], ["domain"])


def apt_proxy() -> str:
    """The host's apt proxy settings, so that machines fetch packages the way the host does."""
    lines = run(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire::http::Proxy", "Acquire::https::Proxy"])
    return "".join(f"{line.replace('::::', '::')}\n" for line in lines.splitlines() if '""' not in line)


def boot(lab: Lab, name: str) -> None:
    tidy(lab, name)
    archives = package_dir(lab, name)
    process(lab, name).start(
        [
            "systemd-nspawn",
            "--quiet",
            f"--directory={lab.root(name)}",
            f"--machine={network.namespace(lab, name)}",
            f"--hostname={name}",
            "--register=no",
            "--keep-unit",
            f"--network-namespace-path={network.NETNS / network.namespace(lab, name)}",
            "--capability=CAP_NET_ADMIN",
            f"--bind={archives}:/var/cache/apt/archives",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=pipe",
            "--boot",
        ],
        environment={
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            "SYSTEMD_NSPAWN_LOCK": "0",
        },
        again=REBOOT,
    )


def wait_booted(lab: Lab, name: str) -> None:
    """Return when the machine takes ssh and its systemd has come to rest."""
    end = time.monotonic() + BOOT_SECONDS
    # Its own --wait may miss the end of a boot that is nearly over.
    ask = [*ssh(lab, name, "-o", "ConnectTimeout=1"), "systemctl is-system-running"]
    while True:
        done = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        state = done.stdout.strip()
        if state == "running":
            return
        if state in ("degraded", "maintenance"):
            say(f"warning: {name} is {state}; see `make lab-ssh HOST={name}`, then systemctl --failed")
            return
        if not process(lab, name).alive():
            raise LabError(
                f"{name} ended while it booted: {process(lab, name).said().strip() or 'its console is empty'}"
            )
        if time.monotonic() > end:
            raise LabError(
                f"{name} does not answer to ssh after {BOOT_SECONDS} seconds ({done.stderr.strip()}); "
                f"its console is in {process(lab, name).log}"
            )
        time.sleep(0.1)


def ssh(lab: Lab, name: str, *options: str) -> list[str]:
    """The ssh command for a machine, with its host key pinned."""
    net = network.subnet(lab)
    return [
        "ssh",
        "-F",
        "none",
        "-i",
        str(lab.key),
        "-o",
        f"UserKnownHostsFile={lab.known_hosts}",
        "-o",
        "GlobalKnownHostsFile=none",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "LogLevel=ERROR",
        *options,
        f"root@{net.address(name)}",
    ]


def know_hosts(lab: Lab, net: Subnet, names: Sequence[str]) -> None:
    """The pinned host keys of all machines, by address and name."""
    for name in names:
        make_key(host_key(lab, name), name)
    lines = [f"{net.address(name)},{name} {public(host_key(lab, name))}\n" for name in names]
    write(lab.known_hosts, "".join(lines))


def drop(lab: Lab, name: str) -> None:
    """End the machine and forget all it wrote; its host key and fetched packages stay."""
    process(lab, name).stop()
    network.disconnect(lab, name)
    keep_packages(lab, name)
    unmount_below(lab.machine_dir(name))
    remove(lab.machine_dir(name))
    tidy(lab, name)


def tidy(lab: Lab, name: str) -> None:
    """Put away what a killed systemd-nspawn had no time to, and the next one would stumble over."""
    for kind in ("propagate", "unix-export"):
        shared = Path("/run/systemd/nspawn") / kind / network.namespace(lab, name)
        unmount_below(shared)
        if shared.is_dir():
            shared.rmdir()


def package_dir(lab: Lab, name: str) -> Path:
    """The machine's /var/cache/apt/archives: one of its own, since apt locks it."""
    return lab.state / "apt" / name


def lend_packages(lab: Lab, name: str) -> None:
    """Packages that any machine has fetched before lie in the machine's archive; apt checks their hashes as always."""
    folder = package_dir(lab, name)
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    for package in (lab.cache / "packages").glob("*.deb"):
        link_or_copy(package, folder / package.name)


def keep_packages(lab: Lab, name: str) -> None:
    """What the machine has fetched is kept for the next ones."""
    store = lab.cache / "packages"
    for package in package_dir(lab, name).glob("*.deb"):
        store.mkdir(parents=True, exist_ok=True)
        link_or_copy(package, store / package.name)


def link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        shutil.copy2(source, part)
        part.rename(target)
