// Second implementation for the tests of the log: the Go checksum database's log and notes (golang.org/x/mod/sumdb),
// and transparency.dev's proofs and cosignatures.
//
//	go run . vectors > vectors.json   proofs, checkpoints and cosignatures that they make
//	go run . check < file.json        checks those that somebody else made
package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Inclusion is a proof that a leaf is in a tree.
type Inclusion struct {
	Index, Size int64
	Leaf, Root  string
	Proof       []string
}

// Consistency is a proof that a tree extends another.
type Consistency struct {
	Size1, Size2 int64
	Root1, Root2 string
	Proof        []string
}

// Note is a signed note with the keys that must have signed it.
type Note struct {
	Text string
	Keys []string // verifier keys: the log's, then those of witnesses
}

// Vectors is what is written and read.
type Vectors struct {
	Leaves      []string
	Inclusion   []Inclusion
	Consistency []Consistency
	Notes       []Note
}

const sizes = 12

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "vectors":
		out := json.NewEncoder(os.Stdout)
		must(out.Encode(vectors()))
	case len(os.Args) == 2 && os.Args[1] == "check":
		var given Vectors
		must(json.NewDecoder(os.Stdin).Decode(&given))
		check(given)
		fmt.Println(len(given.Inclusion), len(given.Consistency), len(given.Notes))
	default:
		fmt.Fprintln(os.Stderr, "vectors or check")
		os.Exit(2)
	}
}

func vectors() Vectors {
	var made Vectors
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = stored[index]
		}
		return found, nil
	})
	roots := []tlog.Hash{{}}
	var leaves []tlog.Hash
	for n := int64(0); n < sizes; n++ {
		data := fmt.Appendf(nil, `{"event":%d}`, n)
		made.Leaves = append(made.Leaves, string(data))
		leaves = append(leaves, tlog.RecordHash(data))
		hashes, err := tlog.StoredHashes(n, data, reader)
		must(err)
		stored = append(stored, hashes...)
		root, err := tlog.TreeHash(n+1, reader)
		must(err)
		roots = append(roots, root)
	}
	for size := int64(1); size <= sizes; size++ {
		for index := int64(0); index < size; index++ {
			p, err := tlog.ProveRecord(size, index, reader)
			must(err)
			made.Inclusion = append(made.Inclusion,
				Inclusion{index, size, encode(leaves[index]), encode(roots[size]), encodeAll(p)})
		}
		for before := int64(1); before < size; before++ {
			p, err := tlog.ProveTree(size, before, reader)
			must(err)
			made.Consistency = append(made.Consistency,
				Consistency{before, size, encode(roots[before]), encode(roots[size]), encodeAll(p)})
		}
	}
	for size := int64(1); size <= sizes; size += 5 {
		made.Notes = append(made.Notes, signed(size, roots[size]))
	}
	return made
}

func signed(size int64, root tlog.Hash) Note {
	run := fmt.Sprintf("run-%d", size)
	skey, vkey := key("trustchain/"+run, byte(size))
	log, err := note.NewSigner(skey)
	must(err)
	signers := []note.Signer{log}
	keys := []string{vkey}
	for i, name := range []string{"bank", "clinic"} {
		skey, vkey := key(name, byte(100+i))
		witness, err := fnote.NewSignerForCosignatureV1(skey)
		must(err)
		signers = append(signers, witness)
		vkey, err = fnote.VKeyToCosignatureV1(vkey)
		must(err)
		keys = append(keys, vkey)
	}
	text := fmt.Sprintf("trustchain/%s\n%d\n%s\n", run, size, base64.StdEncoding.EncodeToString(root[:]))
	message, err := note.Sign(&note.Note{Text: text}, signers...)
	must(err)
	return Note{string(message), keys}
}

// key makes a signer's and a verifier's key from a fixed seed: these keys are for tests alone.
func key(name string, seed byte) (string, string) {
	secret := ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))
	vkey, err := note.NewEd25519VerifierKey(name, secret.Public().(ed25519.PublicKey))
	must(err)
	public := append([]byte{1}, secret.Public().(ed25519.PublicKey)...)
	hash := sha256.Sum256(append([]byte(name+"\n"), public...))
	skey := fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name, binary.BigEndian.Uint32(hash[:4]),
		base64.StdEncoding.EncodeToString(append([]byte{1}, secret.Seed()...)))
	return skey, vkey
}

func check(given Vectors) {
	for _, p := range given.Inclusion {
		must(proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(p.Index), uint64(p.Size),
			decode(p.Leaf), decodeAll(p.Proof), decode(p.Root)))
		must(tlog.CheckRecord(hashes(p.Proof), p.Size, hash(p.Root), p.Index, hash(p.Leaf)))
	}
	for _, p := range given.Consistency {
		must(proof.VerifyConsistency(rfc6962.DefaultHasher, uint64(p.Size1), uint64(p.Size2),
			decodeAll(p.Proof), decode(p.Root1), decode(p.Root2)))
		must(tlog.CheckTree(hashes(p.Proof), p.Size2, hash(p.Root2), p.Size1, hash(p.Root1)))
	}
	for _, n := range given.Notes {
		var verifiers []note.Verifier
		for i, vkey := range n.Keys {
			verifier, err := note.NewVerifier(vkey)
			if i > 0 {
				verifier, err = fnote.NewVerifierForCosignatureV1(vkey)
			}
			must(err)
			verifiers = append(verifiers, verifier)
		}
		opened, err := note.Open([]byte(n.Text), note.VerifierList(verifiers...))
		must(err)
		if len(opened.Sigs) != len(n.Keys) {
			must(fmt.Errorf("%d of %d signatures", len(opened.Sigs), len(n.Keys)))
		}
	}
}

func encode(h tlog.Hash) string { return hex.EncodeToString(h[:]) }

func encodeAll[P ~[]tlog.Hash](proof P) []string {
	texts := []string{}
	for _, h := range proof {
		texts = append(texts, encode(h))
	}
	return texts
}

func decode(text string) []byte {
	data, err := hex.DecodeString(text)
	must(err)
	return data
}

func decodeAll(texts []string) [][]byte {
	var all [][]byte
	for _, text := range texts {
		all = append(all, decode(text))
	}
	return all
}

func hash(text string) (h tlog.Hash) {
	copy(h[:], decode(text))
	return h
}

func hashes(texts []string) []tlog.Hash {
	var all []tlog.Hash
	for _, text := range texts {
		all = append(all, hash(text))
	}
	return all
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
