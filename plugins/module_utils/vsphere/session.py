# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A session with vCenter: login, the kept cookie, reading properties, awaiting tasks; a failure is one sentence.

pyvmomi brings no types that fit all its versions, so what it hands out is ``Any`` from here on. Its lazy properties
(``vm.runtime``) are never used: they fetch whole objects, and fail on fields that a server leaves out.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPSConnection
from operator import attrgetter
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

vim: Any = None
vmodl: Any = None
SoapStubAdapter: Any = None
try:
    from pyVmomi import vim, vmodl
    from pyVmomi.SoapAdapter import SoapStubAdapter
except ImportError:
    pass  # Session says so in our own words

API = "vim.version.version11"  # vSphere 6.5, the first with CreateSnapshotEx; newer servers answer as they did then
CONNECT_TIMEOUT = 10.0  # seconds, TLS included
READ_TIMEOUT = 120.0  # seconds without a byte of an answer; no call here takes long, tasks are polled
PATIENCE = 300.0  # seconds that vCenter may be away while a task is awaited
PAUSE = 2.0  # seconds between two looks at a task, at most
CONNECTION_ERRORS = (OSError, HTTPException, ExpatError, UnicodeError)  # the last for a name that cannot be one

OPTIONS: dict[str, dict[str, Any]] = {
    "vcenter_hostname": {"type": "str"},
    "vcenter_port": {"type": "int", "default": 443},
    "vcenter_username": {"type": "str"},
    "vcenter_password": {"type": "str", "no_log": True},
    "vcenter_validate_certs": {"type": "bool", "default": True},
    "vcenter_ca_file": {"type": "path"},
}  # the argument spec behind the documentation fragment sendense.backup.vcenter

_UNTRUSTED = (18, 19, 20, 21)  # X509_V_ERR of openssl-verify(1): self-signed, or no chain to a trusted certificate
_WRONG_NAME = (62, 64)  # the certificate is for other names, or other addresses
_WRONG_TIME = (9, 10)  # not yet valid, expired


class Unreachable(SendenseError):
    """No usable answer came from vCenter."""


class Fault(SendenseError):
    """vCenter answered with a fault; ``fault`` is pyvmomi's object."""

    def __init__(self, message: str, fault: Any) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class VCenter:
    """Where a vCenter is and who we are there."""

    hostname: str
    username: str
    password: str = field(repr=False)
    port: int = 443
    validate_certs: bool = True
    ca_file: str | None = None

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> VCenter:
        """Return the vCenter that a module's ``vcenter_*`` options name. Raises SendenseError for what is missing."""
        for option, variable in (("hostname", "HOST"), ("username", "USER"), ("password", "PASSWORD")):
            if not params.get(f"vcenter_{option}"):
                raise SendenseError(
                    f"vcenter_{option} is not set: give it, or VMWARE_{variable} in the environment of the controller"
                )
        if "/" in params["vcenter_hostname"]:
            raise SendenseError(f"vcenter_hostname is a host name or an address, not '{params['vcenter_hostname']}'")
        return cls(
            hostname=params["vcenter_hostname"],
            username=params["vcenter_username"],
            password=params["vcenter_password"],
            port=params["vcenter_port"],
            validate_certs=params["vcenter_validate_certs"],
            ca_file=params["vcenter_ca_file"] or None,
        )

    def __str__(self) -> str:
        return self.hostname if self.port == 443 else f"{self.hostname}:{self.port}"


