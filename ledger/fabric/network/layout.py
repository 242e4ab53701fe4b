"""Names, addresses and variables of the network's nodes: the same for processes and for containers."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHANNEL = "trustchain"
CHAINCODE = "trustchain"
VERSION = "1.0"
SEQUENCE = 1

ORGANIZATIONS = {"org1": "Org1MSP", "org2": "Org2MSP"}
"""MSP id of each organization in the channel; ``peer1`` and ``chaincode1`` belong to ``org1``, and so on."""
OUTSIDER = "outsider"
"""An organization with keys but without a part in the channel."""

NODES = ("orderer", "peer1", "peer2", "chaincode1", "chaincode2")
"""Processes of the network, in the order in which they start."""
ADMIN = "orderer-admin"
"""The orderer's second port, where channels are joined."""

PACKAGE = Path(__file__).parent
CHAINCODE_DIR = PACKAGE.parents[1] / "chaincode"


@dataclass(frozen=True)
class Layout:
    """Where the nodes are.

    Attributes
    ----------
    root
        Folder of the network, as the nodes see it.
    addresses
        ``host:port`` of every node and of :data:`ADMIN`.
    listen
        Interface on which nodes listen.
    mutual_tls
        Whether peers demand a certificate of their clients.
    """

    root: str
    addresses: Mapping[str, str]
    listen: str = "127.0.0.1"
    mutual_tls: bool = False

    def port(self, node: str) -> str:
        """Port of a node."""
        return self.addresses[node].rpartition(":")[2]

    def organization_dir(self, organization: str) -> str:
        """Folder of an organization's keys, in the form of the Fabric samples."""
        return f"{self.root}/organizations/peerOrganizations/{domain(organization)}"

    def orderer_environment(self) -> dict[str, str]:
        """Variables of the orderer."""
        node = f"{self.root}/organizations/ordererOrganizations/example.com/orderers/orderer.example.com"
        certificate, key, authority = (f"{node}/tls/{name}" for name in ("server.crt", "server.key", "ca.crt"))
        return {
            "ORDERER_GENERAL_LISTENADDRESS": self.listen,
            "ORDERER_GENERAL_LISTENPORT": self.port("orderer"),
            "ORDERER_GENERAL_LOCALMSPDIR": f"{node}/msp",
            "ORDERER_GENERAL_TLS_CERTIFICATE": certificate,
            "ORDERER_GENERAL_TLS_PRIVATEKEY": key,
            "ORDERER_GENERAL_TLS_ROOTCAS": f"[{authority}]",
            "ORDERER_GENERAL_CLUSTER_CLIENTCERTIFICATE": certificate,
            "ORDERER_GENERAL_CLUSTER_CLIENTPRIVATEKEY": key,
            "ORDERER_ADMIN_LISTENADDRESS": f"{self.listen}:{self.port(ADMIN)}",
            "ORDERER_ADMIN_TLS_CERTIFICATE": certificate,
            "ORDERER_ADMIN_TLS_PRIVATEKEY": key,
            "ORDERER_ADMIN_TLS_ROOTCAS": f"[{authority}]",
            "ORDERER_ADMIN_TLS_CLIENTROOTCAS": f"[{authority}]",
            "ORDERER_FILELEDGER_LOCATION": f"{self.root}/data/orderer",
            "ORDERER_CONSENSUS_WALDIR": f"{self.root}/data/orderer/etcdraft/wal",
            "ORDERER_CONSENSUS_SNAPDIR": f"{self.root}/data/orderer/etcdraft/snapshot",
        }

    def peer_environment(self, node: str) -> dict[str, str]:
        """Variables of ``peer1`` or ``peer2``."""
        organization = organization_of(node)
        name = peer_name(organization)
        folder = f"{self.organization_dir(organization)}/peers/{name}"
        authorities = " ".join(
            f"{self.organization_dir(member)}/tlsca/tlsca.{domain(member)}-cert.pem" for member in ORGANIZATIONS
        )
        return {
            "CORE_PEER_ID": name,
            "CORE_PEER_LOCALMSPID": ORGANIZATIONS[organization],
            "CORE_PEER_MSPCONFIGPATH": f"{folder}/msp",
            "CORE_PEER_ADDRESS": self.addresses[node],
            "CORE_PEER_LISTENADDRESS": f"{self.listen}:{self.port(node)}",
            "CORE_PEER_CHAINCODELISTENADDRESS": "127.0.0.1:0",  # the chaincode is a server, it never calls
            "CORE_PEER_GOSSIP_BOOTSTRAP": self.addresses[node],
            "CORE_PEER_GOSSIP_ENDPOINT": self.addresses[node],
            "CORE_PEER_GOSSIP_EXTERNALENDPOINT": self.addresses[node],
            "CORE_PEER_TLS_ENABLED": "true",
            "CORE_PEER_TLS_CERT_FILE": f"{folder}/tls/server.crt",
            "CORE_PEER_TLS_KEY_FILE": f"{folder}/tls/server.key",
            "CORE_PEER_TLS_ROOTCERT_FILE": f"{folder}/tls/ca.crt",
            "CORE_PEER_TLS_CLIENTAUTHREQUIRED": str(self.mutual_tls).lower(),
            "CORE_PEER_TLS_CLIENTROOTCAS_FILES": authorities,
            "CORE_PEER_FILESYSTEMPATH": f"{self.root}/data/{node}",
            "CORE_LEDGER_SNAPSHOTS_ROOTDIR": f"{self.root}/data/{node}/snapshots",
        }

    def chaincode_arguments(self, node: str, package_id: str) -> list[str]:
        """Arguments of ``fabric-chaincode-node`` for ``chaincode1`` or ``chaincode2``."""
        address = f"{self.listen}:{self.port(node)}"
        return ["server", "--chaincode-address", address, "--chaincode-id", package_id]

    def setup_environment(self, templates: str, collections: str, batch_timeout: str) -> dict[str, str]:
        """Variables of ``setup.sh``."""
        return {
            "NETWORK": self.root,
            "TEMPLATES": templates,
            "COLLECTIONS": collections,
            "ORDERER": self.addresses["orderer"],
            "ORDERER_ADMIN": self.addresses[ADMIN],
            "PEER1": self.addresses["peer1"],
            "PEER2": self.addresses["peer2"],
            "CHAINCODE1": self.addresses["chaincode1"],
            "CHAINCODE2": self.addresses["chaincode2"],
            "CHANNEL": CHANNEL,
            "CHAINCODE": CHAINCODE,
            "VERSION": VERSION,
            "SEQUENCE": str(SEQUENCE),
            "BATCH_TIMEOUT": batch_timeout,
            "CORE_PEER_TLS_CLIENTAUTHREQUIRED": str(self.mutual_tls).lower(),
        }


