'use strict';

/** The log of a run: leaves by position, appended by one sequencer. */

const check = require('./check');
const { readLeaf, keyIdOf } = require('./envelope');
const merkle = require('./merkle');
const organizations = require('./organizations');
const runs = require('./runs');
const { Slots, slotOf } = require('./slots');
const { canonical } = require('./canonical');
const { key, get, getText, put, putText } = require('./state');

/** Public keys of the signers of one batch: each organization is looked up once. */
class Signers {
    constructor(ctx, run) {
        this.ctx = ctx;
        this.run = run;
        /** @type {Map<string, {keyId: string, publicKey: string}>} */
        this.known = new Map([
            [check.COORDINATOR, { keyId: keyIdOf(run.coordinator), publicKey: run.coordinator }],
        ]);
    }

    /** Key of the event's organization; a REGISTER event of a newcomer registers it. */
    async of(event) {
        if (event.type === 'REGISTER') {
            const { body } = event;
            if (body.organization !== event.organization || body.key_id !== event.keyId) {
                check.refuse('the REGISTER event does not register its own name and signing key');
            }
        }
        let signer = this.known.get(event.organization);
        if (signer === undefined) {
            signer = await this.load(event);
            this.known.set(event.organization, signer);
        }
        if (signer.keyId !== event.keyId
            || (event.type === 'REGISTER' && event.body.public_key !== signer.publicKey)) {
            check.refuse(`${event.organization} is registered with another key`);
        }
        return signer.publicKey;
    }

    async load(event) {
        const { body, organization } = event;
        const registered = await organizations.find(this.ctx, check.organization(organization));
        if (registered !== undefined) {
            const reason = await organizations.revokedIn(this.ctx, registered, this.run.run);
            if (reason !== '') {
                check.refuse(`${organization} is revoked (${reason})`);
            }
            return registered;
        }
        if (event.type !== 'REGISTER') {
            check.refuse(`${organization} is not registered; append its REGISTER event first`);
        }
        return organizations.register(
            this.ctx, organization, event.keyId, String(body.public_key), String(body.document));
    }
}

/** Read and check one leaf; returns its event. */
async function admit(leaf, run, signers) {
    const event = readLeaf(leaf);
    if (event.run !== run.run) {
        check.refuse(`belongs to run ${check.quote(event.run)}; a replay from elsewhere?`);
    }
    const publicKey = await signers.of(event);
    if (!event.signedBy(publicKey)) {
        check.refuse('the signature does not hold: content or signature was changed');
    }
    return event;
}

/**
 * Append leaves from a position on. What stands there already with the same bytes is skipped, so that a retry is
 * harmless.
 * @returns {Promise<number>} size of the log afterwards
 */
async function append(ctx, run, startText, leavesJson) {
    const opened = await runs.sequenced(ctx, run);
    const { stub } = ctx;
    const start = check.count(startText, `run ${run}: start`);
    const leaves = check.strings(leavesJson, check.MAX_BATCH, `run ${run}: events`);
    const log = await get(stub, key.size(stub, run));
    if (start > log.size) {
        check.refuse(`run ${run}: event ${start} cannot be appended, the log has ${log.size}; send what lies between`);
    }
    const skipped = Math.min(log.size - start, leaves.length);
    for (let i = 0; i < skipped; i++) {
        if (await getText(stub, key.event(stub, run, start + i)) !== leaves[i]) {
            check.refuse(`event ${start + i} of run ${run}: is already another`);
        }
    }
    if (skipped === leaves.length) {
        return log.size;
    }
    const first = log.size;
    const signers = new Signers(ctx, opened);
    const events = [];
    for (const leaf of leaves.slice(skipped)) {
        const what = `event ${first + events.length} of run ${run}`;
        try {
            events.push(await admit(leaf, opened, signers));
        } catch (error) {
            check.refuse(`${what}: ${error.message}`);
        }
    }
    const slots = await Slots.load(stub, run);
    const wanted = events.map(({ organization, key: name }) => slotOf(organization, name));
    const taken = slots.taken(new Set(wanted));
    for (const [i, slot] of wanted.entries()) {
        if (taken.has(slot)) {
            const { organization, key: name } = events[i];
            check.refuse(`event ${first + i} of run ${run}: ${organization} has used the key ${check.quote(name)} `
                + `already, in event ${taken.get(slot)}`);
        }
        taken.set(slot, first + i);
        slots.push(slot);
    }
    for (const leaf of leaves.slice(skipped)) {
        await putText(stub, key.event(stub, run, log.size), leaf);
        merkle.append(log.frontier, log.size, merkle.leafHash(leaf));
        log.size += 1;
    }
    await slots.save(stub, run);
    await put(stub, key.size(stub, run), log);
    stub.setEvent('events', Buffer.from(canonical({ count: log.size - first, run, start: first })));
    return log.size;
}

/** Number of events and root of the log. */
async function head(ctx, run) {
    await runs.find(ctx, run);
    const log = await get(ctx.stub, key.size(ctx.stub, run));
    return { root: merkle.rootOf(log.frontier), size: log.size };
}

/** One leaf. */
async function event(ctx, run, index) {
    const number = check.count(index, `run ${check.run(run)}: index`);
    const leaf = await getText(ctx.stub, key.event(ctx.stub, run, number));
    return leaf ?? check.refuse(`event ${number} of run ${run}: there is none`);
}

/** Leaves from a position on, at most `count`. */
async function events(ctx, run, start, count) {
    const { stub } = ctx;
    await runs.find(ctx, run);
    const from = check.count(start, `run ${run}: start`);
    const wanted = check.count(count, `run ${run}: count`);
    if (wanted < 1 || wanted > check.MAX_BATCH) {
        check.refuse(`run ${run}: ${wanted} events; ask for 1 to ${check.MAX_BATCH}`);
    }
    const leaves = [];
    // A bookmark is the key at which the next page begins.
    const page = stub.getStateByPartialCompositeKeyWithPagination(
        'event', [run], wanted, key.event(stub, run, from));
    for await (const entry of page) {
        leaves.push(Buffer.from(entry.value).toString());
    }
    return leaves;
}

/** Every value that ever stood at a position: [{isDelete, time (ms), txId, value}]. */
async function history(ctx, run, index) {
    const number = check.count(index, `run ${check.run(run)}: index`);
    const entries = [];
    for await (const entry of ctx.stub.getHistoryForKey(key.event(ctx.stub, run, number))) {
        const { seconds, nanos } = entry.timestamp;
        entries.push({
            isDelete: entry.isDelete,
            time: Number(seconds) * 1000 + Math.floor(nanos / 1e6),
            txId: entry.txId,
            value: Buffer.from(entry.value).toString(),
        });
    }
    return entries;
}

/** Position of the event with that idempotency key, or ''. */
async function find(ctx, run, organization, idempotencyKey) {
    check.run(run);
    const slot = slotOf(check.organization(organization), idempotencyKey);
    const position = (await Slots.load(ctx.stub, run)).taken(new Set([slot])).get(slot);
    return position === undefined ? '' : String(position);
}

module.exports = { append, head, event, events, history, find };
