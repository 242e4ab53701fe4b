# pragma version ^0.4.0
"""
@title Federation
@license Apache-2.0
@notice A consortium: its members, and what k of n of them decide. Members sign EIP-712 typed data off the chain; anybody
        sends the collected approvals in one transaction.
"""

MAX_MEMBERS: constant(uint256) = 32
MAX_SIGNATURE: constant(uint256) = 260  # of a contract member (EIP-1271): a wallet of up to four keys
MAX_DEPTH: constant(uint256) = 32

interface AnchorLog:
    def head() -> (uint64, uint64, bytes32): view

interface ContractMember:
    def isValidSignature(digest: bytes32, signature: Bytes[MAX_SIGNATURE]) -> bytes4: view

struct Member:
    name: bytes32  # SHA-256 of the organization's name
    key_id: bytes32  # SHA-256 of its Ed25519 identity key

struct Approval:
    member: address
    signature: Bytes[MAX_SIGNATURE]

struct ModelRelease:
    run: bytes32
    size: uint64
    root: bytes32
    revoked: bool

struct Settlement:
    root: bytes32
    remaining: uint256
    expiry: uint256
    funder: address

event MemberAdded:
    account: indexed(address)
    name: bytes32
    key_id: bytes32

event MemberRemoved:
    account: indexed(address)

event ThresholdSet:
    threshold: uint256

event CoordinatorSet:
    account: indexed(address)
    allowed: bool

event LogOpened:
    run: indexed(bytes32)
    opened: address
    anchorer: address

event Released:
    model: indexed(bytes32)
    run: indexed(bytes32)
    size: uint64
    root: bytes32

event Revoked:
    model: indexed(bytes32)
    reason: bytes32

event Settled:
    id: indexed(bytes32)
    root: bytes32
    total: uint256
    expiry: uint256

event Claimed:
    id: indexed(bytes32)
    account: indexed(address)
    amount: uint256

event Swept:
    id: indexed(bytes32)
    amount: uint256

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
DOMAIN_NAME: constant(bytes32) = keccak256("TrustChain Federation")
DOMAIN_VERSION: constant(bytes32) = keccak256("1")
ADD_MEMBER: constant(bytes32) = keccak256(
    "AddMember(address account,bytes32 name,bytes32 keyId,uint256 threshold,uint256 nonce,uint256 deadline)"
)
REMOVE_MEMBER: constant(bytes32) = keccak256(
    "RemoveMember(address account,uint256 threshold,uint256 nonce,uint256 deadline)"
)
SET_THRESHOLD: constant(bytes32) = keccak256("SetThreshold(uint256 threshold,uint256 nonce,uint256 deadline)")
SET_COORDINATOR: constant(bytes32) = keccak256(
    "SetCoordinator(address account,bool allowed,uint256 nonce,uint256 deadline)"
)
OPEN_LOG: constant(bytes32) = keccak256("OpenLog(bytes32 run,address anchorer,uint256 nonce,uint256 deadline)")
RELEASE: constant(bytes32) = keccak256(
    "Release(bytes32 model,bytes32 run,uint64 size,bytes32 root,uint256 nonce,uint256 deadline)"
)
REVOKE: constant(bytes32) = keccak256("Revoke(bytes32 model,bytes32 reason,uint256 nonce,uint256 deadline)")
SETTLE: constant(bytes32) = keccak256(
    "Settle(bytes32 id,bytes32 root,uint256 total,uint256 expiry,uint256 nonce,uint256 deadline)"
)
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168  # of secp256k1
VALID_SIGNATURE: constant(bytes4) = 0x1626ba7e

# Immutables lie behind the code in this order.
BLUEPRINT: public(immutable(address))
START: public(immutable(uint256))

