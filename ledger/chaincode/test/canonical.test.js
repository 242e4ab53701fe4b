'use strict';

const assert = require('node:assert');
const { test } = require('node:test');

const { canonical, parseCanonical } = require('../lib/canonical');

test('canonical JSON sorts keys by UTF-16 units and writes no white space', () => {
    // RFC 8785, 3.2.3: the emoji (a surrogate pair) sorts before U+FB33.
    const value = { '\u20ac': 1, '\r': 2, '\ufb33': 3, 1: 4, '\u{1f600}': 5, '\u0080': 6, '\u00f6': 7 };
    assert.strictEqual(canonical(value), '{"\\r":2,"1":4,"\u0080":6,"\u00f6":7,"\u20ac":1,"\u{1f600}":5,"\ufb33":3}');
    assert.strictEqual(canonical({ b: [true, null, 'x"\\\u001f'], a: { z: -5 } }), '{"a":{"z":-5},"b":[true,null,"x\\"\\\\\\u001f"]}');
});

test('a key that JavaScript treats specially is written like any other', () => {
    const text = '{"10":1,"9":2,"__proto__":{"a":1}}';
    assert.strictEqual(canonical(parseCanonical(text)), text);
});

for (const [what, text] of [
    ['white space', '{"a": 1}'], ['unsorted keys', '{"b":1,"a":2}'], ['a duplicate key', '{"a":1,"a":1}'],
    ['a float', '{"a":1.5}'], ['a float that is whole', '{"a":1.0}'], ['an exponent', '{"a":1e3}'],
    ['minus zero', '{"a":-0}'], ['a needless escape', '{"a":"\\u0041"}'], ['a lone surrogate', '{"a":"\\ud800"}'],
    ['an integer beyond 2**53', '{"a":9007199254740993}'], ['what is not JSON', '{a:1}'], ['nothing', ''],
    ['deep nesting', '['.repeat(70) + ']'.repeat(70)],
]) {
    test(`${what} is refused`, () => {
        assert.throws(() => parseCanonical(text));
    });
}
