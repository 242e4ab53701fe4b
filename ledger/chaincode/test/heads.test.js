'use strict';

const assert = require('node:assert');
const { test } = require('node:test');

const { append, leafHash, rootOf } = require('../lib/merkle');

const { RUN, SEQUENCER, checkpoint, federation, leaf, register } = require('./federation');
const { client } = require('./ledger');

/** A run of 5 events with the roots of its prefixes, and `put` for heads. */
async function started() {
    const f = await federation();
    const leaves = [register(f.hospital), ...Array.from({ length: 4 }, () => leaf(f.hospital))];
    await f.append(0, leaves);
    const hashes = leaves.map((text) => leafHash(text));
    const frontier = [];
    const roots = hashes.map((hash, size) => {
        append(frontier, size, hash);
        return rootOf(frontier);
    });
    const put = (note, proof = [], creator = SEQUENCER) => f.ledger.submit(
        creator, 'PutHead', [RUN, note, JSON.stringify(proof)]);
    return { ...f, hashes, roots, put, last: () => f.ledger.evaluate(SEQUENCER, 'GetHead', [RUN]) };
}

test('a head that extends the last one is taken, and the same again is a no-op', async () => {
    const f = await started();
    assert.strictEqual(await f.last(), '');
    const first = checkpoint(f.coordinator, 4, f.roots[3]);
    await f.put(first);
    const second = checkpoint(f.coordinator, 5, f.roots[4]);
    const { event } = await f.put(second, [f.hashes[4]], client('Org3MSP'));
    assert.deepStrictEqual(event, { name: 'head', payload: `{"root":"${f.roots[4]}","run":"${RUN}","size":5}` });
    assert.strictEqual(await f.last(), second);
    assert.strictEqual((await f.put(second)).event, undefined);
});

test('a head with cosignatures of witnesses is taken whole', async () => {
    const f = await started();
    const note = `${checkpoint(f.coordinator, 5, f.roots[4])}\u2014 witness/bank ${Buffer.alloc(76, 1).toString('base64')}\n`;
    await f.put(note);
    assert.strictEqual(await f.last(), note);
});

test('a tree head that is not consistent with the last one is refused', async () => {
    const f = await started();
    await f.put(checkpoint(f.coordinator, 4, f.roots[3]));
    const pattern = /^Error: head of run run-1: 5 events that do not extend the last head of 4$/;
    const next = checkpoint(f.coordinator, 5, f.roots[4]);
    await assert.rejects(f.put(next), pattern);
    await assert.rejects(f.put(next, [f.hashes[3]]), pattern);
    await assert.rejects(f.put(next, [f.hashes[4], f.hashes[4]]), pattern);
    // A split view: the same size, another root, signed by the coordinator itself.
    const other = checkpoint(f.coordinator, 4, f.roots[2]);
    await assert.rejects(f.put(other), /4 events that do not extend the last head of 4/);
});

test('a head that is smaller than the last one is refused', async () => {
    const f = await started();
    await f.put(checkpoint(f.coordinator, 5, f.roots[4]));
    await assert.rejects(f.put(checkpoint(f.coordinator, 4, f.roots[3])), /4 events; the last head has 5, a log never shrinks/);
});

test('a head beyond the log, or with a root that the log does not have, is refused', async () => {
    const f = await started();
    await assert.rejects(f.put(checkpoint(f.coordinator, 6, f.roots[4])), /6 events; the log here has 5, append them first/);
    await assert.rejects(f.put(checkpoint(f.coordinator, 5, f.roots[3])), /its root is not the root of the 5 events here/);
});

test('a head of a stranger is refused', async () => {
    const f = await started();
    const note = checkpoint(f.coordinator, 5, f.roots[4]);
    await assert.rejects(f.put(note, [], client('Org9MSP')), /Org9MSP is not a member of run run-1/);
});

for (const [what, make, pattern] of [
    ['signed by another key', (f) => checkpoint(f.hospital, 5, f.roots[4]), /coordinator's signature is missing/],
    ['signed under another name', (f) => checkpoint(f.coordinator, 5, f.roots[4]).replace('\u2014 trustchain/', '\u2014 other/'), /signature is missing/],
    ['whose signature is changed', (f) => checkpoint(f.coordinator, 5, f.roots[4]).replace('\n5\n', '\n4\n'), /coordinator's signature does not hold/],
    ['of another log', (f) => checkpoint(f.coordinator, 5, f.roots[4], 'trustchain/run-2'), /the origin is "trustchain\/run-2"/],
    ['without signatures', (f) => checkpoint(f.coordinator, 5, f.roots[4]).split('\n\n')[0], /not a signed note/],
    ['with a broken signature line', (f) => `${checkpoint(f.coordinator, 5, f.roots[4])}x\n`, /a signature line is malformed/],
    ['with a root that is no hash', (f) => checkpoint(f.coordinator, 5, 'abcd'), /root is not a SHA-256 hash/],
    ['with a size that is no number', (f) => checkpoint(f.coordinator, '05', f.roots[4]), /size is not a decimal number/],
    ['of two lines', () => 'trustchain/run-1\n5\n\n\u2014 a b\n', /not a tree head/],
    ['over the size limit', (f) => checkpoint(f.coordinator, 5, f.roots[4]) + 'x'.repeat(20_000), /larger than 16384 bytes/],
]) {
    test(`a head ${what} is refused`, async () => {
        const f = await started();
        await assert.rejects(f.put(make(f)), pattern);
        assert.strictEqual(await f.last(), '');
    });
}

test('a proof that is no list of hashes is refused', async () => {
    const f = await started();
    await assert.rejects(f.put(checkpoint(f.coordinator, 5, f.roots[4]), ['zz']), /head of run run-1: proof: "zz" is not 64/);
});
