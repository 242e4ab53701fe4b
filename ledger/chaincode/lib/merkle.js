'use strict';

/** RFC 9162 Merkle tree: the frontier of a growing log, and consistency proofs. */

const crypto = require('node:crypto');

const EMPTY_ROOT = crypto.createHash('sha256').digest('hex');

/** @param {Buffer | string} data text or bytes of the leaf */
function leafHash(data) {
    return crypto.createHash('sha256').update(Buffer.from([0])).update(data).digest('hex');
}

/**
 * @param {string} left hex
 * @param {string} right hex
 */
function nodeHash(left, right) {
    return crypto.createHash('sha256').update(Buffer.from(`01${left}${right}`, 'hex')).digest('hex');
}

/**
 * Append one leaf hash to a frontier: the roots of the complete subtrees, largest first.
 * @param {string[]} frontier changed in place
 * @param {number} size leaves before
 * @param {string} leaf hash, hex
 */
function append(frontier, size, leaf) {
    let digest = leaf;
    // Numbers, not bit operations: those stop at 32 bits.
    for (let rest = size; rest % 2 === 1; rest = (rest - 1) / 2) {
        digest = nodeHash(frontier.pop(), digest);
    }
    frontier.push(digest);
}

/**
 * Root of the log with that frontier (RFC 9162, 2.1.1).
 * @param {string[]} frontier
 */
function rootOf(frontier) {
    return frontier.length === 0 ? EMPTY_ROOT : frontier.reduceRight((right, left) => nodeHash(left, right));
}

/**
 * Whether a log extends another (RFC 9162, 2.1.4.2); from an empty tree the proof is empty.
 * @param {number} size1
 * @param {string} root1 hex
 * @param {number} size2
 * @param {string} root2 hex
 * @param {string[]} proof hex
 * @returns {boolean}
 */
function isConsistent(size1, root1, size2, root2, proof) {
    if (size1 > size2) {
        return false;
    }
    if (size1 === 0 || size1 === size2) {
        return proof.length === 0 && root1 === (size1 === 0 ? EMPTY_ROOT : root2);
    }
    let first = BigInt(size1);
    const path = (first & (first - 1n)) === 0n ? [root1, ...proof] : proof;
    if (path.length === 0) {
        return false;
    }
    first -= 1n;
    let second = BigInt(size2) - 1n;
    while (first & 1n) {
        first >>= 1n;
        second >>= 1n;
    }
    let digest1 = path[0];
    let digest2 = path[0];
    for (const sibling of path.slice(1)) {
        if (second === 0n) {
            return false;
        }
        if (first & 1n || first === second) {
            digest1 = nodeHash(sibling, digest1);
            digest2 = nodeHash(sibling, digest2);
            while (!(first & 1n) && first) {
                first >>= 1n;
                second >>= 1n;
            }
        } else {
            digest2 = nodeHash(digest2, sibling);
        }
        first >>= 1n;
        second >>= 1n;
    }
    return second === 0n && digest1 === root1 && digest2 === root2;
}

module.exports = { EMPTY_ROOT, leafHash, nodeHash, append, rootOf, isConsistent };