members: public(HashMap[address, Member])
key_owner: public(HashMap[bytes32, address])
name_owner: public(HashMap[bytes32, address])
accounts: DynArray[address, MAX_MEMBERS]
threshold: public(uint256)
coordinators: public(HashMap[address, bool])
spent: public(HashMap[bytes32, bool])
logs: public(HashMap[bytes32, address])
releases: public(HashMap[bytes32, ModelRelease])
settlements: public(HashMap[bytes32, Settlement])
claimed: public(HashMap[bytes32, HashMap[address, bool]])


@deploy
def __init__(
    accounts: DynArray[address, MAX_MEMBERS],
    names: DynArray[bytes32, MAX_MEMBERS],
    key_ids: DynArray[bytes32, MAX_MEMBERS],
    threshold: uint256,
    coordinator: address,
    blueprint: address,
):
    """
    @param accounts the founding members
    @param names SHA-256 of each member's name
    @param key_ids SHA-256 of each member's Ed25519 key
    @param threshold how many members must approve
    @param coordinator an account that may open logs; zero: none
    @param blueprint ERC-5202 blueprint of the Anchor contract
    """
    assert len(names) == len(accounts) and len(key_ids) == len(accounts), "lengths differ"
    assert blueprint.codesize > 3, "no blueprint"
    BLUEPRINT = blueprint
    START = block.number
    for index: uint256 in range(len(accounts), bound=MAX_MEMBERS):
        self._add(accounts[index], names[index], key_ids[index])
    self._set_threshold(threshold)
    if coordinator != empty(address):
        self.coordinators[coordinator] = True
        log CoordinatorSet(account=coordinator, allowed=True)


@external
def add_member(
    account: address,
    name: bytes32,
    key_id: bytes32,
    threshold: uint256,
    nonce: uint256,
    deadline: uint256,
    approvals: DynArray[Approval, MAX_MEMBERS],
):
    """
    @notice Take in a member; threshold is the one from then on.
    """
    self._approved(
        keccak256(abi_encode(ADD_MEMBER, account, name, key_id, threshold, nonce, deadline)), deadline, approvals
    )
    self._add(account, name, key_id)
    self._set_threshold(threshold)


@external
def remove_member(
    account: address,
    threshold: uint256,
    nonce: uint256,
    deadline: uint256,
    approvals: DynArray[Approval, MAX_MEMBERS],
):
    """
    @notice Put a member out; threshold is the one from then on. Its approvals count no more.
    """
    self._approved(keccak256(abi_encode(REMOVE_MEMBER, account, threshold, nonce, deadline)), deadline, approvals)
    member: Member = self.members[account]
    assert member.key_id != empty(bytes32), "no such member"
    self.key_owner[member.key_id] = empty(address)
    self.name_owner[member.name] = empty(address)
    self.members[account] = empty(Member)
    last: address = self.accounts.pop()
    if last != account:
        for index: uint256 in range(len(self.accounts), bound=MAX_MEMBERS):
            if self.accounts[index] == account:
                self.accounts[index] = last
                break
    log MemberRemoved(account=account)
    self._set_threshold(threshold)


@external
def set_threshold(
    threshold: uint256, nonce: uint256, deadline: uint256, approvals: DynArray[Approval, MAX_MEMBERS]
):
    """
    @notice Change how many members must approve.
    """
    self._approved(keccak256(abi_encode(SET_THRESHOLD, threshold, nonce, deadline)), deadline, approvals)
    self._set_threshold(threshold)


@external
def set_coordinator(
    account: address, allowed: bool, nonce: uint256, deadline: uint256, approvals: DynArray[Approval, MAX_MEMBERS]
):
    """
    @notice Allow or forbid an account to open logs by itself.
    """
    self._approved(keccak256(abi_encode(SET_COORDINATOR, account, allowed, nonce, deadline)), deadline, approvals)
    self.coordinators[account] = allowed
    log CoordinatorSet(account=account, allowed=allowed)


@external
def open_log(run: bytes32, anchorer: address) -> address:
    """
    @notice A coordinator opens the log of a run.
    @param run SHA-256 of the run's id
    @param anchorer the only account that may anchor there
    @return address of the log, an Anchor contract
    """
    assert self.coordinators[msg.sender], "not a coordinator"
    return self._open(run, anchorer)


