'use strict';

/** Organizations, runs, rounds, approvals, models. */

const assert = require('node:assert');
const { test } = require('node:test');

const { DIGEST, RUN, SEQUENCER, federation, identity, leaf, register } = require('./federation');
const { Ledger, client } = require('./ledger');

const ORG1 = client('Org1MSP');
const ORG2 = client('Org2MSP');
const ORG3 = client('Org3MSP');
const STRANGER = client('Org9MSP');
const ALL = '["Org1MSP","Org2MSP","Org3MSP"]';

const arguments_ = (who) => [who.name, who.keyId, who.publicHex, DIGEST];

test('an organization is registered once: one key a name, one name a key, by one MSP', async () => {
    const ledger = new Ledger();
    const hospital = identity('hospital');
    const add = (creator, args) => ledger.submit(creator, 'RegisterOrganization', args);
    await add(ORG1, arguments_(hospital));
    const before = ledger.state.size;
    await add(ORG1, arguments_(hospital));
    assert.strictEqual(ledger.state.size, before);
    await assert.rejects(add(ORG2, arguments_(hospital)), /^Error: organization hospital: the name is registered by Org1MSP$/);
    await assert.rejects(add(ORG1, arguments_(identity('hospital'))), /the name is registered with another key/);
    await assert.rejects(add(ORG2, arguments_({ ...hospital, name: 'bank' })), /organization bank: the key is registered by hospital/);
    await assert.rejects(add(ORG1, ['hospital', hospital.keyId, hospital.publicHex, 'e'.repeat(64)]), /registered with another document/);
});

