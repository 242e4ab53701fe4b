"""What the network is made of, checked without Fabric's programs: compose file, templates, builder, processes."""

import datetime
import json
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ledger.errors import LedgerError
from ledger.fabric.network import Network, layout, material, processes
from ledger.fabric.network.__main__ import main
from ledger.fabric.network.layout import CONTAINERS, PACKAGE
from ledger.fabric.network.network import PROGRAMS, programs_from

TEMPLATES = PACKAGE / "templates"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PACKAGE / "compose.yaml").read_text())
    return loaded


def keys_of(document: object, path: str = "") -> set[str]:
    """Dotted names of all keys of a YAML document, in upper case."""
    if not isinstance(document, dict) or not document:
        return {path.upper()}
    return {path.upper()} | {key for name, value in document.items() for key in keys_of(value, f"{path}_{name}")}


def test_containers_get_the_variables_of_the_processes(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["orderer"]["environment"] == CONTAINERS.orderer_environment()
    gossip = {"CORE_PEER_NETWORKID", "CORE_PEER_DELIVERYCLIENT_RECONNECTBACKOFFTHRESHOLD"}
    for node in ("peer1", "peer2"):
        environment = services[node]["environment"]
        shared = {name for name in environment if name.endswith("INTERVAL")} | gossip
        own = {name: value for name, value in environment.items() if name not in shared}
        assert own == CONTAINERS.peer_environment(node)
        core = yaml.safe_load((TEMPLATES / "core.yaml").read_text())["peer"]
        template = {f"CORE_PEER_GOSSIP_{name.upper()}": value for name, value in core["gossip"].items()}
        template["CORE_PEER_NETWORKID"] = core["networkId"]
        backoff = core["deliveryclient"]["reConnectBackoffThreshold"]
        template["CORE_PEER_DELIVERYCLIENT_RECONNECTBACKOFFTHRESHOLD"] = backoff
        assert {name: environment[name] for name in shared} == {name: template[name] for name in shared}


def test_containers_run_the_same_steps_with_the_same_settings(compose: dict[str, Any]) -> None:
    services = compose["services"]
    expected = CONTAINERS.setup_environment("/setup/templates", "/setup/collections.json", "${BATCH_TIMEOUT:-200ms}")
    for name in ("material", "setup"):
        environment = dict(services[name]["environment"])
        assert environment.pop("FABRIC_CFG_PATH") == "/etc/hyperledger/fabric"
        assert environment == expected
    steps = re.findall(r"setup\.sh ([a-z ]+)", services["material"]["command"] + " " + services["setup"]["command"])
    assert " ".join(steps).split() == ["material", "package", "channel", "chaincode", "probe"]
    for name in ("material", "setup"):
        for volume in services[name]["volumes"][1:]:
            assert (PACKAGE / volume.split(":")[0]).exists(), volume


def test_containers_answer_to_their_addresses(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for node in layout.NODES:
        host, _, port = CONTAINERS.addresses[node].partition(":")
        assert services[node]["networks"]["default"]["aliases"] == [host]
        if not node.startswith("chaincode"):
            assert f"127.0.0.1:{port}:{port}" in services[node]["ports"]
            continue
        package = f'"$$(cat /network/packages/{layout.organization_of(node)}.id)"'
        arguments = " ".join(CONTAINERS.chaincode_arguments(node, package))
        assert f"node_modules/fabric-shim/cli.js {arguments}" in services[node]["command"]
        sources = [PACKAGE / volume.split(":")[0] for volume in services[node]["volumes"]]
        assert any((source / "package-lock.json").exists() for source in sources)
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    images = {service["image"] for service in services.values()}
    assert images == {
        "hyperledger/fabric-peer:2.5", "hyperledger/fabric-orderer:2.5", "hyperledger/fabric-tools:2.5", "node:20-slim",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "prefix", "variables"),
    [
        ("orderer.yaml", "ORDERER", CONTAINERS.orderer_environment()),
        ("core.yaml", "CORE", CONTAINERS.peer_environment("peer1")),
    ],
)
def test_every_variable_has_its_key_in_the_template(template: str, prefix: str, variables: dict[str, str]) -> None:
    # The orderer ignores a variable whose key does not stand in its file, without a word.
    known = keys_of(yaml.safe_load((TEMPLATES / template).read_text()), prefix)
    assert set(variables) <= known


def test_the_builder_takes_services_only(tmp_path: Path) -> None:
    scripts = PACKAGE / "builder" / "bin"
    source, metadata, built, released = (tmp_path / name for name in ("source", "metadata", "built", "released"))
    for folder in (source, metadata, built, released):
        folder.mkdir()
    (source / "connection.json").write_text('{"address":"127.0.0.1:9"}')

    def run(name: str, *arguments: Path) -> int:
        return subprocess.run(["sh", str(scripts / name), *map(str, arguments)], check=False).returncode

    (metadata / "metadata.json").write_text('{"type":"golang","label":"x"}')
    assert run("detect", source, metadata) != 0
    (metadata / "metadata.json").write_text(json.dumps({"type": "ccaas", "label": "x"}))
    assert run("detect", source, metadata) == 0
    assert run("build", source, metadata, built) == 0
    assert run("release", built, released) == 0
    assert json.loads((released / "chaincode/server/connection.json").read_text()) == {"address": "127.0.0.1:9"}
    (source / "connection.json").unlink()
    assert run("build", source, metadata, built) != 0


def test_a_process_is_found_again_and_ended(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)"]
    process = processes.start(program, {"A": "b"}, tmp_path, tmp_path / "logs" / "p.log")
    again = processes.Process(process.pid, process.started)
    assert again.alive()
    assert not processes.Process(process.pid, "another time").alive(), "a number that was given to somebody else"
    again.end(signal.SIGTERM)
    assert not process.alive()


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    program = [
        sys.executable, "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\ntime.sleep(99)",
    ]  # fmt: skip
    log = tmp_path / "p.log"
    process = processes.start(program, {}, tmp_path, log)
    while "deaf" not in log.read_text():
        assert process.alive()
    process.end(signal.SIGTERM, patience=0.2)
    assert not process.alive()


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no-such-program: cannot be started: No such file"):
        processes.start(["no-such-program"], {}, tmp_path, tmp_path / "p.log")


def test_missing_programs_are_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="FABRIC_BIN is not set"):
        programs_from({})
    (tmp_path / "peer").write_text("")
    (tmp_path / "peer").chmod(0o755)
    with pytest.raises(LedgerError, match="lacks orderer, osnadmin, cryptogen, configtxgen; get them with"):
        programs_from({"FABRIC_BIN": str(tmp_path)})
    for name in PROGRAMS:
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    assert programs_from({"FABRIC_BIN": str(tmp_path)}) == tmp_path


