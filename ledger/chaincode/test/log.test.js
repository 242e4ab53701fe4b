'use strict';

const assert = require('node:assert');
const { test } = require('node:test');

const { canonical } = require('../lib/canonical');
const { append, leafHash, rootOf } = require('../lib/merkle');

const { DIGEST, RUN, SEQUENCER, federation, identity, leaf, register, sign } = require('./federation');
const { Ledger, client } = require('./ledger');

async function started() {
    const f = await federation();
    const leaves = [register(f.coordinator), register(f.hospital), leaf(f.hospital), leaf(f.coordinator)];
    await f.append(0, leaves);
    return { ...f, leaves };
}

/** The refusal of appending these leaves at the end; checks that nothing was written. */
async function refusal(f, leaves, pattern, creator = SEQUENCER) {
    const before = f.ledger.block;
    await assert.rejects(f.append(await f.size(), leaves, creator), (error) => {
        assert.match(error.message, pattern);
        assert.doesNotMatch(error.message, /\n/);
        return true;
    });
    assert.strictEqual(f.ledger.block, before);
}

test('events are read back in order, by position and by range', async () => {
    const f = await started();
    const more = Array.from({ length: 300 }, (_, i) => leaf(f.hospital, { key: `more-${i}` }));
    const { result, event } = await f.append(4, more);
    assert.strictEqual(result, '{"size":304}');
    assert.deepStrictEqual(event, { name: 'events', payload: `{"count":300,"run":"${RUN}","start":4}` });
    const all = [...f.leaves, ...more];
    const read = async (start, count) => JSON.parse(
        await f.ledger.evaluate(client('Org2MSP'), 'GetEvents', [RUN, String(start), String(count)]));
    assert.deepStrictEqual(await read(0, 2000), all);
    assert.deepStrictEqual(await read(9, 3), all.slice(9, 12));
    assert.deepStrictEqual(await read(302, 50), all.slice(302));
    assert.deepStrictEqual(await read(304, 1), []);
    assert.strictEqual(await f.ledger.evaluate(SEQUENCER, 'GetEvent', [RUN, '5']), all[5]);
    await assert.rejects(f.ledger.evaluate(SEQUENCER, 'GetEvent', [RUN, '304']), /event 304 of run run-1: there is none/);
    await assert.rejects(read(0, 2001), /ask for 1 to 2000/);
});

test('the chaincode knows the root of the log', async () => {
    const f = await started();
    const frontier = [];
    f.leaves.forEach((text, size) => append(frontier, size, leafHash(text)));
    assert.deepStrictEqual(JSON.parse(await f.ledger.evaluate(SEQUENCER, 'GetRoot', [RUN])), { root: rootOf(frontier), size: 4 });
});

test('two runs whose names begin alike do not see each other', async () => {
    const f = await started();
    await f.ledger.submit(SEQUENCER, 'OpenRun', [`${RUN}0`, identity('coordinator').publicHex, '1', '["Org1MSP"]']);
    await f.ledger.submit(SEQUENCER, 'AppendEvents', [`${RUN}0`, '0', JSON.stringify([leaf(f.hospital, { run: `${RUN}0` })])]);
    assert.strictEqual(JSON.parse(await f.ledger.evaluate(SEQUENCER, 'GetEvents', [RUN, '0', '100'])).length, 4);
    assert.strictEqual(JSON.parse(await f.ledger.evaluate(SEQUENCER, 'GetEvents', [`${RUN}0`, '0', '100'])).length, 1);
});

test('a retry is harmless: equal events are skipped, the rest is appended', async () => {
    const f = await started();
    const next = leaf(f.hospital);
    assert.strictEqual((await f.append(0, f.leaves)).result, '{"size":4}');
    assert.strictEqual((await f.append(0, f.leaves)).event, undefined);
    const { result, event } = await f.append(2, [...f.leaves.slice(2), next]);
    assert.strictEqual(result, '{"size":5}');
    assert.strictEqual(event.payload, `{"count":1,"run":"${RUN}","start":4}`);
    assert.strictEqual((await f.append(5, [])).result, '{"size":5}');
});

