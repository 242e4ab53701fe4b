'use strict';

/** The register of organizations: one key an organization, one organization a key, vouched for by an MSP. */

const { isAdmin, mspOf, requireMember } = require('./access');
const approvals = require('./approvals');
const check = require('./check');
const { keyIdOf } = require('./envelope');
const runs = require('./runs');
const { key, get, list, put } = require('./state');

/**
 * @typedef {object} Organization
 * @property {string} name
 * @property {string} keyId
 * @property {string} publicKey hex
 * @property {string} document digest of its public document
 * @property {string} msp that vouches for it
 * @property {string} revoked reason, or ''
 */

/** @returns {Promise<Organization | undefined>} */
async function find(ctx, name) {
    return get(ctx.stub, key.organization(ctx.stub, name));
}

/**
 * Register a name, vouched for by the submitter's MSP; a no-op where it stands already.
 * @returns {Promise<Organization>}
 */
async function register(ctx, name, keyId, publicKey, document) {
    const what = `organization ${check.organization(name)}`;
    if (name === check.COORDINATOR) {
        check.refuse(`${what}: is no organization; the coordinator's key is given by OpenRun`);
    }
    check.digest(keyId, what);
    check.digest(publicKey, what);
    check.digest(document, what);
    if (keyIdOf(publicKey) !== keyId) {
        check.refuse(`${what}: key id and public key do not belong together`);
    }
    const msp = mspOf(ctx);
    const known = await find(ctx, name);
    if (known !== undefined) {
        if (known.revoked !== '') {
            check.refuse(`${what}: is revoked (${known.revoked})`);
        }
        if (known.msp !== msp) {
            check.refuse(`${what}: the name is registered by ${known.msp}`);
        }
        if (known.keyId !== keyId) {
            check.refuse(`${what}: the name is registered with another key`);
        }
        if (known.document !== document) {
            check.refuse(`${what}: is registered with another document`);
        }
        return known;
    }
    const ownerKey = key.owner(ctx.stub, keyId);
    const owner = await get(ctx.stub, ownerKey);
    if (owner !== undefined) {
        check.refuse(`${what}: the key is registered by ${owner}`);
    }
    const made = { name, keyId, publicKey, document, msp, revoked: '' };
    await put(ctx.stub, key.organization(ctx.stub, name), made);
    await put(ctx.stub, ownerKey, name);
    return made;
}

/** Revoke everywhere, by an administrator of the vouching MSP; or in one run, by its members' approval. */
async function revoke(ctx, name, reason, run) {
    const what = `organization ${check.organization(name)}`;
    check.reason(reason, what);
    const known = await find(ctx, name);
    if (known === undefined) {
        check.refuse(`${what}: is not registered`);
    }
    if (run !== '') {
        const opened = await runs.find(ctx, run);
        requireMember(ctx, opened, what);
        await approvals.requireConcluded(ctx, 'organization-revocation', run, known.keyId, what);
        const revocation = key.revocation(ctx.stub, name, run);
        if (await get(ctx.stub, revocation) === undefined) {
            await put(ctx.stub, revocation, reason);
        }
        return;
    }
    if (mspOf(ctx) !== known.msp || !isAdmin(ctx)) {
        check.refuse(`${what}: only an administrator of ${known.msp} may revoke it in every run`);
    }
    if (known.revoked === '') {
        await put(ctx.stub, key.organization(ctx.stub, name), { ...known, revoked: reason });
    }
}

/** Reason of a revocation that holds in the run, or ''. */
async function revokedIn(ctx, organization, run) {
    return organization.revoked || await get(ctx.stub, key.revocation(ctx.stub, organization.name, run)) || '';
}

async function withRevocations(ctx, organization) {
    const entries = await list(ctx.stub, 'revocation', [organization.name]);
    return {
        ...organization,
        revokedIn: Object.fromEntries(entries.map(({ parts, value }) => [parts[1], JSON.parse(value)])),
    };
}

/** The organization and its revocations, or undefined. */
async function show(ctx, name) {
    const known = await find(ctx, check.organization(name));
    return known && withRevocations(ctx, known);
}

/** All organizations, by name. */
async function all(ctx) {
    const found = [];
    for (const { value } of await list(ctx.stub, 'organization', [])) {
        found.push(await withRevocations(ctx, JSON.parse(value)));
    }
    return found;
}

module.exports = { find, register, revoke, revokedIn, show, all };