CONTAINERS = Layout(
    root="/network",
    addresses={
        "orderer": "orderer.example.com:7050",
        ADMIN: "orderer.example.com:7053",
        "peer1": "peer0.org1.example.com:7051",
        "peer2": "peer0.org2.example.com:9051",
        "chaincode1": "chaincode.org1.example.com:9999",
        "chaincode2": "chaincode.org2.example.com:9999",
    },
    listen="0.0.0.0",
)
"""The layout of ``compose.yaml``; its ports are those of the Fabric samples."""


def domain(organization: str) -> str:
    """Domain of an organization, as cryptogen was told."""
    return f"{organization}.example.com"


def peer_name(organization: str) -> str:
    """Host name in the certificate of an organization's peer."""
    return f"peer0.{domain(organization)}"


def organization_of(node: str) -> str:
    """Organization of a peer or chaincode."""
    return f"org{node[-1]}"


def local(root: Path, mutual_tls: bool = False) -> Layout:
    """A layout on this machine, with free ports."""
    names = (*NODES, ADMIN)
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    try:
        addresses = {name: f"127.0.0.1:{held.getsockname()[1]}" for name, held in zip(names, taken, strict=True)}
    finally:
        for held in taken:
            held.close()
    return Layout(str(root), addresses, mutual_tls=mutual_tls)