test('another event at a taken position is refused', async () => {
    const f = await started();
    await assert.rejects(f.append(3, [leaf(f.hospital)]), /^Error: event 3 of run run-1: is already another$/);
});

test('a gap is refused', async () => {
    const f = await started();
    await assert.rejects(f.append(6, [leaf(f.hospital)]), /event 6 cannot be appended, the log has 4/);
});

test('two batches that race for one position conflict', async () => {
    const f = await started();
    const args = (text) => [RUN, '4', JSON.stringify([text])];
    const one = await f.ledger.endorse(SEQUENCER, 'AppendEvents', args(leaf(f.hospital)));
    const two = await f.ledger.endorse(SEQUENCER, 'AppendEvents', args(leaf(f.hospital)));
    f.ledger.commit(one);
    assert.throws(() => f.ledger.commit(two), /MVCC_READ_CONFLICT/);
});

test('an idempotency key is used once, within a batch and across pages of the log', async () => {
    const f = await started();
    const first = leaf(f.hospital, { key: 'twice' });
    await f.append(4, [first, ...Array.from({ length: 600 }, () => leaf(f.hospital))]);
    await refusal(f, [leaf(f.hospital, { key: 'twice', body: {} })], /event 605 of run run-1: hospital has used the key "twice" already, in event 4/);
    await refusal(f, [leaf(f.coordinator, { key: 'new' }), leaf(f.coordinator, { key: 'new' })], /used the key "new" already, in event 605/);
    await f.append(605, [leaf(f.coordinator, { key: 'twice' })]); // another organization
    const pages = f.ledger.range('\u0000slots\u0000', '\u0000slots\u0001').map(([, { value }]) => value.length / 16);
    assert.deepStrictEqual(pages, [256, 256, 94]);
    const find = (name, key) => f.ledger.evaluate(SEQUENCER, 'FindEvent', [RUN, name, key]);
    assert.strictEqual(await find('hospital', 'twice'), '4');
    assert.strictEqual(await find('coordinator', 'twice'), '605');
    assert.strictEqual(await find('bank', 'twice'), '');
});

test('only the sequencer appends, and needs the role where it is demanded', async () => {
    const f = await started();
    await refusal(f, [leaf(f.hospital)], /^run run-1: only Org1MSP may do this, not Org2MSP$/, client('Org2MSP'));
    process.env.TRUSTCHAIN_COORDINATOR_ROLE = 'required';
    try {
        await refusal(f, [leaf(f.hospital)], /lacks the attribute trustchain.role=coordinator/);
        await f.append(4, [leaf(f.hospital)], client('Org1MSP', 'coordinator'));
        const open = (creator) => new Ledger().submit(creator, 'OpenRun', ['r', DIGEST, '1', '["Org1MSP"]']);
        await assert.rejects(open(SEQUENCER), /lacks the attribute/);
        await open(client('Org1MSP', 'coordinator'));
    } finally {
        delete process.env.TRUSTCHAIN_COORDINATOR_ROLE;
    }
});

test('a batch that one organization alone endorses is invalid', async () => {
    const f = await started();
    const transaction = await f.ledger.endorse(SEQUENCER, 'AppendEvents', [RUN, '4', JSON.stringify([leaf(f.hospital)])]);
    assert.throws(() => f.ledger.commit(transaction, ['Org1MSP']), /ENDORSEMENT_POLICY_FAILURE/);
});

