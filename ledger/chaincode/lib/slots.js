'use strict';

/**
 * Idempotency: each (organization, key) stands once in the log of a run.
 *
 * A state key of its own for each slot would cost a read and a write an event, two of three calls from chaincode to
 * peer. So digests of 16 bytes lie in pages, in the order of the log: a batch reads all pages with one range query
 * (16 bytes an event of the run) and writes only the last ones.
 */

const crypto = require('node:crypto');

const { key, pages } = require('./state');

const BYTES = 16;
const PER_PAGE = 256;

/**
 * @param {string} organization without a slash
 * @param {string} idempotencyKey any text
 * @returns {string} 16 bytes, one character each
 */
function slotOf(organization, idempotencyKey) {
    const digest = crypto.createHash('sha256').update(`${organization}/${idempotencyKey}`).digest();
    return digest.latin1Slice(0, BYTES);
}

class Slots {
    /** @param {Buffer[]} read pages in order */
    constructor(read) {
        this.pages = read;
        this.changed = new Set();
    }

    /** All slots of a run. */
    static async load(stub, run) {
        return new Slots(await pages(stub, run));
    }

    /** Position of each of the wanted slots that is taken: Map of slot to position. */
    taken(wanted) {
        const found = new Map();
        this.pages.forEach((page, number) => {
            for (let offset = 0; offset < page.length; offset += BYTES) {
                const slot = page.latin1Slice(offset, offset + BYTES);
                if (wanted.has(slot)) {
                    found.set(slot, number * PER_PAGE + offset / BYTES);
                }
            }
        });
        return found;
    }

    /** Enter the slot of the next event. */
    push(slot) {
        let last = this.pages.length - 1;
        if (last < 0 || this.pages[last].length === BYTES * PER_PAGE) {
            this.pages.push(Buffer.alloc(0));
            last += 1;
        }
        this.pages[last] = Buffer.concat([this.pages[last], Buffer.from(slot, 'latin1')]);
        this.changed.add(last);
    }

    /** Write the pages that changed. */
    async save(stub, run) {
        for (const number of this.changed) {
            await stub.putState(key.slots(stub, run, number), this.pages[number]);
        }
    }
}

module.exports = { Slots, slotOf };