@external
def open_log_approved(
    run: bytes32, anchorer: address, nonce: uint256, deadline: uint256, approvals: DynArray[Approval, MAX_MEMBERS]
) -> address:
    """
    @notice The members open the log of a run.
    """
    self._approved(keccak256(abi_encode(OPEN_LOG, run, anchorer, nonce, deadline)), deadline, approvals)
    return self._open(run, anchorer)


@external
def release(
    model: bytes32,
    run: bytes32,
    size: uint64,
    root: bytes32,
    nonce: uint256,
    deadline: uint256,
    approvals: DynArray[Approval, MAX_MEMBERS],
):
    """
    @notice The members release a model.
    @param model digest of its tensors
    @param size number of events of the run's log that the release refers to; they must be anchored
    @param root root of the log at this size
    """
    self._approved(keccak256(abi_encode(RELEASE, model, run, size, root, nonce, deadline)), deadline, approvals)
    assert self.releases[model].run == empty(bytes32), "released before"
    log_: address = self.logs[run]
    assert log_ != empty(address), "no such run"
    seq: uint64 = 0
    anchored: uint64 = 0
    head_root: bytes32 = empty(bytes32)
    seq, anchored, head_root = staticcall AnchorLog(log_).head()
    assert 0 < size and size <= anchored, "not anchored"
    if size == anchored:
        assert root == head_root, "another root is anchored"
    self.releases[model] = ModelRelease(run=run, size=size, root=root, revoked=False)
    log Released(model=model, run=run, size=size, root=root)


@external
def revoke(
    model: bytes32, reason: bytes32, nonce: uint256, deadline: uint256, approvals: DynArray[Approval, MAX_MEMBERS]
):
    """
    @notice The members take a release back, for good.
    @param reason digest of the event that says why
    """
    self._approved(keccak256(abi_encode(REVOKE, model, reason, nonce, deadline)), deadline, approvals)
    assert self.releases[model].run != empty(bytes32), "not released"
    assert not self.releases[model].revoked, "revoked before"
    self.releases[model].revoked = True
    log Revoked(model=model, reason=reason)


@external
@payable
def settle(
    id: bytes32,
    root: bytes32,
    total: uint256,
    expiry: uint256,
    nonce: uint256,
    deadline: uint256,
    approvals: DynArray[Approval, MAX_MEMBERS],
):
    """
    @notice The members settle rewards; the sender brings the total. Each settlement pays out of its own money only.
    @param root Merkle root over (account, amount) as of OpenZeppelin's StandardMerkleTree
    @param expiry time in seconds after which the sender may take back what nobody claimed
    """
    self._approved(keccak256(abi_encode(SETTLE, id, root, total, expiry, nonce, deadline)), deadline, approvals)
    assert root != empty(bytes32), "no root"
    assert self.settlements[id].root == empty(bytes32), "settled before"
    assert msg.value == total, "value is not the total"
    assert expiry > block.timestamp, "expiry has passed"
    self.settlements[id] = Settlement(root=root, remaining=total, expiry=expiry, funder=msg.sender)
    log Settled(id=id, root=root, total=total, expiry=expiry)


@external
@nonreentrant
def claim(id: bytes32, account: address, amount: uint256, proof: DynArray[bytes32, MAX_DEPTH]):
    """
    @notice Pay an account its reward, once. Anybody may send this; the money goes to the account.
    """
    assert not self.claimed[id][account], "claimed before"
    settlement: Settlement = self.settlements[id]
    node: bytes32 = keccak256(keccak256(abi_encode(account, amount)))
    for other: bytes32 in proof:
        if convert(node, uint256) < convert(other, uint256):
            node = keccak256(concat(node, other))
        else:
            node = keccak256(concat(other, node))
    assert settlement.root != empty(bytes32) and node == settlement.root, "not in the settlement"
    assert amount <= settlement.remaining, "nothing left"
    self.claimed[id][account] = True
    self.settlements[id].remaining = settlement.remaining - amount
    log Claimed(id=id, account=account, amount=amount)
    raw_call(account, b"", value=amount)


