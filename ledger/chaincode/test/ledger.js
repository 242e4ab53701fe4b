'use strict';

/**
 * A ledger in memory for tests. It stands where a peer stands: the chaincode runs in the real shim and contract API.
 * Like Fabric it simulates on the committed state, then checks endorsement policies (chaincode, key, collection),
 * versions and ranges, and only then writes.
 */

process.env.CORE_CHAINCODE_LOGGING_LEVEL = 'CRITICAL'; // refusals are expected here

const crypto = require('node:crypto');

const { common, msp: mspProtos, peer } = require('@hyperledger/fabric-protos');
const { JSONSerializer } = require('fabric-contract-api');
const ChaincodeFromContract = require('fabric-shim/lib/contract-spi/chaincodefromcontract');
const Stub = require('fabric-shim/lib/stub');

const { collections } = require('../collections');
const { contracts } = require('../index');

const certificates = require('./certificates.json');

const CHANNEL = 'trustchain';
const MSPS = ['Org1MSP', 'Org2MSP', 'Org3MSP'];

/** A client of an MSP: `client`, `admin` (NodeOU), `coordinator` or `roleAdmin` (attribute). */
function client(mspid, kind = 'client') {
    return { mspid, idBytes: Buffer.from(certificates[kind]) };
}

/** What the peer does for one transaction: reads of the committed state, writes kept aside. */
class Simulation {
    constructor(ledger, creator, peerMsp) {
        this.ledger = ledger;
        this.creator = creator;
        this.peerMsp = peerMsp;
        this.reads = new Map(); // key -> version
        this.ranges = []; // {start, end, found}
        this.writes = new Map(); // key -> Buffer
        this.policies = new Map(); // key -> bytes
        this.privateWrites = []; // {collection, key, value or null for a purge}
        this.paginated = false;
    }

    forbidWrites() {
        if (this.paginated) {
            throw new Error('txid: transaction has already performed a paginated query. Writes are not allowed');
        }
    }

    member(collection, action) {
        const config = this.ledger.collections.get(collection);
        if (config === undefined) {
            throw new Error(`collection ${collection} could not be found`);
        }
        if (!config.members.includes(this.creator.mspid)) {
            throw new Error(`tx creator does not have ${action} access permission on privatedata in\n collection ${collection}`);
        }
        return config;
    }

    async handleGetState(collection, key) {
        if (collection !== '') {
            const config = this.member(collection, 'read');
            const value = this.ledger.privateState.get(`${collection}/${key}`);
            if (value !== undefined && !config.members.includes(this.peerMsp)) {
                throw new Error('private data matching public hash version is not available');
            }
            return value ?? Buffer.alloc(0);
        }
        const entry = this.ledger.state.get(key);
        this.reads.set(key, entry?.version ?? 0);
        return entry?.value ?? Buffer.alloc(0);
    }

    async handlePutState(collection, key, value) {
        this.forbidWrites();
        if (collection !== '') {
            this.member(collection, 'write');
            this.privateWrites.push({ collection, key, value: Buffer.from(value) });
            return;
        }
        this.writes.set(key, Buffer.from(value));
    }

    async handlePurgeState(collection, key) {
        this.forbidWrites();
        this.member(collection, 'write');
        this.privateWrites.push({ collection, key, value: null });
    }

    async handlePutStateMetadata(collection, key, name, value) {
        this.forbidWrites();
        this.policies.set(key, value);
    }

    async handleGetPrivateDataHash(collection, key) {
        return this.ledger.privateHashes.get(`${collection}/${key}`) ?? Buffer.alloc(0);
    }

    async handleGetStateByRange(collection, start, end, channel, tx, metadata) {
        let first = start;
        let limit = Infinity;
        if (metadata !== undefined) {
            const page = peer.QueryMetadata.deserializeBinary(metadata);
            this.paginated = true;
            first = page.getBookmark() || start;
            limit = page.getPagesize();
        }
        const found = this.ledger.range(first, end).slice(0, limit);
        if (metadata === undefined) {
            this.ranges.push({ start, end, found: found.map(([key, { version }]) => `${key}@${version}`) });
        }
        return { iterator: iterator(found.map(([key, { value }]) => ({ key, value }))) };
    }

    async handleGetHistoryForKey(key) {
        return iterator([...this.ledger.history.get(key) ?? []].reverse());
    }
}

function iterator(entries) {
    let next = 0;
    return {
        next: async () => (next < entries.length ? { value: entries[next++], done: false } : { done: true }),
        close: async () => {},
    };
}

/** Whether peers of these MSPs satisfy a SignaturePolicyEnvelope. */
function satisfies(bytes, endorsers) {
    const envelope = common.SignaturePolicyEnvelope.deserializeBinary(bytes);
    const ids = envelope.getIdentitiesList().map((principal) => {
        const role = mspProtos.MSPRole.deserializeBinary(principal.getPrincipal_asU8());
        return role.getRole() === mspProtos.MSPRole.MSPRoleType.PEER ? role.getMspIdentifier() : 'nobody';
    });
    const holds = (rule) => {
        if (!rule.hasNOutOf()) {
            return endorsers.includes(ids[rule.getSignedBy()]);
        }
        const inner = rule.getNOutOf();
        return inner.getRulesList().filter(holds).length >= inner.getN();
    };
    return holds(envelope.getRule());
}

