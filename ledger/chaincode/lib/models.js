'use strict';

/** Models: released by approval, revoked by approval. */

const { requireMember } = require('./access');
const approvals = require('./approvals');
const check = require('./check');
const runs = require('./runs');
const { key, get, put } = require('./state');

/** Revoke a model whose revocation the run's members approved. */
async function revoke(ctx, run, digest, reason) {
    const opened = await runs.find(ctx, run);
    const what = `model ${check.digest(digest, 'model').slice(0, 16)} of run ${run}`;
    requireMember(ctx, opened, what);
    check.reason(reason, what);
    await approvals.requireConcluded(ctx, 'model-revocation', run, digest, what);
    const revocation = key.modelRevocation(ctx.stub, run, digest);
    const known = await get(ctx.stub, revocation);
    if (known === undefined) {
        await put(ctx.stub, revocation, reason);
    } else if (known !== reason) {
        check.refuse(`${what}: is revoked already (${known})`);
    }
}

/** `released`, `revoked` or `unknown`. */
async function status(ctx, run, digest) {
    check.run(run);
    check.digest(digest, 'model');
    if (await get(ctx.stub, key.modelRevocation(ctx.stub, run, digest)) !== undefined) {
        return 'revoked';
    }
    return await approvals.isConcluded(ctx, 'model-release', run, digest) ? 'released' : 'unknown';
}

module.exports = { revoke, status };
