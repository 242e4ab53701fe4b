'use strict';

const assert = require('node:assert');
const { test } = require('node:test');

const { EMPTY_ROOT, append, isConsistent, leafHash, nodeHash, rootOf } = require('../lib/merkle');

// Leaves and roots of the RFC 6962 test tree (github.com/google/certificate-transparency, merkle_tree_test.cc).
const LEAVES = [
    '', '00', '10', '2021', '3031', '40414243', '5051525354555657', '606162636465666768696a6b6c6d6e6f',
].map((hex) => leafHash(Buffer.from(hex, 'hex')));
const ROOTS = [
    '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d',
    'fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125',
    'aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77',
    'd37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7',
    '4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4',
    '76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef',
    'ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c',
    '5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328',
];
// Consistency proofs of that tree, from the same file.
const PROOFS = [
    [1, 1, []],
    [1, 8, [
        '96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7',
        '5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e',
        '6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4',
    ]],
    [6, 8, [
        '0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a',
        'ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0',
        'd37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7',
    ]],
    [2, 5, [
        '5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e',
        'bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b',
    ]],
];

/** Consistency proof by the definition of RFC 9162, 2.1.4.1, from all leaf hashes. */
function prove(size1, leaves) {
    const split = (count) => 2 ** Math.ceil(Math.log2(count) - 1);
    const root = (hashes) => (hashes.length === 1
        ? hashes[0]
        : nodeHash(root(hashes.slice(0, split(hashes.length))), root(hashes.slice(split(hashes.length)))));
    const subproof = (m, hashes, whole) => {
        if (m === hashes.length) {
            return whole ? [] : [root(hashes)];
        }
        const k = split(hashes.length);
        return m <= k
            ? [...subproof(m, hashes.slice(0, k), whole), root(hashes.slice(k))]
            : [...subproof(m - k, hashes.slice(k), false), root(hashes.slice(0, k))];
    };
    return subproof(size1, leaves, true);
}

test('the frontier has the roots of the RFC 6962 test tree', () => {
    const frontier = [];
    assert.strictEqual(rootOf(frontier), EMPTY_ROOT);
    LEAVES.forEach((leaf, size) => {
        append(frontier, size, leaf);
        assert.strictEqual(rootOf(frontier), ROOTS[size]);
    });
});

test('the consistency proofs of the RFC 6962 test tree hold', () => {
    for (const [size1, size2, proof] of PROOFS) {
        assert.deepStrictEqual(prove(size1, LEAVES.slice(0, size2)), proof);
        assert.ok(isConsistent(size1, ROOTS[size1 - 1], size2, ROOTS[size2 - 1], proof), `${size1} to ${size2}`);
    }
});

test('every pair of sizes has its proof, and no changed proof holds', () => {
    const leaves = Array.from({ length: 20 }, (_, i) => leafHash(String(i)));
    const frontier = [];
    const roots = leaves.map((leaf, size) => {
        append(frontier, size, leaf);
        return rootOf(frontier);
    });
    const other = leafHash('other');
    for (let size2 = 1; size2 <= 20; size2++) {
        for (let size1 = 1; size1 <= size2; size1++) {
            const proof = prove(size1, leaves.slice(0, size2));
            const [root1, root2] = [roots[size1 - 1], roots[size2 - 1]];
            assert.ok(isConsistent(size1, root1, size2, root2, proof));
            assert.ok(!isConsistent(size1, other, size2, root2, proof));
            assert.ok(!isConsistent(size1, root1, size2, other, proof));
            assert.ok(!isConsistent(size1, root1, size2, root2, [...proof, other]));
            proof.forEach((_, i) => {
                assert.ok(!isConsistent(size1, root1, size2, root2, proof.with(i, other)));
                assert.ok(!isConsistent(size1, root1, size2, root2, proof.toSpliced(i, 1)));
            });
        }
    }
});

test('the empty tree is the beginning of every tree; a tree never shrinks', () => {
    assert.ok(isConsistent(0, EMPTY_ROOT, 8, ROOTS[7], []));
    assert.ok(!isConsistent(0, ROOTS[0], 8, ROOTS[7], []));
    assert.ok(!isConsistent(0, EMPTY_ROOT, 8, ROOTS[7], [ROOTS[0]]));
    assert.ok(!isConsistent(8, ROOTS[7], 6, ROOTS[5], []));
});
