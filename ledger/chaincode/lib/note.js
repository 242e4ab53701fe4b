'use strict';

/** C2SP signed notes and tree heads (github.com/C2SP/C2SP: signed-note.md, tlog-checkpoint.md). */

const crypto = require('node:crypto');

const { decode, signatureHolds } = require('./envelope');

const MAX_NOTE_BYTES = 16 * 1024;
const ED25519 = 0x01;

/**
 * @param {string} name key name
 * @param {string} publicHex
 * @returns {Buffer} key id, 4 bytes
 */
function keyHash(name, publicHex) {
    const key = Buffer.concat([Buffer.from(`${name}\n`), Buffer.from([ED25519]), Buffer.from(publicHex, 'hex')]);
    return crypto.createHash('sha256').update(key).digest().subarray(0, 4);
}

/**
 * Read a signed tree head and check the log's own signature; cosignatures of witnesses may follow it.
 * @param {string} note
 * @param {string} origin first line of the tree head, and name of the log's key
 * @param {string} publicHex the log's key
 * @returns {{text: string, size: number, root: string}} root in hex
 */
function readNote(note, origin, publicHex) {
    if (Buffer.byteLength(note) > MAX_NOTE_BYTES) {
        throw new Error(`the note is larger than ${MAX_NOTE_BYTES} bytes`);
    }
    const end = note.lastIndexOf('\n\n');
    if (end < 0 || !note.endsWith('\n')) {
        throw new Error('not a signed note: text, an empty line, signatures');
    }
    const text = note.slice(0, end + 1);
    const lines = text.slice(0, -1).split('\n');
    if (lines.length < 3 || lines.includes('')) {
        throw new Error('not a tree head: origin, size and root on three lines');
    }
    if (lines[0] !== origin) {
        throw new Error(`the origin is ${JSON.stringify(lines[0].slice(0, 200))}, not ${JSON.stringify(origin)}`);
    }
    if (!/^(0|[1-9][0-9]{0,11})$/.test(lines[1])) {
        throw new Error('the size is not a decimal number');
    }
    const root = decode(lines[2], 'root');
    if (root.length !== 32) {
        throw new Error('the root is not a SHA-256 hash');
    }
    let signed = false;
    for (const line of note.slice(end + 2, -1).split('\n')) {
        const parts = /^\u2014 ([^\s+]+) (\S+)$/.exec(line);
        if (parts === null) {
            throw new Error('a signature line is malformed');
        }
        const signature = decode(parts[2], 'signature');
        if (parts[1] === origin && signature.subarray(0, 4).equals(keyHash(origin, publicHex))) {
            signed = signatureHolds(publicHex, Buffer.from(text), signature.subarray(4));
            if (!signed) {
                throw new Error("the coordinator's signature does not hold");
            }
        }
    }
    if (!signed) {
        throw new Error("the coordinator's signature is missing");
    }
    return { text, size: Number(lines[1]), root: root.toString('hex') };
}

module.exports = { readNote, keyHash };