test('a registration in the log registers the organization, once', async () => {
    const f = await started();
    const shown = JSON.parse(await f.ledger.evaluate(SEQUENCER, 'GetOrganization', ['hospital']));
    assert.deepStrictEqual(shown, {
        document: DIGEST, keyId: f.hospital.keyId, msp: 'Org1MSP', name: 'hospital', publicKey: f.hospital.publicHex,
        revoked: '', revokedIn: {},
    });
    const bank = [f.bank.name, f.bank.keyId, f.bank.publicHex, DIGEST];
    await f.ledger.submit(client('Org2MSP'), 'RegisterOrganization', bank);
    await f.append(4, [register(f.bank), leaf(f.bank)]); // vouched for by Org2MSP already
    assert.strictEqual(JSON.parse(await f.ledger.evaluate(SEQUENCER, 'GetOrganization', ['bank'])).msp, 'Org2MSP');
    assert.strictEqual(await f.ledger.evaluate(SEQUENCER, 'GetOrganization', ['coordinator']), '');
});

test('an organization that nobody registered is refused', async () => {
    const f = await started();
    await refusal(f, [leaf(f.bank)], /event 4 of run run-1: bank is not registered; append its REGISTER event first/);
});

test('two organizations that claim one key are refused', async () => {
    const f = await started();
    const thief = { ...f.hospital, name: 'thief' };
    await refusal(f, [register(thief)], /organization thief: the key is registered by hospital/);
    await refusal(f, [register({ ...f.coordinator, name: 'thief' })], /the key is registered by coordinator/);
});

test('a second key for a name is refused', async () => {
    const f = await started();
    const other = identity('hospital');
    await refusal(f, [register(other)], /hospital is registered with another key/);
    await refusal(f, [leaf(other)], /hospital is registered with another key/);
    await refusal(f, [register(identity('coordinator'))], /coordinator is registered with another key/);
});

test('a registration of something else than its own name and key is refused', async () => {
    const f = await started();
    const pattern = /does not register its own name and signing key/;
    await refusal(f, [register(f.bank, { organization: 'hospital' })], pattern);
    await refusal(f, [register(f.bank, { key_id: f.hospital.keyId })], pattern);
    await refusal(f, [register(f.bank, { public_key: f.hospital.publicHex })], /key id and public key do not belong together/);
    await refusal(f, [register(f.bank, { public_key: 'zz' })], /not 64 lower-case hex digits/);
    await refusal(f, [register(f.bank, { document: 7 })], /not 64 lower-case hex digits/);
});

test('events of a revoked organization are refused', async () => {
    const f = await started();
    await f.ledger.submit(client('Org1MSP', 'admin'), 'RevokeOrganization', ['hospital', 'left', '']);
    await refusal(f, [leaf(f.hospital)], /event 4 of run run-1: hospital is revoked \(left\)/);
    await refusal(f, [register(f.hospital)], /hospital is revoked \(left\)/);
    await f.append(4, [leaf(f.coordinator)]);
});

test('a changed event, and a signature of another key, are refused', async () => {
    const f = await started();
    const pattern = /the signature does not hold/;
    const envelope = JSON.parse(leaf(f.hospital));
    const payload = Buffer.from(envelope.payload, 'base64').toString().replace('"round":1', '"round":2');
    await refusal(f, [canonical({ ...envelope, payload: Buffer.from(payload).toString('base64') })], pattern);
    await refusal(f, [leaf({ ...f.bank, name: 'hospital', keyId: f.hospital.keyId })], pattern);
    await refusal(f, [leaf({ ...f.hospital, name: 'coordinator' })], /coordinator is registered with another key/);
    const short = JSON.parse(leaf(f.hospital));
    short.signatures[0].sig = Buffer.alloc(10).toString('base64');
    await refusal(f, [canonical(short)], pattern);
});

test('an event of another run is refused', async () => {
    const f = await started();
    await refusal(f, [leaf(f.hospital, { run: 'run-2' })], /belongs to run "run-2"; a replay from elsewhere\?/);
});

test('an event over the size limit is refused', async () => {
    const f = await started();
    await refusal(f, [leaf(f.hospital, { body: { x: 'x'.repeat(100_000) } })], /bytes; a leaf may have 131072/);
    await f.append(4, [leaf(f.hospital, { body: { x: 'x'.repeat(60_000) } })]);
});

