# pragma version ^0.4.0
"""
@title Anchor
@license Apache-2.0
@notice Keeps the newest tree head of one log: each anchor extends the one before it.
"""

event Anchored:
    seq: indexed(uint64)
    root: bytes32
    size: uint64

# Immutables lie behind the code in this order: eth_getCode alone tells who anchors and where to look for events.
ANCHORER: public(immutable(address))
START: public(immutable(uint256))

# Two slots: an anchor after the first pays for two warm updates, whatever the batch holds.
_root: bytes32
_packed: uint256  # seq in the upper half, size in the lower


@deploy
def __init__(anchorer: address):
    """
    @param anchorer the only account that may anchor
    """
    assert anchorer != empty(address), "no anchorer"
    ANCHORER = anchorer
    START = block.number


@external
def anchor(root: bytes32, size: uint64, seq: uint64, prev: bytes32):
    """
    @notice Anchor a tree head. Sending the current head once more changes nothing, so a retry is safe.
    @param root RFC 9162 root of the log
    @param size number of leaves under it
    @param seq number of this anchor, from 1
    @param prev root of the anchor before it, zero for the first
    """
    assert msg.sender == ANCHORER, "not the anchorer"
    packed: uint256 = self._packed
    head_root: bytes32 = self._root
    next: uint256 = (convert(seq, uint256) << 128) | convert(size, uint256)
    if next == packed and root == head_root:
        return
    assert convert(seq, uint256) == (packed >> 128) + 1, "seq is not the next"
    assert prev == head_root, "prev is not the head"
    assert convert(size, uint256) > packed & convert(max_value(uint128), uint256), "size does not grow"
    self._root = root
    self._packed = next
    log Anchored(seq=seq, root=root, size=size)


@external
@view
def head() -> (uint64, uint64, bytes32):
    """
    @notice The newest anchor.
    @return seq, size, root; all zero before the first
    """
    packed: uint256 = self._packed
    return (
        convert(packed >> 128, uint64),
        convert(packed & convert(max_value(uint128), uint256), uint64),
        self._root,
    )
