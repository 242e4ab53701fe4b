'use strict';

/** Endorsement policies of single keys: k of n organizations, which the shim's own helper (all of n) cannot say. */

const { common, msp } = require('@hyperledger/fabric-protos');

/**
 * @param {number} k endorsements that are needed
 * @param {string[]} msps whose peers may give them, in order
 * @returns {Uint8Array} SignaturePolicyEnvelope
 */
function outOf(k, msps) {
    const rules = new common.SignaturePolicy.NOutOf();
    rules.setN(k);
    const envelope = new common.SignaturePolicyEnvelope();
    msps.forEach((id, index) => {
        const role = new msp.MSPRole();
        role.setMspIdentifier(id);
        role.setRole(msp.MSPRole.MSPRoleType.PEER);
        const principal = new msp.MSPPrincipal();
        principal.setPrincipalClassification(msp.MSPPrincipal.Classification.ROLE);
        principal.setPrincipal(role.serializeBinary());
        envelope.addIdentities(principal);
        const signedBy = new common.SignaturePolicy();
        signedBy.setSignedBy(index);
        rules.addRules(signedBy);
    });
    const rule = new common.SignaturePolicy();
    rule.setNOutOf(rules);
    envelope.setVersion(0);
    envelope.setRule(rule);
    return envelope.serializeBinary();
}

module.exports = { outOf };
