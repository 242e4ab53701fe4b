'use strict';

/** Signed events, heads and an open run, for tests. */

const crypto = require('node:crypto');

const { canonical } = require('../lib/canonical');
const { PAYLOAD_TYPE, keyIdOf, pae } = require('../lib/envelope');
const { keyHash } = require('../lib/note');

const { Ledger, client } = require('./ledger');

const RUN = 'run-1';
const DIGEST = 'd'.repeat(64);
const SEQUENCER = client('Org1MSP');

/** An Ed25519 identity as ledger/identity.py has them. */
function identity(name) {
    const { publicKey, privateKey } = crypto.generateKeyPairSync('ed25519');
    const publicHex = Buffer.from(publicKey.export({ format: 'jwk' }).x, 'base64url').toString('hex');
    return { name, privateKey, publicHex, keyId: keyIdOf(publicHex) };
}

/** Envelope of any payload text. */
function sign(signer, payload, type = PAYLOAD_TYPE) {
    const sig = crypto.sign(null, pae(Buffer.from(payload)), signer.privateKey).toString('base64');
    return {
        payload: Buffer.from(payload).toString('base64'), payloadType: type, signatures: [{ keyid: signer.keyId, sig }],
    };
}

let serial = 0;

/** A leaf; `changes` replace fields of the event. */
function leaf(signer, changes = {}) {
    serial += 1;
    const event = {
        body: { round: 1 }, key: `key-${serial}`, organization: signer.name, run: RUN, time: 1_700_000_000_000,
        type: 'UPDATE', ...changes,
    };
    return canonical(sign(signer, canonical(event)));
}

/** The REGISTER leaf of an identity; `body` replaces fields of its body. */
function register(signer, body = {}, changes = {}) {
    return leaf(signer, {
        type: 'REGISTER',
        body: {
            document: DIGEST, key_id: signer.keyId, organization: signer.name, public_key: signer.publicHex, ...body,
        },
        ...changes,
    });
}

/** A C2SP signed tree head. */
function checkpoint(signer, size, rootHex, origin = `trustchain/${RUN}`) {
    const text = `${origin}\n${size}\n${Buffer.from(rootHex, 'hex').toString('base64')}\n`;
    const signature = crypto.sign(null, Buffer.from(text), signer.privateKey);
    const blob = Buffer.concat([keyHash(origin, signer.publicHex), signature]).toString('base64');
    return `${text}\n\u2014 ${origin} ${blob}\n`;
}

/** A ledger with an open run: coordinator, two organizations, and helpers bound to them. */
async function federation({ k = '2' } = {}) {
    const ledger = new Ledger();
    const coordinator = identity('coordinator');
    const hospital = identity('hospital');
    const bank = identity('bank');
    const msps = '["Org1MSP","Org2MSP","Org3MSP"]';
    await ledger.submit(SEQUENCER, 'OpenRun', [RUN, coordinator.publicHex, k, msps]);
    return {
        ledger,
        coordinator,
        hospital,
        bank,
        append: (start, leaves, creator = SEQUENCER) => ledger.submit(
            creator, 'AppendEvents', [RUN, String(start), JSON.stringify(leaves)]),
        size: async () => Number(await ledger.evaluate(SEQUENCER, 'GetSize', [RUN])),
    };
}

module.exports = { RUN, DIGEST, SEQUENCER, identity, sign, leaf, register, checkpoint, federation };