for (const [what, make, pattern] of [
    ['what is not JSON', () => 'leaf', /not JSON/],
    ['an envelope in another spelling', (f) => JSON.stringify(JSON.parse(leaf(f.hospital)), null, 1), /not in canonical form/],
    ['an additional field', (f) => canonical({ ...JSON.parse(leaf(f.hospital)), more: 1 }), /exactly payload, payloadType and signatures/],
    ['a list', () => '[]', /exactly payload, payloadType and signatures/],
    ['another payload type', (f) => canonical(sign(f.hospital, '{}', 'text/plain')), /payload type is not/],
    ['two signatures', (f) => {
        const envelope = JSON.parse(leaf(f.hospital));
        return canonical({ ...envelope, signatures: [...envelope.signatures, ...envelope.signatures] });
    }, /exactly one signature/],
    ['base64 in another spelling', (f) => {
        const envelope = JSON.parse(leaf(f.hospital, { key: 'a' }));
        return canonical({ ...envelope, payload: `${envelope.payload} ` });
    }, /payload is not canonical base64/],
    ['a payload in another spelling', (f) => canonical(sign(f.hospital, '{"a": 1}')), /not in canonical form/],
    ['a payload that is not UTF-8', (f) => {
        const envelope = sign(f.hospital, '{}');
        return canonical({ ...envelope, payload: Buffer.from([0xff]).toString('base64') });
    }, /not UTF-8/],
    ['an event without a field', (f) => canonical(sign(f.hospital, '{"key":"k"}')), /needs exactly body,key/],
    ['a float in the body', (f) => canonical(sign(f.hospital, '{"body":{"x":1.5}}')), /not an integer/],
    ['an empty idempotency key', (f) => leaf(f.hospital, { key: '' }), /key is not a string/],
    ['a long idempotency key', (f) => leaf(f.hospital, { key: 'k'.repeat(257) }), /1 to 256 characters/],
    ['a time before 1970', (f) => leaf(f.hospital, { time: -1 }), /time is not in milliseconds/],
    ['a body that is a list', (f) => leaf(f.hospital, { body: [] }), /body is not a table/],
    ['a name that is none', (f) => leaf({ ...f.hospital, name: '../x' }), /organization "..\/x": use 1 to 64 letters/],
]) {
    test(`a leaf with ${what} is refused`, async () => {
        const f = await started();
        await refusal(f, [make(f)], pattern);
    });
}

test('bad arguments of AppendEvents are refused', async () => {
    const f = await started();
    const append = (...args) => f.ledger.submit(SEQUENCER, 'AppendEvents', args);
    await assert.rejects(append(RUN, '-1', '[]'), /run run-1: start: "-1" is not a whole number/);
    await assert.rejects(append(RUN, '4', '{}'), /events: not a JSON list of strings/);
    await assert.rejects(append(RUN, '4', '[1]'), /events: not a JSON list of strings/);
    await assert.rejects(append(RUN, '4', '['), /events: not a JSON list/);
    await assert.rejects(append(RUN, '4', JSON.stringify(Array(2001).fill('x'))), /2001 entries; at most 2000/);
    await assert.rejects(append('other', '0', '[]'), /run other: is not open/);
    await assert.rejects(append('no such', '0', '[]'), /run "no such": use 1 to 128 printable/);
    await assert.rejects(append(RUN, '4'), /Expected 3 parameters, but 2 have been supplied/);
});

test('the history of an event names its transaction', async () => {
    const f = await started();
    const { txId } = await f.append(4, [leaf(f.hospital)]);
    const history = JSON.parse(await f.ledger.evaluate(SEQUENCER, 'GetHistory', [RUN, '4']));
    assert.strictEqual(history.length, 1);
    assert.strictEqual(history[0].txId, txId);
    assert.strictEqual(history[0].time % 1000, 5);
    assert.strictEqual(history[0].value, await f.ledger.evaluate(SEQUENCER, 'GetEvent', [RUN, '4']));
});
