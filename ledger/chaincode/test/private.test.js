'use strict';

const assert = require('node:assert');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');

const { collections } = require('../collections');

const { Ledger, client } = require('./ledger');

const ORG1 = client('Org1MSP');
const ORG2 = client('Org2MSP');
const STRANGER = client('Org9MSP');
const VALUE = '{"salt":"5f1d","subject":"patient 7"}';

const put = (ledger, creator, collection, key, value = VALUE, options = {}) => ledger.submit(
    creator, 'PutPrivate', [collection, key], { transient: { value }, ...options });

test('members put, read and purge a request; its hash is public until then', async () => {
    const ledger = new Ledger();
    await put(ledger, ORG1, 'requests', 'r-1');
    const read = (creator) => ledger.evaluate(creator, 'GetPrivate', ['requests', 'r-1']);
    const hash = () => ledger.evaluate(STRANGER, 'GetPrivateHash', ['requests', 'r-1']);
    assert.strictEqual(await read(ORG2), VALUE);
    assert.strictEqual(await hash(), crypto.createHash('sha256').update(VALUE).digest('hex'));
    await ledger.submit(ORG2, 'PurgePrivate', ['requests', 'r-1']);
    assert.strictEqual(await read(ORG1), '');
    assert.strictEqual(await hash(), '');
});

test('shards belong to one organization, whose endorsement alone counts', async () => {
    const ledger = new Ledger();
    const transaction = await ledger.endorse(ORG1, 'PutPrivate', ['shards_Org1MSP', 's'], { transient: { value: VALUE } });
    assert.throws(() => ledger.commit(transaction, ['Org2MSP', 'Org3MSP']), /ENDORSEMENT_POLICY_FAILURE/);
    ledger.commit(transaction, ['Org1MSP']);
    assert.strictEqual(await ledger.evaluate(ORG1, 'GetPrivate', ['shards_Org1MSP', 's']), VALUE);
});

test('an outsider can neither read, write nor purge private data', async () => {
    const ledger = new Ledger();
    await put(ledger, ORG1, 'shards_Org1MSP', 's');
    const pattern = /^Error: private shards_Org1MSP\/s: only Org1MSP may see or change it, not Org2MSP$/;
    // Through its own peer as well as through a peer that has the data.
    for (const peerMsp of ['Org1MSP', 'Org2MSP']) {
        await assert.rejects(ledger.evaluate(ORG2, 'GetPrivate', ['shards_Org1MSP', 's'], { peerMsp }), pattern);
    }
    await assert.rejects(put(ledger, ORG2, 'shards_Org1MSP', 's'), pattern);
    await assert.rejects(ledger.submit(ORG2, 'PurgePrivate', ['shards_Org1MSP', 's']), pattern);
    await put(ledger, ORG1, 'requests', 'r');
    // What the peer itself refuses reaches the client on one line as well.
    await assert.rejects(ledger.evaluate(STRANGER, 'GetPrivate', ['requests', 'r']), /^Error: tx creator does not have read access .* in collection requests$/);
    await assert.rejects(put(ledger, STRANGER, 'requests', 'r'), /does not have write access/);
});

test('a request that one organization alone endorses is invalid', async () => {
    const ledger = new Ledger();
    await assert.rejects(put(ledger, ORG1, 'requests', 'r', VALUE, { endorsers: ['Org1MSP'] }), /ENDORSEMENT_POLICY_FAILURE/);
});

test('bad private data is refused', async () => {
    const ledger = new Ledger();
    await assert.rejects(put(ledger, ORG1, 'other', 'k'), /private "other": unknown collection/);
    await assert.rejects(put(ledger, ORG1, 'requests', ''), /private requests: the key needs 1 to 256 characters/);
    await assert.rejects(put(ledger, ORG1, 'requests', 'k', ''), /the transient field "value" is missing or empty/);
    await assert.rejects(ledger.submit(ORG1, 'PutPrivate', ['requests', 'k']), /the transient field "value" is missing/);
    await assert.rejects(put(ledger, ORG1, 'requests', 'k', Buffer.from([0xff])), /not UTF-8 text/);
    await assert.rejects(put(ledger, ORG1, 'requests', 'k', 'x'.repeat(1024 * 1024 + 1)), /at most 1048576 are taken/);
});

test('nothing of private data goes to the public state', async () => {
    const ledger = new Ledger();
    await put(ledger, ORG1, 'requests', 'r');
    assert.strictEqual(ledger.state.size, 0);
});

test('collections.json is what collections.js writes for two organizations', () => {
    const file = fs.readFileSync(path.join(__dirname, '..', 'collections.json'), 'utf8');
    assert.deepStrictEqual(JSON.parse(file), collections(['Org1MSP', 'Org2MSP']));
});
