'use strict';

/** Runs, their sequencer and their rounds. */

const { mspOf, requireCoordinator, requireMsp } = require('./access');
const { canonical } = require('./canonical');
const check = require('./check');
const { keyIdOf } = require('./envelope');
const { key, get, list, put } = require('./state');

/**
 * @typedef {object} Run
 * @property {string} run
 * @property {string} coordinator public key, hex
 * @property {number} k approvals that a release needs
 * @property {string[]} msps that approve, sorted
 * @property {string} sequencer MSP that appends
 */

/** @returns {Promise<Run | undefined>} */
async function show(ctx, run) {
    return get(ctx.stub, key.run(ctx.stub, check.run(run)));
}

/** @returns {Promise<Run>} */
async function find(ctx, run) {
    return await show(ctx, run) ?? check.refuse(`run ${run}: is not open; its coordinator opens it with OpenRun`);
}

/** The run, if the submitter is its sequencer. */
async function sequenced(ctx, run) {
    const opened = await find(ctx, run);
    requireMsp(ctx, opened.sequencer, `run ${run}`);
    requireCoordinator(ctx, `run ${run}`);
    return opened;
}

/** The submitter becomes the sequencer; a no-op where it stands already. */
async function open(ctx, run, coordinator, k, mspsJson) {
    const what = `run ${check.run(run)}`;
    requireCoordinator(ctx, what);
    check.digest(coordinator, `${what}: public key of the coordinator`);
    const msps = check.msps(mspsJson, what);
    const made = { run, coordinator, k: check.count(k, `${what}: k`), msps, sequencer: mspOf(ctx) };
    if (made.k < 1 || made.k > msps.length) {
        check.refuse(`${what}: k is ${made.k}; it must be 1 to ${msps.length}, the number of MSPs`);
    }
    const runKey = key.run(ctx.stub, run);
    const opened = await get(ctx.stub, runKey);
    if (opened !== undefined) {
        if (canonical(opened) !== canonical(made)) {
            check.refuse(`${what}: is open already, by ${opened.sequencer}, with other settings`);
        }
        return;
    }
    const keyId = keyIdOf(coordinator);
    const owner = await get(ctx.stub, key.owner(ctx.stub, keyId));
    if (owner !== undefined && owner !== check.COORDINATOR) {
        check.refuse(`${what}: the coordinator's key is registered by ${owner}`);
    }
    await put(ctx.stub, runKey, made);
    await put(ctx.stub, key.size(ctx.stub, run), { frontier: [], size: 0 });
    if (owner === undefined) {
        await put(ctx.stub, key.owner(ctx.stub, keyId), check.COORDINATOR);
    }
}

/** Open a round on a base; the same again is a no-op, before and after it was closed. */
async function openRound(ctx, run, number, base) {
    await sequenced(ctx, run);
    const what = `round ${check.quote(number)} of run ${run}`;
    const made = { base: check.digest(base, what), digest: '', number: check.count(number, what) };
    const roundKey = key.round(ctx.stub, run, made.number);
    const known = await get(ctx.stub, roundKey);
    if (known === undefined) {
        await put(ctx.stub, roundKey, made);
    } else if (known.base !== base) {
        check.refuse(`${what}: was ${known.digest === '' ? 'opened' : 'closed'} with another base`);
    }
}

/** Close a round with the digest of its result; the same again is a no-op. */
async function closeRound(ctx, run, number, digest) {
    await sequenced(ctx, run);
    const what = `round ${check.quote(number)} of run ${run}`;
    check.digest(digest, what);
    const roundKey = key.round(ctx.stub, run, check.count(number, what));
    const known = await get(ctx.stub, roundKey);
    if (known === undefined) {
        check.refuse(`${what}: was never opened`);
    }
    if (known.digest === '') {
        await put(ctx.stub, roundKey, { ...known, digest });
    } else if (known.digest !== digest) {
        check.refuse(`${what}: was closed with another digest`);
    }
}

/** All rounds of a run, in order. */
async function rounds(ctx, run) {
    await find(ctx, run);
    return (await list(ctx.stub, 'round', [run])).map(({ value }) => JSON.parse(value));
}

module.exports = { show, find, sequenced, open, openRound, closeRound, rounds };