class Ledger {
    /** @param {string[]} msps of the channel; a majority of them endorses by default */
    constructor(msps = MSPS) {
        this.msps = msps;
        this.state = new Map(); // key -> {value, version}
        this.policies = new Map();
        this.history = new Map();
        this.privateState = new Map();
        this.privateHashes = new Map();
        this.block = 0;
        this.clock = 1_700_000_000;
        this.collections = new Map(collections(msps).map((config) => [config.name, {
            members: [...config.policy.matchAll(/'([^']+)\.member'/g)].map((match) => match[1]),
            endorsers: config.endorsementPolicy
                && [...config.endorsementPolicy.signaturePolicy.matchAll(/'([^']+)\.peer'/g)].map((match) => match[1]),
        }]));
        const serializers = { transaction: 'json', serializers: { json: JSONSerializer } };
        this.chaincode = new ChaincodeFromContract([...contracts], serializers);
    }

    /** Entries with start <= key < end, in the order of LevelDB (bytes of UTF-8). */
    range(start, end) {
        const from = Buffer.from(start);
        const to = Buffer.from(end);
        return [...this.state]
            .filter(([key]) => Buffer.compare(Buffer.from(key), from) >= 0 && Buffer.compare(Buffer.from(key), to) < 0)
            .sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    }

    /** Run a transaction on the committed state; throws what the chaincode refuses. */
    async endorse(creator, name, args, { transient = {}, peerMsp = creator.mspid } = {}) {
        const simulation = new Simulation(this, creator, peerMsp);
        const input = new peer.ChaincodeInput();
        input.setArgsList([name, ...args].map((arg) => Buffer.from(arg)));
        const txId = crypto.randomBytes(32).toString('hex');
        const stub = new Stub(simulation, CHANNEL, txId, input);
        stub.creator = creator;
        stub.transientMap = new Map(Object.entries(transient).map(([key, value]) => [key, Buffer.from(value)]));
        const response = await this.chaincode.Invoke(stub);
        if (response.status !== 200) {
            throw new Error(response.message);
        }
        const event = stub.chaincodeEvent && {
            name: stub.chaincodeEvent.getEventName(), payload: Buffer.from(stub.chaincodeEvent.getPayload()).toString(),
        };
        return { txId, simulation, event, result: Buffer.from(response.payload ?? '').toString() };
    }

    /** Validate and write; throws the code with which Fabric marks an invalid transaction. */
    commit({ txId, simulation }, endorsers = this.msps) {
        this.requireEndorsers(simulation, endorsers);
        for (const [key, version] of simulation.reads) {
            if ((this.state.get(key)?.version ?? 0) !== version) {
                throw new Error('MVCC_READ_CONFLICT');
            }
        }
        for (const { start, end, found } of simulation.ranges) {
            const now = this.range(start, end).map(([key, { version }]) => `${key}@${version}`);
            if (now.join() !== found.join()) {
                throw new Error('PHANTOM_READ_CONFLICT');
            }
        }
        this.block += 1;
        this.clock += 1;
        for (const [key, value] of simulation.writes) {
            this.state.set(key, { value, version: this.block });
            this.history.set(key, [...this.history.get(key) ?? [], {
                txId, value, isDelete: false, timestamp: { seconds: this.clock, nanos: 5_000_000 },
            }]);
        }
        for (const [key, policy] of simulation.policies) {
            this.policies.set(key, policy);
        }
        for (const { collection, key, value } of simulation.privateWrites) {
            const name = `${collection}/${key}`;
            if (value === null) {
                this.privateState.delete(name);
                this.privateHashes.delete(name);
            } else {
                this.privateState.set(name, value);
                this.privateHashes.set(name, crypto.createHash('sha256').update(value).digest());
            }
        }
    }

    requireEndorsers(simulation, endorsers) {
        let chaincodePolicy = simulation.writes.size === 0 && simulation.privateWrites.length === 0;
        const fail = () => {
            throw new Error('ENDORSEMENT_POLICY_FAILURE');
        };
        for (const key of new Set([...simulation.writes.keys(), ...simulation.policies.keys()])) {
            const policy = this.policies.get(key);
            if (policy === undefined) {
                chaincodePolicy = true;
            } else if (!satisfies(policy, endorsers)) {
                fail();
            }
        }
        for (const { collection } of simulation.privateWrites) {
            const own = this.collections.get(collection).endorsers;
            if (own === undefined) {
                chaincodePolicy = true;
            } else if (!own.some((msp) => endorsers.includes(msp))) {
                fail();
            }
        }
        if (chaincodePolicy && endorsers.length * 2 <= this.msps.length) {
            fail();
        }
    }

    async submit(creator, name, args, options = {}) {
        const transaction = await this.endorse(creator, name, args, options);
        this.commit(transaction, options.endorsers);
        return transaction;
    }

    async evaluate(creator, name, args, options = {}) {
        return (await this.endorse(creator, name, args, options)).result;
    }
}

module.exports = { Ledger, client, MSPS };