class Session:
    """One login at one vCenter. Made by session(); every call goes through call() or retrieve()."""

    def __init__(self, vcenter: VCenter, keep: Path | None = None) -> None:
        if vim is None:
            raise SendenseError("python3-pyvmomi is not installed on this host; run the provision playbook")
        self.vcenter = vcenter
        self._keep = keep
        self._context = _tls(vcenter)
        self._stub = SoapStubAdapter(host=vcenter.hostname, port=vcenter.port, version=API, sslContext=self._context)
        self._stub.scheme = _Connection
        self.content: Any = self._say("connecting", vim.ServiceInstance("ServiceInstance", self._stub).RetrieveContent)

    @property
    def instance_uuid(self) -> str | None:
        """The vCenter's own identity, which change ids and VM uuids belong to; an ESXi host has none."""
        uuid: str | None = self.content.about.instanceUuid
        return uuid

    @property
    def cookie(self) -> str:
        """``vmware_soap_session=…``, ready for a Cookie header of a request to /folder."""
        cookie: str = self._stub.cookie
        return cookie.partition(";")[0]

    @property
    def url(self) -> str:
        """The root of all URLs of this vCenter, without a slash at the end."""
        host = f"[{self.vcenter.hostname}]" if ":" in self.vcenter.hostname else self.vcenter.hostname
        return f"https://{host}" if self.vcenter.port == 443 else f"https://{host}:{self.vcenter.port}"

    @property
    def thumbprint(self) -> str:
        """SHA-1 of the certificate that this vCenter shows now, verified as for every other call, as ``AA:BB:…``."""
        connection = _Connection(self.vcenter.hostname, self.vcenter.port, context=self._context)
        try:
            connection.connect()
            shown = connection.sock.getpeercert(binary_form=True)
        except CONNECTION_ERRORS as error:
            raise Unreachable(complain(self.vcenter, error)) from None
        finally:
            connection.close()
        return hashlib.sha1(shown or b"", usedforsecurity=False).digest().hex(":").upper()

    def managed(self, kind: str, moref: str) -> Any:
        """Return the managed object of that kind (``VirtualMachine``, ``vm.Snapshot``) and id, whether it exists or not."""
        return attrgetter(kind)(vim)(moref, self._stub)

    def login(self) -> None:
        """Log in, and keep the cookie where the session was told to. Raises SendenseError for a wrong password."""
        self._stub.cookie = ""
        self._say("login", self.content.sessionManager.Login, self.vcenter.username, self.vcenter.password, None)
        if self._keep:
            kept = {"hostname": self.vcenter.hostname, "port": self.vcenter.port, "username": self.vcenter.username}
            jobs.write_private(self._keep, json.dumps({**kept, "cookie": self.cookie}))

    def resume(self) -> bool:
        """Take up the kept session; False when there is none, it is another user's, or vCenter has forgotten it."""
        kept = _kept(self._keep)
        mine = (self.vcenter.hostname, self.vcenter.port, self.vcenter.username)
        if (kept.get("hostname"), kept.get("port"), kept.get("username")) != mine or not kept.get("cookie"):
            return False
        self._stub.cookie = kept["cookie"]
        try:
            manager = self.content.sessionManager
            seen = self._collect([_object(manager)], {type(manager): ["currentSession"]})
        except Fault:
            return False
        return any("currentSession" in found for found in seen.values())

    def logout(self) -> None:
        """End the session at vCenter; an unreachable vCenter ends it by itself, later."""
        with suppress(SendenseError):
            self._say("logout", self.content.sessionManager.Logout)
        self._stub.DropConnections()

    def end(self) -> None:
        """Log out, and keep nothing."""
        self.logout()
        if self._keep:
            self._keep.unlink(missing_ok=True)

    def call(self, what: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of a managed object; *what* names the deed for the message. A lost session is opened again, once.

        Raises Fault for what vCenter refuses, Unreachable when no answer came (the deed may then be done or not).
        """
        try:
            return self._say(what, method, *args, **kwargs)
        except Fault as fault:
            if not isinstance(fault.fault, vim.fault.NotAuthenticated):
                raise
        self.login()
        return self._say(what, method, *args, **kwargs)

    def retrieve(self, objects: Any, properties: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return exactly these properties of one or several managed objects, by moref; what is unset is left out."""
        listed = list(objects) if isinstance(objects, (list, tuple)) else [objects]
        if not listed:
            return {}
        return self.collect([_object(each) for each in listed], {type(each): properties for each in listed})

    def collect(self, objects: Sequence[Any], properties: Mapping[Any, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """Return properties by kind of the ObjectSpecs and what they select, by moref.

        Raises Fault when one does not exist or may not be read. Reading is repeated once after a cut connection.
        """
        try:
            return self._collect(objects, properties)
        except Unreachable:
            self._stub.DropConnections()
        except Fault as fault:
            if not isinstance(fault.fault, vim.fault.NotAuthenticated):
                raise
            self.login()
        return self._collect(objects, properties)

    def wait(self, task: Any, what: str) -> Any:
        """Wait for the task to end, however long it takes, and return its result.

        Raises Fault with the fault's own words when it failed, Unreachable when vCenter stayed away for PATIENCE seconds.
        """
        pause, seen = 0.05, time.monotonic()
        while True:
            try:
                info = next(iter(self.retrieve(task, ["info.state", "info.result", "info.error"]).values()), {})
                seen = time.monotonic()
            except Unreachable as why:
                if time.monotonic() - seen > PATIENCE:
                    raise Unreachable(f"{what}: {why}; the task may still be running there") from None
                info = {}
            if info.get("info.state") == "success":
                return info.get("info.result")
            if info.get("info.state") == "error":
                error = info.get("info.error")
                raise Fault(explain(self.vcenter, what, error), error)
            time.sleep(pause)
            pause = min(pause * 1.5, PAUSE)

    def fetch(self, path: str, limit: int) -> tuple[int, bytes]:
        """Return the status and at most *limit* bytes of what vCenter serves at *path*, under this session."""
        connection = _Connection(self.vcenter.hostname, self.vcenter.port, context=self._context)
        try:
            connection.request("GET", path, headers={"Cookie": self.cookie})
            response = connection.getresponse()
            return response.status, response.read(limit)
        except CONNECTION_ERRORS as error:
            raise Unreachable(complain(self.vcenter, error)) from None
        finally:
            connection.close()

    def _say(self, what: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except vmodl.MethodFault as fault:
            raise Fault(explain(self.vcenter, what, fault), fault) from None
        except CONNECTION_ERRORS as error:
            raise Unreachable(complain(self.vcenter, error)) from None
        except KeyError as error:  # how pyvmomi fails on a type that it does not know
            raise SendenseError(
                f"{what} failed: pyvmomi cannot read the answer of vCenter {self.vcenter} ({error})"
            ) from None

    def _collect(self, objects: Sequence[Any], properties: Mapping[Any, Sequence[str]]) -> dict[str, dict[str, Any]]:
        collector = vmodl.query.PropertyCollector
        specs = [collector.PropertySpec(type=kind, pathSet=list(names)) for kind, names in properties.items()]
        wish = collector.FilterSpec(objectSet=list(objects), propSet=specs)
        page = self._say(
            "reading", self.content.propertyCollector.RetrievePropertiesEx, [wish], collector.RetrieveOptions()
        )
        found: dict[str, dict[str, Any]] = {}
        while page:
            for each in page.objects:
                found[id_of(each.obj)] = {entry.name: entry.val for entry in each.propSet}
                for missing in each.missingSet:  # its fault is the bare fault here, though the API wraps it
                    # a folder only lends its name to a path; users often may not see those above their own
                    if isinstance(missing.fault, vim.fault.NoPermission) and not isinstance(each.obj, vim.Folder):
                        raise Fault(explain(self.vcenter, f"reading {missing.path}", missing.fault), missing.fault)
                    if isinstance(missing.fault, vim.fault.NotAuthenticated):
                        raise Fault(explain(self.vcenter, f"reading {missing.path}", missing.fault), missing.fault)
            if not page.token:
                return found
            page = self._say("reading", self.content.propertyCollector.ContinueRetrievePropertiesEx, page.token)
        return found


@contextmanager
def session(vcenter: VCenter, folder: Path | str | None = None) -> Iterator[Session]:
    """Yield a session with *vcenter*. Raises SendenseError: unreachable, untrusted certificate, wrong password.

    Without *folder* it is logged out at the end. With one (a job's) it is taken up from ``<folder>/session`` when vCenter
    still knows it, else begun and kept there, for the job's other modules; Session.end ends it.
    """
    keep = Path(folder) / "session" if folder else None
    opened = Session(vcenter, keep)
    if not opened.resume():
        opened.login()
    try:
        yield opened
    finally:
        if not keep:
            opened.logout()


@contextmanager
def of_job(vcenter: VCenter, job: str, *, last: bool = False) -> Iterator[Session]:
    """Yield the session of the job, begun here or taken up, which stays for the other modules of the job.

    The *last* of them ends it, and so does one that fails; the job's folder goes when nothing else is in it.
    """
    folder, opened, stays = jobs.make_folder(job), None, False
    try:
        with session(vcenter, folder) as opened:
            yield opened
            stays = not last
    finally:
        if not stays:
            if opened:
                opened.end()
            (folder / "session").unlink(missing_ok=True)  # one kept for a vCenter that we could not reach
            jobs.leave_folder(job)


def certificate(vcenter: VCenter) -> dict[str, Any]:
    """Return the certificate that *vcenter* shows, as ssl.SSLSocket.getpeercert does; empty when it is not to be verified.

    Raises Unreachable with what is wrong with it.
    """
    connection = _Connection(vcenter.hostname, vcenter.port, context=_tls(vcenter))
    try:
        connection.connect()
        return connection.sock.getpeercert() or {}
    except CONNECTION_ERRORS as error:
        raise Unreachable(complain(vcenter, error)) from None
    finally:
        connection.close()


def id_of(managed: Any) -> str:
    """Return the moref of a managed object, such as ``vm-62``."""
    moref: str = managed._moId  # noqa: SLF001  # pyvmomi has no public name for it
    return moref


def words(fault: Any) -> str:
    """Return a fault's own words as one line: its message, the details it lists, or else its name."""
    details = [getattr(each, "message", None) for each in getattr(fault, "faultMessage", None) or []]
    said = [text.strip().rstrip(".") for text in (getattr(fault, "msg", None), *details) if text and text.strip()]
    return " / ".join(" ".join(text.split()) for text in dict.fromkeys(said)) or type(fault).__name__.rpartition(".")[2]


def explain(vcenter: VCenter, what: str, fault: Any) -> str:
    """Return the sentence for a fault that vCenter answered *what* with."""
    if isinstance(fault, vim.fault.NoPermission):
        privilege = fault.privilegeId or "a privilege that vCenter does not name"
        where = f" on {id_of(fault.object)}" if fault.object else ""
        return f"{what} failed: user {vcenter.username} of vCenter {vcenter} lacks {privilege}{where}"
    if isinstance(fault, vim.fault.InvalidLogin):
        return f"vCenter {vcenter} refuses user {vcenter.username}: {words(fault)}; check vcenter_username and vcenter_password"
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound):
        return f"{what} failed: vCenter {vcenter} knows no {id_of(fault.obj) if fault.obj else 'such object'}"
    if isinstance(fault, vim.fault.RestrictedVersion):
        return f"{what} failed: the licence of this ESXi host lets its API only read, so no snapshot can be taken there ({words(fault)})"
    return f"{what} failed: vCenter {vcenter} says: {words(fault)}"


def complain(vcenter: VCenter, error: Exception) -> str:
    """Return the sentence for a connection to vCenter that failed with *error*."""
    start = f"vCenter {vcenter}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{start} is not trusted: {error.verify_message.rstrip('.')}; {_certificate_remedy(error.verify_code)}"
    if isinstance(error, ssl.SSLError):
        return (
            f"{start} does not speak TLS as expected ({error.reason or error}); check vcenter_hostname and vcenter_port"
        )
    if isinstance(error, socket.gaierror):
        return f"{start} is not found: {error.strerror}; check vcenter_hostname and the DNS of this node"
    if isinstance(error, (HTTPException, ExpatError)) and not isinstance(error, ConnectionError):
        return f"{start} does not answer as a vCenter ({error or type(error).__name__}); check vcenter_hostname and vcenter_port"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{start} cannot be reached from this node: {said or type(error).__name__}; check vcenter_hostname, vcenter_port and firewalls"


def _certificate_remedy(code: int) -> str:
    if code in _UNTRUSTED:
        return "give the certificate of its authority in vcenter_ca_file, or turn vcenter_validate_certs off"
    if code in _WRONG_NAME:
        return "give a name that stands in its certificate in vcenter_hostname, or turn vcenter_validate_certs off"
    if code in _WRONG_TIME:
        return "renew its certificate or set the clock of this node, or turn vcenter_validate_certs off"
    return "check vcenter_ca_file, or turn vcenter_validate_certs off"


class _Connection(HTTPSConnection):
    """HTTPS that says within CONNECT_TIMEOUT whether somebody is there, however many addresses the name has."""

    def connect(self) -> None:
        addresses = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        self.timeout = CONNECT_TIMEOUT / len(addresses)
        try:
            super().connect()
        except TimeoutError:
            raise TimeoutError(f"no answer within {CONNECT_TIMEOUT:.0f} s") from None
        self.sock.settimeout(READ_TIMEOUT)


def _tls(vcenter: VCenter) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=vcenter.ca_file)
    except ssl.SSLError:
        raise SendenseError(f"vcenter_ca_file {vcenter.ca_file} holds no certificate in PEM form") from None
    except OSError as error:
        raise SendenseError(f"vcenter_ca_file {vcenter.ca_file} cannot be read: {error.strerror}") from None
    # Python 3.13 made both its defaults. Strict refuses the authority that vCenter's own VMCA makes (its extensions are
    # not marked as RFC 5280 wants); the partial chain lets vcenter_ca_file hold the server's certificate itself.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not vcenter.validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _kept(path: Path | None) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _object(managed: Any) -> Any:
    return vmodl.query.PropertyCollector.ObjectSpec(obj=managed)
