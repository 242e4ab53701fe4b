'use strict';

/** Canonical JSON (RFC 8785, no floats), byte for byte what ledger/canonical.py writes and accepts. */

const MAX_DEPTH = 64;

/**
 * @param {unknown} value strings, booleans, null, safe integers, lists, objects
 * @param {number} depth
 * @returns {string}
 */
function canonical(value, depth = 0) {
    if (depth > MAX_DEPTH) {
        throw new Error('nested too deeply');
    }
    if (typeof value === 'string') {
        if (!value.isWellFormed()) {
            throw new Error('a string holds a lone surrogate');
        }
        return JSON.stringify(value);
    }
    if (typeof value === 'number') {
        if (!Number.isSafeInteger(value)) {
            throw new Error(`${value} is not an integer within 2**53; write it as a string`);
        }
        return JSON.stringify(value);
    }
    if (typeof value === 'boolean' || value === null) {
        return String(value);
    }
    if (Array.isArray(value)) {
        return `[${value.map((item) => canonical(item, depth + 1)).join(',')}]`;
    }
    // sort() compares UTF-16 code units, the order that RFC 8785 asks for.
    const members = Object.keys(value).sort().map((name) => {
        const written = canonical(value[name], depth + 1);
        return `${canonical(name, depth)}:${written}`;
    });
    return `{${members.join(',')}}`;
}

/**
 * Parse text that must be exactly the canonical JSON of what it says.
 * @param {string} text
 * @returns {any}
 */
function parseCanonical(text) {
    let value;
    try {
        value = JSON.parse(text);
    } catch {
        throw new Error('not JSON');
    }
    // Duplicate keys, floats such as 1.0, other spellings and white space all come out different.
    if (canonical(value) !== text) {
        throw new Error('not in canonical form (RFC 8785)');
    }
    return value;
}

module.exports = { canonical, parseCanonical };
