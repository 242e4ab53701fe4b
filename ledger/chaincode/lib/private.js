'use strict';

/** Private data: `requests` for all members, `shards_<MSP>` for one. Nothing public is written here. */

const { mspOf } = require('./access');
const check = require('./check');

const SHARDS = 'shards_';
const MAX_BYTES = 1024 * 1024;
const MAX_KEY = 256;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Check collection and key, and (where it is for one organization) the submitter; returns the subject of messages. */
function named(ctx, collection, key) {
    if (collection !== 'requests' && !collection.startsWith(SHARDS)) {
        check.refuse(`private ${check.quote(collection)}: unknown collection; known: requests, ${SHARDS}<MSP>`);
    }
    if (key.length === 0 || key.length > MAX_KEY || key.startsWith('\u0000')) {
        check.refuse(`private ${collection}: the key needs 1 to ${MAX_KEY} characters`);
    }
    return `private ${collection}/${key.replace(/[\u0000-\u001f\u007f]/g, '?')}`;
}

function requireOwner(ctx, collection, what) {
    if (collection.startsWith(SHARDS) && collection !== SHARDS + mspOf(ctx)) {
        check.refuse(`${what}: only ${collection.slice(SHARDS.length)} may see or change it, not ${mspOf(ctx)}`);
    }
}

/** Put the transient field `value`: text that carries its own salt. */
async function put(ctx, collection, key) {
    const what = named(ctx, collection, key);
    requireOwner(ctx, collection, what);
    const value = ctx.stub.getTransient().get('value');
    if (value === undefined || value.length === 0) {
        check.refuse(`${what}: the transient field "value" is missing or empty`);
    }
    if (value.length > MAX_BYTES) {
        check.refuse(`${what}: ${value.length} bytes; at most ${MAX_BYTES} are taken`);
    }
    try {
        utf8.decode(value);
    } catch {
        check.refuse(`${what}: the value is not UTF-8 text`);
    }
    await ctx.stub.putPrivateData(collection, key, value);
}

/** The value, or ''. */
async function get(ctx, collection, key) {
    requireOwner(ctx, collection, named(ctx, collection, key));
    return Buffer.from(await ctx.stub.getPrivateData(collection, key)).toString();
}

/** Remove the value and all its past values from the peers; its hash stays in the blocks. */
async function purge(ctx, collection, key) {
    requireOwner(ctx, collection, named(ctx, collection, key));
    await ctx.stub.purgePrivateData(collection, key);
}

/** SHA-256 of the value in hex, or ''; anybody in the channel may ask. */
async function hash(ctx, collection, key) {
    named(ctx, collection, key);
    return Buffer.from(await ctx.stub.getPrivateDataHash(collection, key)).toString('hex');
}

module.exports = { put, get, purge, hash };
