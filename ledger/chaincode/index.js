'use strict';

const { TrustChain } = require('./lib/contract');

module.exports.contracts = [TrustChain];
