"""A network of two organizations from Fabric's own programs, without docker."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from ledger.canonical import write_atomic
from ledger.errors import LedgerError, Unavailable
from ledger.fabric.network import chaincode, material, processes
from ledger.fabric.network.layout import (
    CHAINCODE_DIR,
    NODES,
    ORGANIZATIONS,
    OUTSIDER,
    PACKAGE,
    Layout,
    domain,
    local,
    organization_of,
)
from ledger.fabric.network.processes import Process

PROGRAMS = ("orderer", "peer", "osnadmin", "cryptogen", "configtxgen")
STATE = "network.json"
PROBE_RUN = "network-probe"
"""The run that setup.sh opens to see whether the network works."""
LOG_FORMAT = "%{time:2006-01-02 15:04:05.000 MST} %{level:.4s} [%{module}] %{message}"


class Network:
    """A network whose state lies in one folder.

    Attributes
    ----------
    folder
        Keys, data, logs and ``network.json``.
    layout
        Addresses of the nodes.
    """

    def __init__(self, folder: Path, layout: Layout, fabric_bin: Path, batch_timeout: str, role: bool) -> None:
        self.folder = folder
        self.layout = layout
        self._bin = fabric_bin
        self._batch_timeout = batch_timeout
        self._role = role
        self._processes: dict[str, Process] = {}

    @classmethod
    def create(
        cls,
        folder: str | Path,
        fabric_bin: str | Path,
        batch_timeout: str = "200ms",
        mutual_tls: bool = False,
        coordinator_role: bool = False,
    ) -> "Network":
        """Make a network and start it; returns when a record was committed by both organizations.

        Parameters
        ----------
        folder
            A folder that does not hold a network yet.
        fabric_bin
            Folder with Fabric's programs (:data:`PROGRAMS`), 2.4 or newer.
        batch_timeout
            How long the orderer waits for a block to fill, like ``200ms``.
        mutual_tls
            Whether peers demand a TLS certificate of their clients.
        coordinator_role
            Whether the chaincode demands the attribute ``trustchain.role=coordinator`` of whoever runs rounds.

        Raises
        ------
        LedgerError
            The folder holds a network, a program is missing, or a step fails; nothing keeps running.
        """
        folder = Path(folder).resolve()
        programs = _programs(fabric_bin)
        if (folder / STATE).exists():
            raise LedgerError(f"{folder}: holds a network already; start it with --restart, or remove the folder")
        folder.mkdir(parents=True, exist_ok=True)
        network = cls(folder, local(folder, mutual_tls), programs, batch_timeout, coordinator_role)
        try:
            network._write_config()
            network._setup("material", "package")
            for organization in ORGANIZATIONS:
                material.issue_coordinator(folder, organization)
            material.write_profiles(folder, network.layout)
            network._start_all()
            network._setup("channel", "chaincode")
            network.wait()
        except BaseException:
            network.stop()
            raise
        return network

    @classmethod
    def open(cls, folder: str | Path, fabric_bin: str | Path | None = None) -> "Network":
        """The network of a folder, whether it runs or not.

        Raises
        ------
        LedgerError
            There is none, or its state cannot be read.
        """
        path = Path(folder).resolve() / STATE
        try:
            state = json.loads(path.read_text())
            network = cls(
                path.parent, Layout(**state["layout"]), Path(fabric_bin or state["fabric_bin"]),
                state["batch_timeout"], state["coordinator_role"],
            )  # fmt: skip
            network._processes = {name: Process(**entry) for name, entry in state["processes"].items()}
        except FileNotFoundError:
            raise LedgerError(f"{path.parent}: holds no network; make one with `up`") from None
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{path}: is damaged ({error}); remove the folder and make the network again") from None
        return network

    def restart(self) -> None:
        """Start what does not run, with the data that it had; returns when records are committed.

        Raises
        ------
        LedgerError
            A program is missing, or the nodes commit nothing within a minute.
        """
        _programs(self._bin)
        self._start_all()
        self.wait()

    def stop(self) -> None:
        """End every process that this network started; its data stays."""
        for name in reversed(self._processes):
            process = self._processes[name]
            if process.alive():
                process.end(signal.SIGTERM)
        self._processes = {}
        if (self.folder / STATE).exists():
            self._save()

    def start(self, node: str) -> None:
        """Start one node that does not run; does not wait until it serves. Raises LedgerError."""
        self._check_node(node)
        if self.alive(node):
            return
        self._processes[node] = self._launch(node)
        self._save()

    def kill(self, node: str) -> None:
        """End one node without warning, like a power cut. Raises LedgerError for an unknown node."""
        self._check_node(node)
        if self.alive(node):
            self._processes[node].end(signal.SIGKILL)

    def alive(self, node: str) -> bool:
        """Whether a node's process runs."""
        process = self._processes.get(node)
        return process is not None and process.alive()

    def wait(self) -> None:
        """Wait until both organizations endorse and commit records. Raises LedgerError after a minute."""
        self._setup("probe")
        self._wait_for_gateways()

    def profile(self, organization: str) -> Path:
        """Connection profile of ``org1`` or ``org2``."""
        return material.profile_path(self.folder, organization)

    def msp(self, organization: str, user: str) -> Path:
        """MSP folder of ``User1``, ``Admin`` or ``Coordinator`` of ``org1``, ``org2`` (the first two: ``outsider``)."""
        return self._user(organization, user) / "msp"

    def tls(self, organization: str, user: str) -> tuple[Path, Path]:
        """TLS certificate and key of a user, for peers that demand them."""
        folder = self._user(organization, user) / "tls"
        return folder / "client.crt", folder / "client.key"

    def _user(self, organization: str, user: str) -> Path:
        if organization not in (*ORGANIZATIONS, OUTSIDER):
            raise LedgerError(f"organization {organization!r}: known are {', '.join((*ORGANIZATIONS, OUTSIDER))}")
        return Path(self.layout.organization_dir(organization)) / "users" / f"{user}@{domain(organization)}"

    def environment(self, organization: str, user: str = "Admin") -> dict[str, str]:
        """Variables for Fabric's ``peer`` command line as a user of an organization, against its peer."""
        certificate, key = self.tls(organization, user)
        number = 2 if organization == "org2" else 1
        tls_home = Path(self.layout.organization_dir(f"org{number}"))
        return {
            **self._path(),
            "FABRIC_CFG_PATH": str(self.folder / "config"),
            "FABRIC_LOGGING_SPEC": "error",
            "CORE_PEER_LOCALMSPID": ORGANIZATIONS.get(organization, "OutsiderMSP"),
            "CORE_PEER_MSPCONFIGPATH": str(self.msp(organization, user)),
            "CORE_PEER_ADDRESS": self.layout.addresses[f"peer{number}"],
            "CORE_PEER_TLS_ENABLED": "true",
            "CORE_PEER_TLS_ROOTCERT_FILE": str(tls_home / "tlsca" / f"tlsca.{domain(f'org{number}')}-cert.pem"),
            "CORE_PEER_TLS_CLIENTAUTHREQUIRED": str(self.layout.mutual_tls).lower(),
            "CORE_PEER_TLS_CLIENTCERT_FILE": str(certificate),
            "CORE_PEER_TLS_CLIENTKEY_FILE": str(key),
        }

    def _path(self) -> dict[str, str]:
        return {"PATH": f"{self._bin}{os.pathsep}{os.environ.get('PATH', '')}"}

    def _write_config(self) -> None:
        config = self.folder / "config"
        config.mkdir(exist_ok=True)
        shutil.copytree(PACKAGE / "builder", self.folder / "builder", dirs_exist_ok=True)
        for script in (self.folder / "builder" / "bin").iterdir():
            script.chmod(0o755)  # a wheel does not keep the mode
        core = (PACKAGE / "templates" / "core.yaml").read_text()
        (config / "core.yaml").write_text(core.replace("@BUILDER@", str(self.folder / "builder")))
        shutil.copy(PACKAGE / "templates" / "orderer.yaml", config)

    def _setup(self, *steps: str) -> None:
        """Run steps of ``setup.sh``."""
        variables = self.layout.setup_environment(
            str(PACKAGE / "templates"), str(CHAINCODE_DIR / "collections.json"), self._batch_timeout
        )
        variables["PROBE_USER"] = material.COORDINATOR_USER
        log = self.folder / "logs" / "setup.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            script = subprocess.Popen(
                ["sh", str(PACKAGE / "setup.sh"), *steps],
                env={**os.environ, **self._path(), **variables, "FABRIC_CFG_PATH": str(self.folder / "config")},
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        try:
            ended = self._watch(script)
        finally:
            if script.poll() is None:
                os.killpg(script.pid, signal.SIGKILL)
                script.wait()
        if ended or script.returncode != 0:
            reasons = [f"{node} ended: {processes.last_line(self._log(node))}" for node in ended]
            reason = "; ".join(reasons) or f"{processes.last_line(log)} (see {log})"
            raise LedgerError(f"Fabric network, {' '.join(steps)}: {reason}")

    def _watch(self, script: "subprocess.Popen[bytes]") -> list[str]:
        """Wait for a script; return nodes that ended meanwhile, for which it would wait in vain."""
        while True:
            try:
                script.wait(timeout=0.5)
                return []
            except subprocess.TimeoutExpired:
                ended = [node for node in self._processes if not self.alive(node)]
                if ended:
                    return ended

    def _start_all(self) -> None:
        for node in NODES:
            if not self.alive(node):
                self._processes[node] = self._launch(node)
                self._save()  # at once: what is not written down is never ended

    def _launch(self, node: str) -> Process:
        if node == "orderer":
            command, variables = [str(self._bin / "orderer")], self.layout.orderer_environment()
        elif node.startswith("peer"):
            command, variables = [str(self._bin / "peer"), "node", "start"], self.layout.peer_environment(node)
        else:
            package_id = (self.folder / "packages" / f"{organization_of(node)}.id").read_text().strip()
            command = chaincode.command() + self.layout.chaincode_arguments(node, package_id)
            variables = {"NODE_PATH": str(chaincode.modules()), "CORE_CHAINCODE_LOGGING_LEVEL": "WARNING"}
            if self._role:
                variables["TRUSTCHAIN_COORDINATOR_ROLE"] = "required"
        directory = CHAINCODE_DIR if node.startswith("chaincode") else self.folder
        common = {
            "FABRIC_CFG_PATH": str(self.folder / "config"),
            "FABRIC_LOGGING_FORMAT": LOG_FORMAT,
            "FABRIC_LOGGING_SPEC": "info:comm.grpc.server=warning",  # not a line for every call
        }
        return processes.start(command, {**common, **variables}, directory, self._log(node))

    def _wait_for_gateways(self) -> None:
        """Wait until each peer's gateway finds endorsers of both organizations, which gossip brings a little later.

        Only where the client of :mod:`ledger.fabric` can be used; others see the network before that.
        """
        try:
            from ledger.fabric.chain import FabricChain
        except LedgerError:
            return
        for organization in ORGANIZATIONS:
            client = FabricChain(self.profile(organization), self.msp(organization, "User1"), PROBE_RUN, deadline_s=5)
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.propose("model-release", secrets.token_hex(32))
                    break
                except Unavailable as error:
                    if time.monotonic() > deadline:
                        raise LedgerError(f"Fabric network: gateway of {organization}: {error}") from None
                    time.sleep(0.1)
            client.close()

    def _check_node(self, node: str) -> None:
        if node not in NODES:
            raise LedgerError(f"node {node!r}: known are {', '.join(NODES)}")

    def _log(self, node: str) -> Path:
        return self.folder / "logs" / f"{node}.log"

    def _save(self) -> None:
        state = {
            "batch_timeout": self._batch_timeout,
            "coordinator_role": self._role,
            "fabric_bin": str(self._bin),
            "layout": asdict(self.layout),
            "processes": {name: asdict(process) for name, process in self._processes.items()},
        }
        write_atomic(self.folder / STATE, json.dumps(state, indent=2).encode() + b"\n")


@contextlib.contextmanager
def running(
    folder: str | Path, fabric_bin: str | Path, batch_timeout: str = "200ms", mutual_tls: bool = False,
    coordinator_role: bool = False,
) -> Iterator[Network]:  # fmt: skip
    """A network for the length of a block; its processes are ended afterwards. Parameters as :meth:`Network.create`."""
    network = Network.create(folder, fabric_bin, batch_timeout, mutual_tls, coordinator_role)
    try:
        yield network
    finally:
        network.stop()


def _programs(fabric_bin: str | Path) -> Path:
    folder = Path(fabric_bin).resolve()
    missing = [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]
    if missing:
        raise LedgerError(
            f"FABRIC_BIN {folder}: lacks {', '.join(missing)}; get them with Fabric's `install-fabric.sh binary`"
        )
    return folder


def programs_from(environment: Mapping[str, str]) -> Path:
    """Folder of Fabric's programs from the variable ``FABRIC_BIN``. Raises LedgerError if it is not set."""
    value = environment.get("FABRIC_BIN", "")
    if not value:
        raise LedgerError("FABRIC_BIN is not set; set it to the folder with Fabric's programs (peer, orderer, ...)")
    return _programs(value)