@external
@nonreentrant
def sweep(id: bytes32):
    """
    @notice After the expiry, give what nobody claimed back to who paid it in.
    """
    settlement: Settlement = self.settlements[id]
    assert settlement.remaining > 0, "nothing left"
    assert block.timestamp > settlement.expiry, "not expired"
    self.settlements[id].remaining = 0
    log Swept(id=id, amount=settlement.remaining)
    raw_call(settlement.funder, b"", value=settlement.remaining)


@external
@view
def member_accounts() -> DynArray[address, MAX_MEMBERS]:
    """
    @notice Accounts of all members.
    """
    return self.accounts


@external
@view
def domain_separator() -> bytes32:
    """
    @notice EIP-712 domain separator of this contract on this chain.
    """
    return self._domain()


@internal
@view
def _domain() -> bytes32:
    # Not kept: after a fork of the chain the two sides must differ.
    return keccak256(abi_encode(DOMAIN_TYPE, DOMAIN_NAME, DOMAIN_VERSION, chain.id, self))


@internal
def _approved(struct_hash: bytes32, deadline: uint256, approvals: DynArray[Approval, MAX_MEMBERS]):
    assert block.timestamp <= deadline, "approval expired"
    digest: bytes32 = keccak256(concat(b"\x19\x01", self._domain(), struct_hash))
    assert not self.spent[digest], "approval spent"
    self.spent[digest] = True
    assert len(approvals) >= self.threshold, "too few approvals"
    last: uint256 = 0
    for approval: Approval in approvals:
        number: uint256 = convert(approval.member, uint256)
        assert number > last, "members not ascending"
        assert self.members[approval.member].key_id != empty(bytes32), "not a member"
        assert self._signed(approval.member, digest, approval.signature), "signature is not the member's"
        last = number


@internal
@view
def _signed(member: address, digest: bytes32, signature: Bytes[MAX_SIGNATURE]) -> bool:
    if len(signature) == 65:
        s: uint256 = convert(slice(signature, 32, 32), uint256)
        v: uint256 = convert(slice(signature, 64, 1), uint256)
        if s <= HALF_ORDER and ecrecover(digest, v, convert(slice(signature, 0, 32), uint256), s) == member:
            return True
    if member.is_contract:
        return staticcall ContractMember(member).isValidSignature(digest, signature) == VALID_SIGNATURE
    return False


@internal
def _open(run: bytes32, anchorer: address) -> address:
    assert run != empty(bytes32), "no run"
    assert self.logs[run] == empty(address), "run has a log"
    # The run is the salt (CREATE2): the address is known before the transaction is in a block.
    opened: address = create_from_blueprint(BLUEPRINT, anchorer, salt=run)
    self.logs[run] = opened
    log LogOpened(run=run, opened=opened, anchorer=anchorer)
    return opened


@internal
def _add(account: address, name: bytes32, key_id: bytes32):
    assert account != empty(address) and name != empty(bytes32) and key_id != empty(bytes32), "member incomplete"
    assert self.members[account].key_id == empty(bytes32), "is a member"
    assert self.key_owner[key_id] == empty(address), "key has an owner"
    assert self.name_owner[name] == empty(address), "name has an owner"
    assert len(self.accounts) < MAX_MEMBERS, "too many members"
    self.members[account] = Member(name=name, key_id=key_id)
    self.key_owner[key_id] = account
    self.name_owner[name] = account
    self.accounts.append(account)
    log MemberAdded(account=account, name=name, key_id=key_id)


@internal
def _set_threshold(threshold: uint256):
    assert 0 < threshold and threshold <= len(self.accounts), "threshold out of range"
    self.threshold = threshold
    log ThresholdSet(threshold=threshold)
