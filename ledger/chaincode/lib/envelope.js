'use strict';

/** Leaves of the log: DSSE v1 envelopes with one Ed25519 signature over an event. */

const crypto = require('node:crypto');

const { parseCanonical } = require('./canonical');

const PAYLOAD_TYPE = 'application/vnd.trustchain.event+json';
const MAX_LEAF_BYTES = 128 * 1024;
const MAX_KEY_LENGTH = 256;
const MAX_CACHED_KEYS = 4096;

const FIELDS = 'body,key,organization,run,time,type';
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** @type {Map<string, crypto.KeyObject>} */
const keyObjects = new Map();

/**
 * @param {string} hex 32 raw bytes
 * @returns {crypto.KeyObject}
 */
function publicKey(hex) {
    let key = keyObjects.get(hex);
    if (key === undefined) {
        const x = Buffer.from(hex, 'hex').toString('base64url');
        key = crypto.createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x }, format: 'jwk' });
        if (keyObjects.size >= MAX_CACHED_KEYS) {
            keyObjects.clear();
        }
        keyObjects.set(hex, key);
    }
    return key;
}

/**
 * @param {string} hex public key
 * @param {Buffer} message
 * @param {Buffer} signature
 */
function signatureHolds(hex, message, signature) {
    return signature.length === 64 && crypto.verify(null, message, publicKey(hex), signature);
}

/** @param {string} hex public key */
function keyIdOf(hex) {
    return crypto.createHash('sha256').update(Buffer.from(hex, 'hex')).digest('hex');
}

/**
 * @param {unknown} text base64 in the one spelling that an encoder writes
 * @param {string} what
 * @returns {Buffer}
 */
function decode(text, what) {
    if (typeof text !== 'string') {
        throw new Error(`${what} is not a string`);
    }
    const data = Buffer.from(text, 'base64');
    if (data.toString('base64') !== text) {
        throw new Error(`${what} is not canonical base64`);
    }
    return data;
}

function hasExactly(value, names) {
    return typeof value === 'object' && value !== null && !Array.isArray(value)
        && Object.keys(value).sort().join(',') === names;
}

/**
 * @typedef {object} Event
 * @property {string} type
 * @property {string} organization
 * @property {string} run
 * @property {string} key idempotency key
 * @property {any} body
 * @property {string} keyId key that claims to have signed
 * @property {(publicHex: string) => boolean} signedBy whether the signature is that key's
 */

/**
 * Take a leaf apart; its signature is checked by `signedBy`.
 * @param {string} leaf canonical JSON of the envelope
 * @returns {Event}
 */
function readLeaf(leaf) {
    const bytes = Buffer.byteLength(leaf);
    if (bytes > MAX_LEAF_BYTES) {
        throw new Error(`${bytes} bytes; a leaf may have ${MAX_LEAF_BYTES}, put digests into it`);
    }
    const envelope = parseCanonical(leaf);
    if (!hasExactly(envelope, 'payload,payloadType,signatures')) {
        throw new Error('the envelope needs exactly payload, payloadType and signatures');
    }
    if (envelope.payloadType !== PAYLOAD_TYPE) {
        throw new Error(`the payload type is not ${PAYLOAD_TYPE}`);
    }
    const { signatures } = envelope;
    if (!Array.isArray(signatures) || signatures.length !== 1 || !hasExactly(signatures[0], 'keyid,sig')
        || typeof signatures[0].keyid !== 'string') {
        throw new Error('the envelope needs exactly one signature with keyid and sig');
    }
    const payload = decode(envelope.payload, 'payload');
    const signature = decode(signatures[0].sig, 'sig');
    let text;
    try {
        text = utf8.decode(payload);
    } catch {
        throw new Error('the payload is not UTF-8');
    }
    const event = parseCanonical(text);
    if (!hasExactly(event, FIELDS)) {
        throw new Error(`the event needs exactly ${FIELDS}`);
    }
    for (const name of ['type', 'organization', 'run', 'key']) {
        if (typeof event[name] !== 'string' || event[name].length === 0) {
            throw new Error(`${name} is not a string`);
        }
    }
    // Python counts code points, so a key of 256 emoji is welcome in both.
    if ([...event.key].length > MAX_KEY_LENGTH) {
        throw new Error(`the idempotency key needs 1 to ${MAX_KEY_LENGTH} characters`);
    }
    if (!Number.isSafeInteger(event.time) || event.time < 0) {
        throw new Error('time is not in milliseconds since 1970');
    }
    if (typeof event.body !== 'object' || event.body === null || Array.isArray(event.body)) {
        throw new Error('body is not a table');
    }
    return {
        ...event,
        keyId: signatures[0].keyid,
        signedBy: (publicHex) => signatureHolds(publicHex, pae(payload), signature),
    };
}

/** Pre-authentication encoding, the bytes that are signed (DSSE v1, protocol.md). */
function pae(payload) {
    return Buffer.concat([
        Buffer.from(`DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `), payload,
    ]);
}

module.exports = { PAYLOAD_TYPE, MAX_LEAF_BYTES, readLeaf, keyIdOf, signatureHolds, decode, pae };
