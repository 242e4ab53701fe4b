'use strict';

/** Who submits a transaction: MSP, roles. */

const { X509Certificate } = require('node:crypto');

const { refuse } = require('./check');

const ROLE = 'trustchain.role';

/** MSP id of the submitter. */
function mspOf(ctx) {
    return ctx.clientIdentity.getMSPID();
}

/** Whether the submitter is an administrator of its MSP: by NodeOU or by attribute. */
function isAdmin(ctx) {
    const certificate = new X509Certificate(ctx.clientIdentity.getIDBytes());
    return certificate.subject.split('\n').includes('OU=admin')
        || ctx.clientIdentity.assertAttributeValue(ROLE, 'admin');
}

/**
 * Refuse unless the submitter is of that MSP.
 * @param {string} what subject of the message
 */
function requireMsp(ctx, msp, what) {
    if (mspOf(ctx) !== msp) {
        refuse(`${what}: only ${msp} may do this, not ${mspOf(ctx)}`);
    }
}

/** Refuse unless the submitter belongs to one of the run's MSPs. */
function requireMember(ctx, run, what) {
    if (!run.msps.includes(mspOf(ctx))) {
        refuse(`${what}: ${mspOf(ctx)} is not a member of run ${run.run}`);
    }
}

/** Refuse a submitter without the coordinator's role, where this chaincode was started to demand it. */
function requireCoordinator(ctx, what) {
    if (process.env.TRUSTCHAIN_COORDINATOR_ROLE === 'required'
        && !ctx.clientIdentity.assertAttributeValue(ROLE, 'coordinator')) {
        refuse(`${what}: the client's certificate lacks the attribute ${ROLE}=coordinator`);
    }
}

module.exports = { mspOf, isAdmin, requireMsp, requireMember, requireCoordinator };
