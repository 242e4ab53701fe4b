'use strict';

/** Keys of the world state, and values in canonical JSON. Positions are fixed-width, so that ranges are in order. */

const { canonical } = require('./canonical');

const WIDTH = 12;

/** @param {number} number */
function fixed(number) {
    return String(number).padStart(WIDTH, '0');
}

/** All keys, by what they hold. Every part is checked before: no part is empty or holds U+0000. */
const key = {
    organization: (stub, name) => stub.createCompositeKey('organization', [name]),
    owner: (stub, keyId) => stub.createCompositeKey('owner', [keyId]),
    revocation: (stub, name, run) => stub.createCompositeKey('revocation', [name, run]),
    run: (stub, run) => stub.createCompositeKey('run', [run]),
    size: (stub, run) => stub.createCompositeKey('size', [run]),
    round: (stub, run, number) => stub.createCompositeKey('round', [run, fixed(number)]),
    event: (stub, run, index) => stub.createCompositeKey('event', [run, fixed(index)]),
    slots: (stub, run, page) => stub.createCompositeKey('slots', [run, fixed(page)]),
    head: (stub, run) => stub.createCompositeKey('head', [run]),
    approval: (stub, kind, run, digest) => stub.createCompositeKey('approval', [kind, run, digest]),
    vote: (stub, kind, run, digest, msp) => stub.createCompositeKey('vote', [kind, run, digest, msp]),
    modelRevocation: (stub, run, digest) => stub.createCompositeKey('model-revocation', [run, digest]),
};

/** Text under a key, or undefined. */
async function getText(stub, stateKey) {
    const data = await stub.getState(stateKey);
    return data.length === 0 ? undefined : Buffer.from(data).toString();
}

/** Value under a key, or undefined. */
async function get(stub, stateKey) {
    const text = await getText(stub, stateKey);
    return text === undefined ? undefined : JSON.parse(text);
}

async function putText(stub, stateKey, text) {
    await stub.putState(stateKey, Buffer.from(text));
}

async function put(stub, stateKey, value) {
    await putText(stub, stateKey, canonical(value));
}

/** Keys and values under a partial composite key, in order. */
async function list(stub, type, parts) {
    const found = [];
    for await (const entry of stub.getStateByPartialCompositeKey(type, parts)) {
        found.push({ parts: stub.splitCompositeKey(entry.key).attributes, value: Buffer.from(entry.value).toString() });
    }
    return found;
}

/** Pages of slots of a run, in order. */
async function pages(stub, run) {
    const found = [];
    for await (const entry of stub.getStateByPartialCompositeKey('slots', [run])) {
        found.push(Buffer.from(entry.value));
    }
    return found;
}

module.exports = { key, get, getText, put, putText, list, pages };
