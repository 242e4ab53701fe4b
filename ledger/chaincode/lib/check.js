'use strict';

/** Checks of arguments, and the one way in which a transaction is refused. */

const COORDINATOR = 'coordinator';
const MAX_BATCH = 2000;

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/;
const MSP = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;
// A run is part of a C2SP key name, which has no white space and no '+'.
const RUN = /^[!-*,-~]{1,128}$/;
const DIGEST = /^[0-9a-f]{64}$/;
const COUNT = /^(0|[1-9][0-9]{0,11})$/;

/**
 * Refuse a transaction: one line that starts with what it is about.
 * @param {string} message
 * @returns {never}
 */
function refuse(message) {
    throw new Error(message);
}

/**
 * A value from outside, quoted for a message: one line, at most 80 characters.
 * @param {unknown} value
 * @returns {string}
 */
function quote(value) {
    return JSON.stringify(String(value).slice(0, 80));
}

/** @param {string} name */
function organization(name) {
    if (!NAME.test(name)) {
        refuse(`organization ${quote(name)}: use 1 to 64 letters, digits, '_', '.', '-'; start with a letter or digit`);
    }
    return name;
}

/** @param {string} name */
function run(name) {
    if (!RUN.test(name)) {
        refuse(`run ${quote(name)}: use 1 to 128 printable ASCII characters without space and '+'`);
    }
    return name;
}

/**
 * @param {string} value
 * @param {string} what subject of the message
 */
function digest(value, what) {
    if (!DIGEST.test(value)) {
        refuse(`${what}: ${quote(value)} is not 64 lower-case hex digits`);
    }
    return value;
}

/**
 * @param {string} text decimal
 * @param {string} what subject of the message
 * @returns {number} integer of at most 12 digits
 */
function count(text, what) {
    if (!COUNT.test(text)) {
        refuse(`${what}: ${quote(text)} is not a whole number of at most 12 digits`);
    }
    return Number(text);
}

/**
 * @param {string} text a reason, one line
 * @param {string} what subject of the message
 */
function reason(text, what) {
    if (text.length === 0 || text.length > 500 || /[\u0000-\u001f\u007f]/.test(text)) {
        refuse(`${what}: the reason needs 1 to 500 characters on one line`);
    }
    return text;
}

/**
 * @param {string} json list of strings
 * @param {number} limit largest number of entries
 * @param {string} what subject of the message
 * @returns {string[]}
 */
function strings(json, limit, what) {
    let list;
    try {
        list = JSON.parse(json);
    } catch {
        refuse(`${what}: not a JSON list`);
    }
    if (!Array.isArray(list) || !list.every((entry) => typeof entry === 'string')) {
        refuse(`${what}: not a JSON list of strings`);
    }
    if (list.length > limit) {
        refuse(`${what}: ${list.length} entries; at most ${limit} are taken at once`);
    }
    return list;
}

/** @param {string} json list of MSP ids */
function msps(json, what) {
    const list = strings(json, 100, what);
    if (list.length === 0 || !list.every((id) => MSP.test(id)) || new Set(list).size !== list.length) {
        refuse(`${what}: the MSPs must be 1 to 100 different MSP ids`);
    }
    return list.sort();
}

module.exports = { COORDINATOR, MAX_BATCH, refuse, quote, organization, run, digest, count, reason, strings, msps };
