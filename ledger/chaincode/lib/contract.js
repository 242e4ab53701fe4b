'use strict';

/** The transactions of the chaincode. Arguments and results are strings; JSON where the comment says so. */

const { Contract } = require('fabric-contract-api');

const approvals = require('./approvals');
const { canonical } = require('./canonical');
const heads = require('./heads');
const log = require('./log');
const models = require('./models');
const organizations = require('./organizations');
const privateData = require('./private');
const runs = require('./runs');

class TrustChain extends Contract {
    constructor() {
        super('trustchain');
    }

    /** Every refusal reaches the client as one line, whoever raised it. */
    async aroundTransaction(ctx, name, parameters) {
        try {
            return await super.aroundTransaction(ctx, name, parameters);
        } catch (error) {
            throw new Error(error.message.replace(/\s+/g, ' '));
        }
    }

    async RegisterOrganization(ctx, name, keyId, publicKeyHex, documentDigest) {
        await organizations.register(ctx, name, keyId, publicKeyHex, documentDigest);
    }

    /** `run` empty: everywhere, by an administrator of its MSP; else in that run, after an approval. */
    async RevokeOrganization(ctx, name, reason, run) {
        await organizations.revoke(ctx, name, reason, run);
    }

    /** JSON, or ''. */
    async GetOrganization(ctx, name) {
        const found = await organizations.show(ctx, name);
        return found === undefined ? '' : canonical(found);
    }

    /** JSON list. */
    async ListOrganizations(ctx) {
        return canonical(await organizations.all(ctx));
    }

    /** `coordinator`: its public key in hex; `mspsJson`: JSON list of the MSPs of which `k` approve. */
    async OpenRun(ctx, run, coordinator, k, mspsJson) {
        await runs.open(ctx, run, coordinator, k, mspsJson);
    }

    /** JSON, or ''. */
    async GetRun(ctx, run) {
        const found = await runs.show(ctx, run);
        return found === undefined ? '' : canonical(found);
    }

    async OpenRound(ctx, run, number, base) {
        await runs.openRound(ctx, run, number, base);
    }

    async CloseRound(ctx, run, number, digest) {
        await runs.closeRound(ctx, run, number, digest);
    }

    /** JSON list of {base, digest, number}. */
    async GetRounds(ctx, run) {
        return canonical(await runs.rounds(ctx, run));
    }

    /** `leavesJson`: JSON list of leaves; returns JSON {size}. */
    async AppendEvents(ctx, run, start, leavesJson) {
        return canonical({ size: await log.append(ctx, run, start, leavesJson) });
    }

    async GetSize(ctx, run) {
        return String((await log.head(ctx, run)).size);
    }

    /** JSON {root, size}. */
    async GetRoot(ctx, run) {
        return canonical(await log.head(ctx, run));
    }

    async GetEvent(ctx, run, index) {
        return log.event(ctx, run, index);
    }

    /** JSON list of leaves. */
    async GetEvents(ctx, run, start, count) {
        return canonical(await log.events(ctx, run, start, count));
    }

    /** JSON list of {isDelete, time, txId, value}. */
    async GetHistory(ctx, run, index) {
        return canonical(await log.history(ctx, run, index));
    }

    async FindEvent(ctx, run, organization, key) {
        return log.find(ctx, run, organization, key);
    }

    async PutHead(ctx, run, note, proofJson) {
        await heads.put(ctx, run, note, proofJson);
    }

    async GetHead(ctx, run) {
        return heads.last(ctx, run);
    }

    async Propose(ctx, kind, run, digest) {
        await approvals.propose(ctx, kind, run, digest);
    }

    async Endorse(ctx, kind, run, digest) {
        await approvals.endorse(ctx, kind, run, digest);
    }

    async Conclude(ctx, kind, run, digest) {
        await approvals.conclude(ctx, kind, run, digest);
    }

    /** JSON {k, state, votes}. */
    async GetApproval(ctx, kind, run, digest) {
        return canonical(await approvals.show(ctx, kind, run, digest));
    }

    async RevokeModel(ctx, run, digest, reason) {
        await models.revoke(ctx, run, digest, reason);
    }

    async GetModelStatus(ctx, run, digest) {
        return models.status(ctx, run, digest);
    }

    /** The value comes in the transient field `value`. */
    async PutPrivate(ctx, collection, key) {
        await privateData.put(ctx, collection, key);
    }

    async GetPrivate(ctx, collection, key) {
        return privateData.get(ctx, collection, key);
    }

    async PurgePrivate(ctx, collection, key) {
        await privateData.purge(ctx, collection, key);
    }

    async GetPrivateHash(ctx, collection, key) {
        return privateData.hash(ctx, collection, key);
    }
}

module.exports = { TrustChain };
