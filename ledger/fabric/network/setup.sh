#!/bin/sh
# The steps that make a network out of nodes, once each, in this order: material, channel, package, chaincode, probe.
# Used by the Python program and by compose.yaml, which set
#   NETWORK                                    folder of the network
#   TEMPLATES                                  folder with crypto-config.yaml and configtx.yaml
#   ORDERER ORDERER_ADMIN PEER1 PEER2          host:port
#   CHAINCODE1 CHAINCODE2                      host:port of each organization's chaincode
#   CHANNEL CHAINCODE VERSION SEQUENCE BATCH_TIMEOUT COLLECTIONS FABRIC_CFG_PATH
set -eu

peers=$NETWORK/organizations/peerOrganizations
orderer=$NETWORK/organizations/ordererOrganizations/example.com/orderers/orderer.example.com
orderer_ca=$orderer/tls/ca.crt

# Run the rest of the line as a user of organization $1 (its administrator unless $AS says another), against its peer.
as() {
    org=$1
    shift
    user=${AS:-Admin}@org$org.example.com
    eval "address=\$PEER$org"
    folder=$peers/org$org.example.com
    tls=$folder/users/$user/tls
    env "CORE_PEER_LOCALMSPID=Org${org}MSP" "CORE_PEER_MSPCONFIGPATH=$folder/users/$user/msp" \
        "CORE_PEER_ADDRESS=$address" CORE_PEER_TLS_ENABLED=true "CORE_PEER_TLS_ROOTCERT_FILE=$folder/tlsca/tlsca.org$org.example.com-cert.pem" \
        "CORE_PEER_TLS_CLIENTCERT_FILE=$tls/client.crt" "CORE_PEER_TLS_CLIENTKEY_FILE=$tls/client.key" FABRIC_LOGGING_SPEC=error "$@"
}

# Run a command until it succeeds, for at most 60 seconds; its last output is shown if it never does.
eventually() {
    deadline=$(($(date +%s) + 60))
    until output=$("$@" 2>&1); do
        if [ "$(date +%s)" -ge "$deadline" ]; then
            echo "$output" >&2
            return 1
        fi
        sleep 0.1
    done
}

# Wait for background steps; fail if one of them failed.
both() {
    wait "$1" && wait "$2"
}

material() {
    cryptogen generate --config="$TEMPLATES/crypto-config.yaml" --output="$NETWORK/organizations"
    sed -e "s/@ORDERER_HOST@/${ORDERER%:*}/" -e "s/@ORDERER_PORT@/${ORDERER##*:}/" \
        -e "s/@PEER1_HOST@/${PEER1%:*}/" -e "s/@PEER1_PORT@/${PEER1##*:}/" \
        -e "s/@PEER2_HOST@/${PEER2%:*}/" -e "s/@PEER2_PORT@/${PEER2##*:}/" \
        -e "s/@BATCH_TIMEOUT@/$BATCH_TIMEOUT/" "$TEMPLATES/configtx.yaml" > "$NETWORK/configtx.yaml"
    FABRIC_CFG_PATH=$NETWORK configtxgen -profile TrustChain -channelID "$CHANNEL" -outputBlock "$NETWORK/$CHANNEL.block"
}

channel() {
    eventually osnadmin channel join --channelID "$CHANNEL" --config-block "$NETWORK/$CHANNEL.block" -o "$ORDERER_ADMIN" \
        --ca-file "$orderer_ca" --client-cert "$orderer/tls/server.crt" --client-key "$orderer/tls/server.key"
    eventually as 1 peer channel join -b "$NETWORK/$CHANNEL.block" & first=$!
    eventually as 2 peer channel join -b "$NETWORK/$CHANNEL.block" & second=$!
    both $first $second
}

# Package the address of organization $1's chaincode, $2; the id of the package is what the chaincode must be told.
package_for() {
    work=$NETWORK/packages/org$1
    mkdir -p "$work"
    printf '{"address":"%s","dial_timeout":"10s","tls_required":false}\n' "$2" > "$work/connection.json"
    printf '{"type":"ccaas","label":"%s_%s"}\n' "$CHAINCODE" "$VERSION" > "$work/metadata.json"
    tar -C "$work" -czf "$work/code.tar.gz" connection.json
    tar -C "$work" -czf "$work.tar.gz" metadata.json code.tar.gz
    peer lifecycle chaincode calculatepackageid "$work.tar.gz" > "$work.id.new"
    mv "$work.id.new" "$work.id"
}

package() {
    package_for 1 "$CHAINCODE1"
    package_for 2 "$CHAINCODE2"
}

# Install the package of organization $1 on its peer and approve the definition that both must agree on.
approve() {
    as "$1" peer lifecycle chaincode install "$NETWORK/packages/org$1.tar.gz"
    as "$1" peer lifecycle chaincode approveformyorg -o "$ORDERER" --tls --cafile "$orderer_ca" --channelID "$CHANNEL" \
        --name "$CHAINCODE" --version "$VERSION" --sequence "$SEQUENCE" --collections-config "$COLLECTIONS" \
        --package-id "$(cat "$NETWORK/packages/org$1.id")"
}

chaincode() {
    approve 1 & first=$!
    approve 2 & second=$!
    both $first $second
    eventually as 1 peer lifecycle chaincode commit -o "$ORDERER" --tls --cafile "$orderer_ca" --channelID "$CHANNEL" \
        --name "$CHAINCODE" --version "$VERSION" --sequence "$SEQUENCE" --collections-config "$COLLECTIONS" \
        --peerAddresses "$PEER1" --tlsRootCertFiles "$peers/org1.example.com/tlsca/tlsca.org1.example.com-cert.pem" \
        --peerAddresses "$PEER2" --tlsRootCertFiles "$peers/org2.example.com/tlsca/tlsca.org2.example.com-cert.pem"
}

# A record that both organizations endorse and both peers commit: only now the network is usable.
probe() {
    key=d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a # RFC 8032, 7.1, test 1
    AS=${PROBE_USER:-Admin}
    eventually as 1 peer chaincode invoke -o "$ORDERER" --tls --cafile "$orderer_ca" -C "$CHANNEL" -n "$CHAINCODE" --waitForEvent \
        --peerAddresses "$PEER1" --tlsRootCertFiles "$peers/org1.example.com/tlsca/tlsca.org1.example.com-cert.pem" \
        --peerAddresses "$PEER2" --tlsRootCertFiles "$peers/org2.example.com/tlsca/tlsca.org2.example.com-cert.pem" \
        -c "{\"Args\":[\"OpenRun\",\"network-probe\",\"$key\",\"2\",\"[\\\"Org1MSP\\\",\\\"Org2MSP\\\"]\"]}"
}

for step in "$@"; do
    "$step"
done