test('a registration with bad arguments is refused', async () => {
    const ledger = new Ledger();
    const who = identity('hospital');
    const add = (...args) => ledger.submit(ORG1, 'RegisterOrganization', args);
    await assert.rejects(add('a b', who.keyId, who.publicHex, DIGEST), /organization "a b": use 1 to 64/);
    await assert.rejects(add('', who.keyId, who.publicHex, DIGEST), /organization "": use 1 to 64/);
    await assert.rejects(add('coordinator', who.keyId, who.publicHex, DIGEST), /the coordinator's key is given by OpenRun/);
    await assert.rejects(add('hospital', who.keyId, DIGEST, DIGEST), /key id and public key do not belong together/);
    await assert.rejects(add('hospital', 'AB', who.publicHex, DIGEST), /"AB" is not 64 lower-case hex digits/);
    await assert.rejects(add('hospital', who.keyId, who.publicHex, ''), /"" is not 64 lower-case hex digits/);
    assert.strictEqual(ledger.state.size, 0);
});

test('an organization is revoked by an administrator of its MSP only', async () => {
    const ledger = new Ledger();
    const hospital = identity('hospital');
    await ledger.submit(ORG1, 'RegisterOrganization', arguments_(hospital));
    const revoke = (creator, ...args) => ledger.submit(creator, 'RevokeOrganization', args);
    const pattern = /organization hospital: only an administrator of Org1MSP may revoke it in every run/;
    await assert.rejects(revoke(ORG1, 'hospital', 'left', ''), pattern);
    await assert.rejects(revoke(client('Org2MSP', 'admin'), 'hospital', 'left', ''), pattern);
    await assert.rejects(revoke(client('Org1MSP', 'admin'), 'bank', 'left', ''), /organization bank: is not registered/);
    await assert.rejects(revoke(client('Org1MSP', 'admin'), 'hospital', 'a\nb', ''), /the reason needs 1 to 500 characters/);
    await revoke(client('Org1MSP', 'roleAdmin'), 'hospital', 'left', '');
    assert.strictEqual(JSON.parse(await ledger.evaluate(ORG2, 'GetOrganization', ['hospital'])).revoked, 'left');
    await revoke(client('Org1MSP', 'admin'), 'hospital', 'other reason', ''); // the first reason stands
    assert.strictEqual(JSON.parse(await ledger.evaluate(ORG2, 'GetOrganization', ['hospital'])).revoked, 'left');
    await assert.rejects(ledger.submit(ORG1, 'RegisterOrganization', arguments_(hospital)), /hospital: is revoked \(left\)/);
});

test('members of a run revoke an organization in that run by approval, and in no other', async () => {
    const f = await federation();
    await f.append(0, [register(f.hospital), register(f.bank)]);
    const revoke = (creator, run) => f.ledger.submit(creator, 'RevokeOrganization', ['hospital', 'forged', run]);
    await assert.rejects(revoke(ORG2, RUN), /needs a concluded approval organization-revocation of/);
    for (const [creator, name] of [[ORG2, 'Propose'], [ORG2, 'Endorse'], [ORG3, 'Endorse'], [ORG3, 'Conclude']]) {
        await f.ledger.submit(creator, name, ['organization-revocation', RUN, f.hospital.keyId]);
    }
    await assert.rejects(revoke(STRANGER, RUN), /Org9MSP is not a member of run run-1/);
    await revoke(ORG2, RUN);
    await assert.rejects(f.append(2, [leaf(f.hospital)]), /hospital is revoked \(forged\)/);
    await f.append(2, [leaf(f.bank)]);
    const shown = JSON.parse(await f.ledger.evaluate(ORG1, 'ListOrganizations', []));
    assert.deepStrictEqual(shown.map(({ name, revoked, revokedIn }) => [name, revoked, revokedIn]), [
        ['bank', '', {}], ['hospital', '', { [RUN]: 'forged' }],
    ]);
    await f.ledger.submit(ORG1, 'OpenRun', ['other', identity('coordinator').publicHex, '1', '["Org1MSP"]']);
    await f.ledger.submit(ORG1, 'AppendEvents', ['other', '0', JSON.stringify([leaf(f.hospital, { run: 'other' })])]);
});

test('a run is opened once', async () => {
    const ledger = new Ledger();
    const key = identity('coordinator').publicHex;
    const open = (creator, ...args) => ledger.submit(creator, 'OpenRun', args);
    await open(ORG2, RUN, key, '2', ALL);
    await open(ORG2, RUN, key, '2', '["Org3MSP","Org1MSP","Org2MSP"]'); // the same, in another order
    assert.deepStrictEqual(JSON.parse(await ledger.evaluate(ORG1, 'GetRun', [RUN])), {
        coordinator: key, k: 2, msps: ['Org1MSP', 'Org2MSP', 'Org3MSP'], run: RUN, sequencer: 'Org2MSP',
    });
    assert.strictEqual(await ledger.evaluate(ORG1, 'GetRun', ['other']), '');
    const pattern = /^Error: run run-1: is open already, by Org2MSP, with other settings$/;
    await assert.rejects(open(ORG1, RUN, key, '2', ALL), pattern);
    await assert.rejects(open(ORG2, RUN, key, '1', ALL), pattern);
    await assert.rejects(open(ORG2, RUN, DIGEST, '2', ALL), pattern);
    await open(ORG2, 'second', key, '2', ALL); // a coordinator may run several
});

test('a run with bad settings is refused', async () => {
    const ledger = new Ledger();
    const hospital = identity('hospital');
    await ledger.submit(ORG1, 'RegisterOrganization', arguments_(hospital));
    const open = (...args) => ledger.submit(ORG1, 'OpenRun', args);
    await assert.rejects(open(RUN, DIGEST, '0', ALL), /k is 0; it must be 1 to 3/);
    await assert.rejects(open(RUN, DIGEST, '4', ALL), /k is 4; it must be 1 to 3/);
    await assert.rejects(open(RUN, DIGEST, 'two', ALL), /run run-1: k: "two" is not a whole number/);
    await assert.rejects(open(RUN, DIGEST, '1', '[]'), /1 to 100 different MSP ids/);
    await assert.rejects(open(RUN, DIGEST, '1', '["Org1MSP","Org1MSP"]'), /1 to 100 different MSP ids/);
    await assert.rejects(open(RUN, 'key', '1', ALL), /public key of the coordinator: "key" is not 64/);
    await assert.rejects(open('a+b', DIGEST, '1', ALL), /run "a\+b": use 1 to 128 printable/);
    await assert.rejects(open(RUN, hospital.publicHex, '1', ALL), /the coordinator's key is registered by hospital/);
});

test('rounds open and close once', async () => {
    const { ledger } = await federation();
    const other = 'e'.repeat(64);
    const open = (creator, number, base) => ledger.submit(creator, 'OpenRound', [RUN, number, base]);
    const close = (creator, number, digest) => ledger.submit(creator, 'CloseRound', [RUN, number, digest]);
    await open(ORG1, '2', DIGEST);
    await open(ORG1, '10', DIGEST);
    await open(ORG1, '2', DIGEST);
    await assert.rejects(open(ORG1, '2', other), /round "2" of run run-1: was opened with another base/);
    await assert.rejects(close(ORG1, '3', DIGEST), /round "3" of run run-1: was never opened/);
    await close(ORG1, '2', other);
    await close(ORG1, '2', other);
    await open(ORG1, '2', DIGEST);
    await assert.rejects(close(ORG1, '2', DIGEST), /round "2" of run run-1: was closed with another digest/);
    await assert.rejects(open(ORG1, '2', other), /round "2" of run run-1: was closed with another base/);
    await assert.rejects(open(ORG2, '3', DIGEST), /only Org1MSP may do this, not Org2MSP/);
    await assert.rejects(close(ORG2, '10', DIGEST), /only Org1MSP may do this, not Org2MSP/);
    await assert.rejects(open(ORG1, '3', 'base'), /"base" is not 64/);
    await assert.rejects(open(ORG1, 'x', DIGEST), /"x" is not a whole number/);
    assert.deepStrictEqual(JSON.parse(await ledger.evaluate(ORG3, 'GetRounds', [RUN])), [
        { base: DIGEST, digest: other, number: 2 }, { base: DIGEST, digest: '', number: 10 },
    ]);
});

test('a release needs k votes and k endorsing organizations', async () => {
    const { ledger } = await federation();
    const args = ['model-release', RUN, DIGEST];
    const status = () => ledger.evaluate(ORG1, 'GetModelStatus', [RUN, DIGEST]);
    const show = async () => JSON.parse(await ledger.evaluate(ORG1, 'GetApproval', args));
    await assert.rejects(ledger.submit(ORG1, 'Endorse', args), /approval model-release of dddddddddddddddd in run run-1: was not proposed/);
    await assert.rejects(ledger.submit(ORG1, 'Conclude', args), /was not proposed/);
    await assert.rejects(ledger.evaluate(ORG1, 'GetApproval', args), /was not proposed/);
    await ledger.submit(ORG1, 'Propose', args);
    await ledger.submit(ORG2, 'Propose', args);
    await ledger.submit(ORG2, 'Endorse', args);
    await ledger.submit(ORG2, 'Endorse', args);
    assert.deepStrictEqual(await show(), { k: 2, state: 'proposed', votes: ['Org2MSP'] });
    await assert.rejects(ledger.submit(ORG1, 'Conclude', args), /has 1 of 2 votes \(Org2MSP\)/);
    assert.strictEqual(await status(), 'unknown');
    await ledger.submit(ORG1, 'Endorse', args);
    const conclusion = await ledger.endorse(ORG1, 'Conclude', args);
    assert.throws(() => ledger.commit(conclusion, ['Org1MSP']), /ENDORSEMENT_POLICY_FAILURE/);
    ledger.commit(conclusion, ['Org1MSP', 'Org3MSP']);
    await ledger.submit(ORG1, 'Conclude', args);
    assert.deepStrictEqual(await show(), { k: 2, state: 'concluded', votes: ['Org1MSP', 'Org2MSP'] });
    assert.strictEqual(await status(), 'released');
});

test('the key of an approval follows its own policy, not that of the chaincode', async () => {
    // k = 1: one peer suffices although the chaincode asks for a majority; k = 3: two do not.
    for (const [k, endorsers, valid] of [['1', ['Org3MSP'], true], ['3', ['Org1MSP', 'Org2MSP'], false]]) {
        const { ledger } = await federation({ k });
        const args = ['unlearning-certificate', RUN, DIGEST];
        await ledger.submit(ORG1, 'Propose', args);
        for (const creator of [ORG1, ORG2, ORG3]) {
            await ledger.submit(creator, 'Endorse', args);
        }
        const conclusion = await ledger.endorse(ORG1, 'Conclude', args);
        if (valid) {
            ledger.commit(conclusion, endorsers);
        } else {
            assert.throws(() => ledger.commit(conclusion, endorsers), /ENDORSEMENT_POLICY_FAILURE/);
        }
    }
});

test('strangers and unknown kinds have no part in approvals', async () => {
    const { ledger } = await federation();
    for (const name of ['Propose', 'Endorse', 'Conclude']) {
        await assert.rejects(ledger.submit(STRANGER, name, ['model-release', RUN, DIGEST]), /Org9MSP is not a member of run run-1/);
        await assert.rejects(ledger.submit(ORG1, name, ['party', RUN, DIGEST]), /approval "party": unknown kind/);
        await assert.rejects(ledger.submit(ORG1, name, ['model-release', 'other', DIGEST]), /run other: is not open/);
        await assert.rejects(ledger.submit(ORG1, name, ['model-release', RUN, 'x']), /approval model-release: "x" is not 64/);
    }
});

test('a model is revoked after an approval', async () => {
    const { ledger } = await federation();
    const revoke = (creator, reason) => ledger.submit(creator, 'RevokeModel', [RUN, DIGEST, reason]);
    await assert.rejects(revoke(ORG1, 'leak'), /model dddddddddddddddd of run run-1: needs a concluded approval model-revocation/);
    for (const [creator, name] of [[ORG1, 'Propose'], [ORG1, 'Endorse'], [ORG2, 'Endorse'], [ORG2, 'Conclude']]) {
        await ledger.submit(creator, name, ['model-revocation', RUN, DIGEST]);
    }
    await assert.rejects(revoke(STRANGER, 'leak'), /Org9MSP is not a member/);
    await assert.rejects(revoke(ORG1, ''), /the reason needs 1 to 500 characters/);
    await revoke(ORG3, 'leak');
    await revoke(ORG3, 'leak');
    await assert.rejects(revoke(ORG3, 'other'), /is revoked already \(leak\)/);
    assert.strictEqual(await ledger.evaluate(ORG1, 'GetModelStatus', [RUN, DIGEST]), 'revoked');
});