def test_the_command_line_explains_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--dir", str(tmp_path)]) == 1
    assert "holds no network; make one with `up`" in capsys.readouterr().err
    (tmp_path / "network.json").write_text("{}")
    assert main(["down", "--dir", str(tmp_path)]) == 1
    assert "network.json: is damaged" in capsys.readouterr().err


def test_unknown_nodes_and_organizations_are_refused(tmp_path: Path) -> None:
    network = Network(tmp_path, layout.local(tmp_path), tmp_path, "200ms", False)
    with pytest.raises(LedgerError, match="node 'peer3': known are orderer, peer1"):
        network.kill("peer3")
    with pytest.raises(LedgerError, match="organization 'org3': known are org1, org2, outsider"):
        network.msp("org3", "User1")


def test_local_networks_have_ports_of_their_own(tmp_path: Path) -> None:
    addresses = list(layout.local(tmp_path).addresses.values())
    assert len(set(addresses)) == 6
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def authority(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The folders of an organization as cryptogen makes them, as far as they are read."""
    home = folder / "organizations/peerOrganizations/org1.example.com"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca.org1.example.com")])
    begin = datetime.datetime(2024, 1, 1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=5000))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    for path, content in {
        "ca/ca.org1.example.com-cert.pem": certificate.public_bytes(serialization.Encoding.PEM),
        "ca/priv_sk": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "users/User1@org1.example.com/msp/signcerts/User1@org1.example.com-cert.pem": b"",
        "users/User1@org1.example.com/msp/keystore/priv_sk": b"",
        "users/User1@org1.example.com/msp/config.yaml": b"NodeOUs: {Enable: true}",
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)
    return key


def test_the_coordinator_gets_a_certificate_with_its_role(tmp_path: Path) -> None:
    signer = authority(tmp_path)
    material.issue_coordinator(tmp_path, "org1")
    msp = tmp_path / "organizations/peerOrganizations/org1.example.com/users/Coordinator@org1.example.com/msp"
    (path,) = (msp / "signcerts").iterdir()
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    signer.public_key().verify(
        certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(certificate.signature_hash_algorithm)
    )
    extension = certificate.extensions.get_extension_for_oid(material.ATTRIBUTES).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    assert json.loads(extension.value) == {"attrs": {"trustchain.role": "coordinator"}}
    (private,) = (msp / "keystore").iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()
    assert (msp / "config.yaml").exists()
    before = path.read_bytes()
    material.issue_coordinator(tmp_path, "org1")
    assert path.read_bytes() == before, "issued once"
