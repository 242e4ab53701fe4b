'use strict';

/** Signed tree heads of a run: only a head that extends the last one is taken. */

const { mspOf, requireMember } = require('./access');
const { canonical } = require('./canonical');
const check = require('./check');
const log = require('./log');
const merkle = require('./merkle');
const { readNote } = require('./note');
const runs = require('./runs');
const { key, getText, putText } = require('./state');

/**
 * @param {string} note C2SP signed tree head
 * @param {string} proofJson consistency proof from the last head, list of hex hashes
 */
async function put(ctx, run, note, proofJson) {
    const opened = await runs.find(ctx, run);
    const what = `head of run ${run}`;
    if (mspOf(ctx) !== opened.sequencer) {
        requireMember(ctx, opened, what);
    }
    const origin = `trustchain/${run}`;
    const proof = check.strings(proofJson, 100, `${what}: proof`);
    proof.forEach((hash) => check.digest(hash, `${what}: proof`));
    let head;
    try {
        head = readNote(note, origin, opened.coordinator);
    } catch (error) {
        check.refuse(`${what}: ${error.message}`);
    }
    const headKey = key.head(ctx.stub, run);
    const lastNote = await getText(ctx.stub, headKey);
    if (lastNote !== undefined) {
        const last = readNote(lastNote, origin, opened.coordinator);
        if (last.text === head.text) {
            return;
        }
        if (head.size < last.size) {
            check.refuse(`${what}: ${head.size} events; the last head has ${last.size}, a log never shrinks`);
        }
        if (!merkle.isConsistent(last.size, last.root, head.size, head.root, proof)) {
            check.refuse(`${what}: ${head.size} events that do not extend the last head of ${last.size}`);
        }
    }
    const stored = await log.head(ctx, run);
    if (head.size > stored.size) {
        check.refuse(`${what}: ${head.size} events; the log here has ${stored.size}, append them first`);
    }
    if (head.size === stored.size && head.root !== stored.root) {
        check.refuse(`${what}: its root is not the root of the ${stored.size} events here`);
    }
    await putText(ctx.stub, headKey, note);
    ctx.stub.setEvent('head', Buffer.from(canonical({ root: head.root, run, size: head.size })));
}

/** The last head, or ''. */
async function last(ctx, run) {
    return await getText(ctx.stub, key.head(ctx.stub, check.run(run))) ?? '';
}

module.exports = { put, last };
