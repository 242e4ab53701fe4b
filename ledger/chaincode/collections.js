'use strict';

/**
 * Private data collections for given MSPs: `node collections.js Org1MSP Org2MSP > collections.json`.
 * `requests` is for all of them; `shards_<MSP>` for one, which also endorses it alone.
 */

/** @param {string[]} msps */
function collections(msps) {
    const common = { requiredPeerCount: 0, blockToLive: 0, memberOnlyRead: true, memberOnlyWrite: true };
    const members = msps.map((id) => `'${id}.member'`).join(', ');
    return [
        { name: 'requests', policy: `OR(${members})`, maxPeerCount: Math.max(1, msps.length - 1), ...common },
        ...msps.map((id) => ({
            name: `shards_${id}`,
            policy: `OR('${id}.member')`,
            maxPeerCount: 1,
            ...common,
            endorsementPolicy: { signaturePolicy: `OR('${id}.peer')` },
        })),
    ];
}

module.exports = { collections };

if (require.main === module) {
    process.stdout.write(`${JSON.stringify(collections(process.argv.slice(2)), null, 2)}\n`);
}
