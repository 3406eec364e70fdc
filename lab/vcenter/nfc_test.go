// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// nfc is a client of port 902.
type nfc struct {
	*testing.T
	net.Conn
	in *bufio.Reader
}

func (w *world) serveNFC() string {
	w.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.T, err)
	go func() { _ = w.lab.ServeNFC(listener) }()
	w.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// open logs in and opens a disk; it returns the server's last answer.
func open(t *testing.T, address string, login map[string]string, wish string) (*nfc, string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	client := &nfc{t, conn, bufio.NewReader(conn)}
	fmt.Fprintln(conn, nfcGreeting)
	for name, value := range login {
		fmt.Fprintln(conn, name, value)
	}
	fmt.Fprintln(conn)
	said := client.line()
	if said == "ok" {
		fmt.Fprintln(conn, wish)
		said = client.line()
	}
	return client, said
}

func (c *nfc) line() string {
	c.Helper()
	line, err := c.in.ReadString('\n')
	must(c.T, err)
	return strings.TrimSuffix(line, "\n")
}

func (c *nfc) ask(what uint32, offset, length uint64) (uint32, []byte) {
	c.Helper()
	must(c.T, binary.Write(c.Conn, binary.BigEndian, struct {
		What           uint32
		Offset, Length uint64
	}{what, offset, length}))
	var head struct {
		Status uint32
		Length uint64
	}
	must(c.T, binary.Read(c.in, binary.BigEndian, &head))
	answer := make([]byte, head.Length)
	_, err := io.ReadFull(c.in, answer)
	must(c.T, err)
	return head.Status, answer
}

func TestDisksOfASnapshotAreServed(t *testing.T) {
	w := newWorld(t)
	w.lab.Thumbprint = "AA:BB"
	address := w.serveNFC()
	client := w.login().Client
	vm := w.find(client, "/DC0/vm/prod/pgtest1")
	older := w.snapshot(vm, "older")
	w.write("pgtest1", 2001, 4096, "frozen by the newer one")
	newer := w.snapshot(vm, "newer")
	w.write("pgtest1", 2001, 4096, "written after both")

	login := map[string]string{
		"user": user, "password": password, "thumbprint": "AA:BB", "vm": vm.Reference().Value, "snapshot": newer.Value,
	}
	const delta = "open ro [datastore1] pgtest1/pgtest1_2-000001.vmdk"
	disk, said := open(t, address, login, delta)
	if said != fmt.Sprintf("ok %d", 1<<20+1536) {
		t.Fatal(said)
	}
	// Bytes of the delta, and around them those of the base.
	want := w.read("pgtest1", 2001, 0, 1<<20+1536)
	copy(want[4096:], "frozen by the newer one")
	check := func(when string) {
		t.Helper()
		if status, got := disk.ask(nfcRead, 0, uint64(len(want))); status != 0 || !bytes.Equal(got, want) {
			t.Errorf("%s: status %d, or other bytes than the snapshot froze", when, status)
		}
	}
	check("on a chain")
	w.remove(vm, older, false, nil)
	check("once the chain was joined below it")
	if status, areas := disk.ask(nfcAllocated, 0, 1<<20+1536); status != 0 || len(areas) == 0 || len(areas)%16 != 0 {
		t.Errorf("allocated: status %d, %d bytes", status, len(areas))
	}
	if status, why := disk.ask(nfcRead, 1<<20, 1<<20); status != vixFail || !strings.Contains(string(why), "beyond") {
		t.Errorf("beyond the end: %d %s", status, why)
	}
	w.remove(vm, newer, false, nil)
	if status, why := disk.ask(nfcRead, 0, 512); status != vixFileNotFound || !strings.Contains(string(why), "is gone") {
		t.Errorf("without its snapshot: %d %s", status, why)
	}
	w.lab.stats.Lock()
	defer w.lab.stats.Unlock()
	if got := w.lab.stats.nfc; got.Opens != 1 || got.OpenNow != 1 || got.Bytes != 2*int64(len(want)) {
		t.Errorf("counted: %+v", got)
	}
}

func TestWhatIsNotServed(t *testing.T) {
	w := newWorld(t)
	w.lab.Thumbprint = "AA:BB"
	address := w.serveNFC()
	vm := w.find(w.login().Client, "/DC0/vm/prod/pgtest1")
	login := func(name, value string) map[string]string {
		fields := map[string]string{
			"user": user, "password": password, "thumbprint": "AA:BB",
			"vm": vm.Reference().Value, "snapshot": w.lab.guests[0].snapshots[0].ref.Value,
		}
		if name != "" {
			fields[name] = value
		}
		return fields
	}
	w.snapshot(vm, "one")
	const base = "[datastore1] pgtest1/pgtest1_2.vmdk"
	for _, example := range []struct{ name, value, wish, want string }{
		{"password", "wrong", "", "error 3014 Cannot complete login due to an incorrect user name or password."},
		{"thumbprint", "BB:AA", "", "error 18000 the certificate of"},
		{"vm", "vm-0", "", "error 3 there is no VM vm-0"},
		{"snapshot", "snapshot-0", "open ro " + base, "error 4 pgtest1 has no snapshot snapshot-0"},
		{"snapshot", "", "open ro " + base, "error 13"},
		{"", "", "open rw " + base, "error 13 " + base + " is frozen by"},
		{"snapshot", "", "open rw " + base, "error 13 " + base + " is locked by a running VM"},
		{"", "", "open ro [datastore1] pgtest1/other.vmdk", "error 4 [datastore1] pgtest1/other.vmdk is no disk of snapshot"},
		{"", "", "close", "error 3"},
	} {
		if _, said := open(t, address, login(example.name, example.value), example.wish); !strings.HasPrefix(said, example.want) {
			t.Errorf("%s %q, %q: %s", example.name, example.value, example.wish, said)
		}
	}
	w.tell("POST", "/knob", strings.NewReader(`{"nfc_disks": 1, "nfc_bytes_per_second": 2097152}`), nil)
	disk, said := open(t, address, login("", ""), "open ro "+base)
	if !strings.HasPrefix(said, "ok") {
		t.Fatal(said)
	}
	if _, said := open(t, address, login("", ""), "open ro "+base); !strings.HasPrefix(said, "error 14009 NfcServer: too many") {
		t.Error(said)
	}
	began := time.Now()
	disk.ask(nfcRead, 0, 1<<20)
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("1 MiB at 2 MiB/s took %s", took)
	}
}
