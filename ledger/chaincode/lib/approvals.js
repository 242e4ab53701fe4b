'use strict';

/** Approvals by k of n organizations: votes in the chaincode, and endorsements that Fabric itself demands. */

const { mspOf, requireMember } = require('./access');
const check = require('./check');
const { outOf } = require('./policy');
const runs = require('./runs');
const { key, get, put } = require('./state');

const KINDS = ['model-release', 'model-revocation', 'organization-revocation', 'unlearning-certificate'];

/** Check the three parts of an approval's name; returns the run and the subject of messages. */
async function named(ctx, kind, run, digest) {
    if (!KINDS.includes(kind)) {
        check.refuse(`approval ${check.quote(kind)}: unknown kind; known: ${KINDS.join(', ')}`);
    }
    const what = `approval ${kind} of ${check.digest(digest, `approval ${kind}`).slice(0, 16)} in run ${run}`;
    return { opened: await runs.find(ctx, run), what };
}

/** Open an approval. From now on its key can be changed only with the endorsement of k of the run's MSPs. */
async function propose(ctx, kind, run, digest) {
    const { opened, what } = await named(ctx, kind, run, digest);
    requireMember(ctx, opened, what);
    const approvalKey = key.approval(ctx.stub, kind, run, digest);
    if (await get(ctx.stub, approvalKey) !== undefined) {
        return;
    }
    await put(ctx.stub, approvalKey, { state: 'proposed' });
    await ctx.stub.setStateValidationParameter(approvalKey, outOf(opened.k, opened.msps));
}

/** Record the vote of the submitter's MSP. */
async function endorse(ctx, kind, run, digest) {
    const { opened, what } = await named(ctx, kind, run, digest);
    requireMember(ctx, opened, what);
    await found(ctx, kind, run, digest, what);
    const voteKey = key.vote(ctx.stub, kind, run, digest, mspOf(ctx));
    if (await get(ctx.stub, voteKey) === undefined) {
        await put(ctx.stub, voteKey, true);
    }
}

/** Conclude an approval that has its k votes. Writes the approval's key only, so that its own policy decides. */
async function conclude(ctx, kind, run, digest) {
    const { opened, what } = await named(ctx, kind, run, digest);
    requireMember(ctx, opened, what);
    const approval = await found(ctx, kind, run, digest, what);
    if (approval.state === 'concluded') {
        return;
    }
    const given = await votes(ctx, kind, opened, digest);
    if (given.length < opened.k) {
        check.refuse(`${what}: has ${given.length} of ${opened.k} votes (${given.join(', ') || 'none'})`);
    }
    await put(ctx.stub, key.approval(ctx.stub, kind, run, digest), { state: 'concluded' });
}

/** State of an approval: {k, state, votes}. */
async function show(ctx, kind, run, digest) {
    const { opened, what } = await named(ctx, kind, run, digest);
    const { state } = await found(ctx, kind, run, digest, what);
    return { k: opened.k, state, votes: await votes(ctx, kind, opened, digest) };
}

/** Whether an approval was concluded; one that nobody proposed was not. */
async function isConcluded(ctx, kind, run, digest) {
    const approval = await get(ctx.stub, key.approval(ctx.stub, kind, run, digest));
    return approval !== undefined && approval.state === 'concluded';
}

/** Refuse unless the approval was concluded. */
async function requireConcluded(ctx, kind, run, digest, what) {
    if (!await isConcluded(ctx, kind, run, digest)) {
        check.refuse(`${what}: needs a concluded approval ${kind} of ${digest} in run ${run}`);
    }
}

async function found(ctx, kind, run, digest, what) {
    return await get(ctx.stub, key.approval(ctx.stub, kind, run, digest)) ?? check.refuse(`${what}: was not proposed`);
}

async function votes(ctx, kind, opened, digest) {
    const given = [];
    for (const msp of opened.msps) {
        if (await get(ctx.stub, key.vote(ctx.stub, kind, opened.run, digest, msp)) !== undefined) {
            given.push(msp);
        }
    }
    return given;
}

module.exports = { KINDS, propose, endorse, conclude, show, isConcluded, requireConcluded };
